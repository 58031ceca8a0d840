"""Analyses that run the model measure the tokens that count, and replace no others: against whole forwards by hand.

The model has an attention sink at the first position. What is counted is either all but that position, or a slice.
"""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from analyses import ablation, downstream, explanations, novelty, pathology, probes, shrinkage
from analyses.common.max_activating import AFTER, BEFORE, peaks
from analyses.composition.insertion.direct_logits import leaving
from analyses.composition.insertion.latent_cards import CardContext, passages
from analyses.features.explanations.n2g import last_activations
from analyses.features.probes.user_labels import table_tokens
from analyses.model_effects.ablation.ablation import draw_places
from analyses.model_effects.pathology.replacement_damage import measure_sites
from dictlab import DictlabError, TopK
from dictlab.dictionary import Dictionary
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.token_selection import TokenSelection
from tests.planted import SITE, many_documents, random_dictionary, sink_model

CONTEXT = 32
SPECS = ("without-outliers=10", "positions=3:20")


@pytest.fixture(scope="module")
def model():
    return sink_model()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return many_documents(tmp_path_factory.mktemp("text"))


def dictionary(spec: str, seed: int = 0, n: int = 40) -> Dictionary:
    """A dictionary that was trained on the tokens of `spec`."""
    made = random_dictionary(n, 16, activation=TopK(4), seed=seed, name=f"d{seed}")
    return with_selection([made], spec)[0]


def counted(model, tokens: torch.Tensor, spec: str) -> torch.Tensor:
    """Which tokens count, by the rule itself."""
    x = model.capture(tokens, SITE)[SITE]
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    if spec == "all":
        return ~mask
    if spec.startswith("positions"):
        mask[:, 3:20] = True
        return mask
    norms = x.norm(dim=-1)
    return norms <= 10 * norms.sort(dim=1).values[:, (CONTEXT - 1) // 2, None]


def spliced(model, tokens: torch.Tensor, d: Dictionary, mask: torch.Tensor) -> torch.Tensor:
    """Logits with the reconstruction in place of the tokens of the mask alone, one sequence at a time."""
    logits = []
    for row, counts in zip(tokens, mask, strict=True):
        x = model.capture(row[None], SITE)[SITE].clone()
        for position in counts.nonzero().flatten().tolist():
            x[0, position] = d.reconstruct(x[0, position : position + 1].float())[0]
        logits.append(model.splice(row[None], SITE, x).logits)
    return torch.cat(logits)


def ce_and_kl(model, tokens, logits, mask) -> tuple[float, float]:
    """CE increase over the tokens of the mask that have a next one, and KL over all of the mask; nats a token."""
    clean, altered = (torch.log_softmax(v.double(), dim=-1) for v in (model.forward(tokens).logits, logits))
    kl = (clean.exp() * (clean - altered)).sum(dim=-1)[mask].mean()
    rise = (clean - altered)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0][mask[:, :-1]].mean()
    return float(rise), float(kl)


def held_out(model, text, contexts: int) -> torch.Tensor:
    return text.as_split("heldout").sample(model.tokenizer, CONTEXT, contexts, seed=0)


@pytest.mark.parametrize("spec", SPECS)
def test_ablations_are_at_tokens_that_count(model, text, spec):
    report = ablation([dictionary(spec)], model=model, text=text, contexts=12, latents_per_token=2, positions=4)
    frame, mask = report.tables["effects"].frame, counted(model, held_out(model, text, 12), spec)
    assert all(mask[s, p] for s, p in zip(frame["sequence"], frame["position"], strict=True))
    assert report.settings["token_selection"] == spec and report.warnings == ()
    everything = ablation(
        [dictionary(spec)], model=model, text=text, contexts=12, latents_per_token=2, positions=4, token_selection="all"
    )
    assert any("Attention sinks" in warning for warning in everything.warnings)
    assert everything.settings["token_selection"] == "all"


def test_the_token_to_ablate_at_is_uniform_among_those_that_count():
    mask = torch.zeros(6000, 10, dtype=torch.bool)
    mask[:, [0, 2, 5, 7, 9]] = True
    mask[17] = False
    places = draw_places(mask, 3, seed=0)
    assert [sequence for sequence, _ in places] == [i for i in range(6000) if i != 17]
    share = torch.bincount(torch.tensor([position for _, position in places]), minlength=10) / len(places)
    assert share.nonzero().flatten().tolist() == [2, 5, 7]  # the last has no two behind it, the first none before
    assert share[[2, 5, 7]].tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize("spec", [*SPECS, "all"])
def test_the_stream_behind_a_splice_is_measured_at_tokens_that_count(model, text, spec):
    d, tokens, later = dictionary(spec), held_out(model, text, 5), "blocks.2.hook_resid_pre"
    report = downstream([d], model=model, text=text, contexts=5)
    mask = counted(model, tokens, spec)
    table = report.tables["metrics"].frame.set_index(["place", "metric"])["value"]
    rise, kl = ce_and_kl(model, tokens, spliced(model, tokens, d, mask), mask)
    assert table["output", "KL"] == pytest.approx(kl, rel=1e-3)
    assert table["output", "CE increase"] == pytest.approx(rise, rel=1e-3, abs=1e-5)
    a, x = (model.capture(tokens, site)[site].double() for site in (later, SITE))
    new = x.clone()
    new[mask] = d.reconstruct(x[mask].float()).double()
    b = model.resume_to(new.float(), SITE, [later], tokens=tokens)[later].double()
    for place, before, after in ((later, a, b), (SITE, x, new)):
        error, variance = (before - after)[mask].square().sum(), (before - before[mask].mean(0))[mask].square().sum()
        assert table[place, "explained variance"] == pytest.approx(float(1 - error / variance), rel=1e-3)
        ratio = (after.norm(dim=-1) / before.norm(dim=-1))[mask].mean()
        assert table[place, "norm ratio"] == pytest.approx(float(ratio), rel=1e-4)
    first = table[SITE, "norm ratio (first position)"]
    assert (first == first) == bool(mask[:, 0].any())
    along = report.tables["directions"].frame
    covariance = torch.cov(x[mask].T)
    shares = torch.linalg.eigvalsh(covariance).flip(0) / covariance.trace()
    assert along["share of variance"].tolist() == pytest.approx(shares.tolist(), rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("spec", [*SPECS, "all"])
def test_refined_and_cut_codes_are_measured_and_spliced_at_tokens_that_count(model, text, spec):
    d, tokens = dictionary(spec), held_out(model, text, 5)
    report = shrinkage([d], model=model, text=text, contexts=5, l0_levels=(1, 4))
    mask, frame = counted(model, tokens, spec), report.tables["recovery"].frame
    x = model.capture(tokens, SITE)[SITE]
    rows = x[mask].double()
    variance = (rows - rows.mean(dim=0)).square().sum()
    for name, k in (("as trained", 4), ("largest k", 1)):
        version = replace(d, activation=TopK(k))
        row = frame[(frame["rule"] == name) & (frame["trained"] | (frame["setting"] == k))].iloc[0]
        rise, _ = ce_and_kl(model, tokens, spliced(model, tokens, version, mask), mask)
        assert row["CE increase"] == pytest.approx(rise, rel=1e-3, abs=1e-5)
        error = (rows - version.reconstruct(x[mask])).square().sum()
        assert row["normalised MSE"] == pytest.approx(float(error / variance), rel=1e-4)
    assert report.settings["tokens"] == int(mask.sum())


def test_an_array_is_counted_by_rows_that_count(model, text):
    x = model.capture(held_out(model, text, 6), SITE)[SITE]
    report = shrinkage([dictionary("without-outliers=10")], data=x, contexts=6, l0_levels=(1,))
    assert report.settings["tokens"] == 6 * (CONTEXT - 1)
    assert report.settings["token_selection"] == "without-outliers=10"


@pytest.mark.parametrize("spec", SPECS)
def test_damage_is_that_of_replacing_tokens_that_count(model, text, spec):
    d, tokens = dictionary(spec), held_out(model, text, 4)
    report = pathology(
        [d],
        model=model,
        text=text,
        contexts=4,
        draws=1,
        random_points=4,
        sweep_contexts=2,
        positions_after=2,
        min_occurrences=1,
    )
    mask = counted(model, tokens, spec)
    mask[:, -1] = False  # what is measured is of tokens with a next one; the last of a sequence changes no other
    row = report.tables["interventions"].frame.set_index(["tokens", "intervention"]).loc["all"].loc["reconstruction"]
    rise, kl = ce_and_kl(model, tokens, spliced(model, tokens, d, mask), mask)
    assert row["KL"] == pytest.approx(kl, rel=1e-3) and row["CE increase"] == pytest.approx(rise, rel=1e-3, abs=1e-5)
    comparison = report.tables["comparison"].frame.iloc[0]
    x = model.capture(tokens, SITE)[SITE][mask]
    assert comparison["error norm"] == pytest.approx(float((d.reconstruct(x) - x).norm(dim=-1).mean()), rel=1e-4)
    assert comparison["L0"] == pytest.approx(float(d.encode(x).l0().float().mean()))
    assert report.tables["tokens"].frame["count"].sum() == int(mask.sum())
    reached = torch.tensor(report.tables["positions"].frame["from"].unique())
    assert all(mask[:, int(start) : max(1, 2 * int(start))].any() for start in reached)
    elsewhere = text.as_split("train").sample(model.tokenizer, CONTEXT, 26, seed=0)
    at_site = measure_sites(model, elsewhere, [SITE], TokenSelection.parse(spec))[SITE]
    everything = model.capture(elsewhere, SITE)[SITE]
    kept = counted(model, elsewhere, spec)
    kept[:, 0] = False
    torch.testing.assert_close(at_site.mean, everything[kept].mean(dim=0), rtol=1e-4, atol=1e-4)
    share = report.tables["single_token"].frame.set_index(["intervention", "positions after"])["KL"]
    position = report.settings["position"]
    alone = torch.zeros_like(mask)
    alone[:, position] = mask[:, position]
    _, at_position = ce_and_kl(model, tokens, spliced(model, tokens, d, alone), alone)
    assert share["reconstruction", 0] == pytest.approx(at_position, rel=1e-3)


@pytest.mark.parametrize("spec", SPECS)
def test_explanations_are_of_tokens_that_count(model, text, spec):
    d = dictionary(spec)
    report = explanations([d], model=model, text=text, latents=0, examples=2, max_pattern_length=5, tokens=4 * CONTEXT)
    held = held_out(model, text, 4)
    train = text.as_split("train").sample(model.tokenizer, CONTEXT, 4, seed=0)
    active = [
        d.encode(model.capture(t, SITE)[SITE][counted(model, t, spec)]).dense().ne(0).sum(dim=0) for t in (held, train)
    ]
    frame, rebuilt = report.tables["latents"].frame, report.tables["reconstruction"].frame.iloc[0]
    assert frame["latent"].tolist() == active[1].nonzero().flatten().tolist()
    for column, counts in zip(("active tokens", "active training tokens"), active, strict=True):
        assert frame[column].tolist() == counts[frame["latent"].to_numpy()].tolist()
    mask = counted(model, held, spec)
    rise, _ = ce_and_kl(model, held, spliced(model, held, d, mask), mask)
    assert rebuilt["reconstruction"] == pytest.approx(rise, rel=1e-3, abs=1e-5)
    clean = torch.log_softmax(model.forward(held).logits.double(), dim=-1)[:, :-1].gather(-1, held[:, 1:, None])[..., 0]
    assert rebuilt["clean"] == pytest.approx(float(-clean[mask[:, :-1]].mean()), rel=1e-4)
    chance = active[0][frame["latent"].to_numpy()].float().mean() / mask.sum()
    assert report.tables["overview"].frame["chance"][0] == pytest.approx(float(chance), rel=1e-4)


def test_a_string_that_ends_at_a_token_that_does_not_count_makes_nothing_active(model):
    """The one token of a string stands at the first position, which is the sink."""
    d, strings = dictionary("all"), torch.randint(1, 97, (30, 1), generator=torch.Generator().manual_seed(0))
    latents = d.encode(model.capture(strings, SITE)[SITE][:, -1]).indices.view(30, -1)[:, 0]
    assert last_activations(model, d, [])(strings, latents).all()
    x = model.capture(torch.randint(1, 97, (4, CONTEXT)), SITE)[SITE]
    limit = 10 * float(x.norm(dim=-1).median())
    for spec, norm in (("without-first", math.inf), ("without-outliers", limit)):
        assert not last_activations(model, d, [], TokenSelection.parse(spec), norm)(strings, latents).any()


@pytest.mark.parametrize("spec", SPECS)
def test_probes_are_fitted_and_measured_on_labelled_tokens_that_count(model, tmp_path, spec):
    """Against the labels of each text's tokens, one at a time; texts are shorter than a context, and filled up."""
    texts = [f"{'ab' * (i % 7 + 2)}, text {i}" for i in range(60)]
    labels = [[int(c in "aeiou") for c in text] for text in texts]
    path = tmp_path / "table.csv"
    pd.DataFrame({"text": texts, "label": [json.dumps(v) for v in labels]}).to_csv(path, index=False)
    report = probes([dictionary(spec)], model=model, table=str(path), min_examples=2)
    n = report.tables["overview"].caption
    _, held, _ = table_tokens(str(path), "text", ["label"], model, pool="mean", limit=4096, seed=0)
    expected = 0
    for row, length in zip(held.tokens, held.lengths.tolist(), strict=True):
        x = model.capture(row[None, :length], SITE)[SITE][0]
        norms = x.norm(dim=-1)
        typical = norms.sort().values[(length - 1) // 2]
        for position in range(length):
            expected += 3 <= position < 20 if spec.startswith("pos") else bool(norms[position] <= 10 * typical)
    assert f"n = {expected} held-out tokens" in n


def test_texts_without_a_token_that_counts_are_left_out(model, tmp_path):
    texts = [("ab" if i % 3 == 0 else "abcdef") + "xyz"[i % 3] for i in range(60)]
    path = tmp_path / "table.csv"
    pd.DataFrame({"text": texts, "label": [i % 2 for i in range(60)]}).to_csv(path, index=False)
    report = probes([dictionary("positions=3:20")], model=model, table=str(path), min_examples=2)
    assert "20 texts have no token that counts, and were left out." in report.warnings
    assert report.settings["training_sequences"] + report.settings["heldout_sequences"] == 40


@pytest.mark.parametrize("spec", SPECS)
def test_latents_are_inserted_and_shown_at_tokens_that_count(model, text, spec):
    small, large = dictionary(spec, n=12), dictionary(spec, seed=1, n=20)
    report = novelty(small, large, model=model, text=text, tokens=512, which_latents=(3, 7), cards=2, contexts=4)
    tokens = held_out(model, text, 4)
    mask = counted(model, tokens, spec)
    base = ce_and_kl(model, tokens, spliced(model, tokens, small, mask), mask)
    x = model.capture(tokens, SITE)[SITE]
    for row in report.tables["behaviour"].frame.to_dict("records"):
        new = x.clone()
        codes = large.encode(x[mask]).dense()[:, row["latent"]]
        new[mask] = small.reconstruct(x[mask]) + codes[:, None] * large.W_dec[row["latent"]]
        rise, kl = ce_and_kl(model, tokens, model.splice(tokens, SITE, new).logits, mask)
        assert row["change in CE"] == pytest.approx(rise - base[0], rel=1e-2, abs=1e-5)
        assert row["change in KL"] == pytest.approx(kl - base[1], rel=1e-2, abs=1e-5)
    train = text.as_split("train").sample(model.tokenizer, CONTEXT, 16, seed=0)
    kept = counted(model, train, spec)
    context = CardContext(model, train, 0, TokenSelection.parse(spec))
    (at,) = peaks([large], model, train, top=1, selection=context.selection)
    shown = passages(large, [3], at.sequence, at.position, at.activation, context)[3]
    (sequence, position) = int(at.sequence[3, 0]), int(at.position[3, 0])
    weights = [piece.weight or 0.0 for piece in shown[0].pieces]
    start = max(0, position - BEFORE)
    dense = large.encode(model.capture(train[sequence : sequence + 1], SITE)[SITE][0]).dense()[:, 3].abs()
    expected = (dense * kept[sequence])[start : position + 1 + AFTER] / at.activation[3, 0]
    assert weights == pytest.approx(expected.tolist(), abs=2e-3)


def test_logits_are_averaged_over_streams_of_tokens_that_count(model, text):
    tokens = held_out(model, text, 5)
    streams = leaving(model, tokens, streams=40, site=SITE, selection=TokenSelection.parse("without-outliers"))
    ends = model.capture(tokens, model.last_site)[model.last_site]
    allowed = ends[counted(model, tokens, "without-outliers=10")]
    assert all(any(torch.allclose(stream, one, atol=1e-4) for one in allowed) for stream in streams)
    everywhere = leaving(model, tokens, streams=400)
    assert not all(any(torch.allclose(stream, one, atol=1e-4) for one in allowed) for stream in everywhere)


ANALYSES = {
    "explanations": (explanations, {"latents": 2, "examples": 1, "max_pattern_length": 2, "tokens": 2 * CONTEXT}),
    "pathology": (
        pathology,
        {"contexts": 2, "draws": 1, "random_points": 0, "sweep_contexts": 0, "positions_after": 0},
    ),
    "shrinkage": (shrinkage, {"contexts": 2, "l0_levels": (1,)}),
    "downstream": (downstream, {"contexts": 2, "principal_directions": False}),
    "ablation": (ablation, {"contexts": 2}),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_two_dictionaries_of_different_tokens_are_refused_until_it_is_said_which(model, text, name):
    analysis, few = ANALYSES[name]
    given = [dictionary("without-first=1"), dictionary("all", seed=1)]
    with pytest.raises(DictlabError, match=r"d0 was trained on the tokens 'without-first=1', d1 on 'all'"):
        analysis(given, model=model, text=text, **few)
    report = analysis(given, model=model, text=text, token_selection="without-first", **few)
    assert report.settings["token_selection"] == str(TokenSelection(first=1))


@pytest.mark.parametrize("name", ANALYSES)
def test_a_selection_that_leaves_nothing_is_refused(model, text, name):
    analysis, few = ANALYSES[name]
    nothing = "without-ids=" + "/".join(map(str, range(97)))
    with pytest.raises(DictlabError, match="token selection"):
        analysis([dictionary("all")], model=model, text=text, token_selection=nothing, **few)
