"""Analyses that run the model measure the tokens that count, and replace no others: against whole forwards by hand.

The model has an attention sink at the first position. What is counted is either all but that position, or a slice.
"""

from dataclasses import replace

import pytest
import torch

from analyses import ablation, downstream, shrinkage
from analyses.model_effects.ablation import draw_places
from dictlab import DictlabError, TopK
from dictlab.data.token_selection import TokenSelection
from dictlab.dictionary import Dictionary
from dictlab.evaluation.recorded_selection import with_selection
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


ANALYSES = {
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
