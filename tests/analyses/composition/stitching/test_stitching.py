"""The stitched dictionary: its codes, its decoder in closed form, and its honesty."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.composition.novelty.novelty import novelty
from analyses.composition.stitching.budget_rules import APART, CONTEXTS, within_budget
from analyses.composition.stitching.selection_rules import by_insertion, by_search
from analyses.composition.stitching.stitching import join, sampled_for_refit, stitching
from analyses.pool import ridge_refit as refit
from analyses.pool.dictionary_chain import encode_chain
from analyses.pool.dictionary_pool import part_of, pool_of
from analyses.pool.pool_sample import encode_sample
from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.refitted_subsets import RefittedSubsets
from analyses.pool.refitted_updates import penalties_of
from analyses.pool.ridge_refit import refit_bias, refit_decoder
from dictlab import DictlabError, ReLU, TopK, load, save
from dictlab.data import activations
from dictlab.dictionary.activation_functions import AbsTopK, BatchTopK, GroupMax
from dictlab.dictionary.normalisation import Centred, ConstantNorm, LayerNorm, NoNormalisation, Scale
from dictlab.dictionary.union import Union
from dictlab.evaluation.evaluate import evaluate
from dictlab.formats import conversion
from dictlab.numerics.statistics import interval
from tests.analyses.composition.novelty.test_novelty import planted
from tests.dictionary.test_activation_functions import gated, jumprelu
from tests.planted import SITE, random_dictionary, tiny_model

X = 2 * torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) + 1
CHOSEN = torch.arange(30) % 3 == 0


@pytest.mark.parametrize("first", [ReLU(), TopK(4), AbsTopK(3), jumprelu(20, 1), gated(20, 1)])
@pytest.mark.parametrize("second", [ReLU(), TopK(6), GroupMax(5), BatchTopK(2), jumprelu(30, 2), gated(30, 2)])
@pytest.mark.parametrize(
    "normalisation", [None, Scale(0.3), LayerNorm(), ConstantNorm(), Centred(), Centred(Scale(2.0))]
)
def test_the_joined_codes_are_smalls_and_beside_them_larges_at_the_chosen_latents(first, second, normalisation):
    small = random_dictionary(20, 8, seed=1, activation=first, normalisation=normalisation)
    large = random_dictionary(30, 8, seed=2, activation=second, normalisation=normalisation)
    joined = join(small, large, CHOSEN)
    f, g = small.folded().encode(X).dense(), large.folded().encode(X).dense()
    found = joined.encode(X).dense()
    emits = joined.alive
    torch.testing.assert_close(found[:, emits], torch.cat([f, g[:, CHOSEN]], dim=1), atol=1e-5, rtol=1e-5)
    assert not found[:, ~emits].any()
    scale = torch.as_tensor(small.normalisation(X)[1].scale)
    in_units = isinstance(getattr(normalisation, "then", normalisation), Scale)
    added = (g[:, CHOSEN] @ large.W_dec[CHOSEN]) * (1.0 if in_units else scale)
    torch.testing.assert_close(joined.reconstruct(X), small.reconstruct(X) + added, atol=1e-4, rtol=1e-4)


def test_two_relu_dictionaries_join_to_a_relu_dictionary_without_rivals():
    joined = join(*(random_dictionary(30, 8, seed=s, activation=ReLU()) for s in (1, 2)), CHOSEN)
    assert joined.activation == ReLU() and joined.n_latents == 40


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (jumprelu(30, 1), jumprelu(30, 2), "jumprelu"),
        (ReLU(), jumprelu(30, 2), "jumprelu"),
        (gated(30, 1), gated(30, 2), "gated"),
        (gated(30, 1), ReLU(), "union"),
    ],
)
def test_dictionaries_of_one_rule_join_to_one_of_that_rule_without_rivals(first, second, kind):
    """So that another library can express the result."""
    made = [random_dictionary(30, 8, seed=s, activation=own) for s, own in ((1, first), (2, second))]
    joined = join(*made, CHOSEN)
    assert joined.activation.kind == kind and joined.n_latents == 40
    expected = torch.cat([made[0].encode(X).dense(), made[1].encode(X).dense()[:, CHOSEN]], dim=1)
    torch.testing.assert_close(joined.encode(X).dense(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("first", [ReLU(), TopK(4), jumprelu(20, 1), gated(20, 1)])
@pytest.mark.parametrize("second", [TopK(6), jumprelu(30, 2), gated(30, 2)])
@pytest.mark.parametrize("normalisations", [(Centred(), None), (None, Centred()), (Centred(Scale(0.5)), Scale(3.0))])
def test_a_centred_dictionary_and_a_plain_one_are_joined_with_the_codes_of_both(first, second, normalisations):
    """What is decoded is both's own directions; the mean that centring gives back is not among them."""
    small = random_dictionary(20, 8, seed=1, activation=first, normalisation=normalisations[0])
    large = random_dictionary(30, 8, seed=2, activation=second, normalisation=normalisations[1])
    joined = join(small, large, CHOSEN)
    assert joined.normalisation == NoNormalisation()
    f, g = small.in_input_units().encode(X).dense(), large.in_input_units().encode(X).dense()
    found = joined.encode(X).dense()
    torch.testing.assert_close(found[:, joined.alive], torch.cat([f, g[:, CHOSEN]], dim=1), atol=1e-5, rtol=1e-5)
    b_out = small.in_input_units().b_out
    expected = f @ small.W_dec + g[:, CHOSEN] @ large.W_dec[CHOSEN] + b_out
    torch.testing.assert_close(joined.reconstruct(X), expected, atol=1e-4, rtol=1e-4)


def test_rivals_that_were_not_taken_still_compete():
    """Without them a TopK latent would fire where it never did."""
    small, large = (random_dictionary(30, 8, seed=s) for s in (1, 2))
    joined = join(small, large, CHOSEN)
    assert isinstance(joined.activation, Union) and joined.n_latents == 60
    assert (joined.encode(X).active_counts()[30:] == large.encode(X).active_counts() * CHOSEN).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize(
    "kinds",
    [
        ((1, TopK(3)), (2, TopK(4)), (3, ReLU())),
        ((1, jumprelu(30, 1)), (2, TopK(4)), (3, gated(30, 3))),
        ((1, jumprelu(30, 1)), (2, ReLU()), (3, gated(30, 3))),
        ((1, jumprelu(30, 1)), (2, jumprelu(30, 2)), (3, ReLU())),
    ],
)
def test_a_stitched_dictionary_can_be_stitched_again_and_saved(order, kinds, tmp_path):
    made = [random_dictionary(30, 8, seed=s, activation=k) for s, k in kinds]
    a, b, c = (made[i] for i in order)
    expected = [d.folded().encode(X).dense() for d in (a, b, c)]
    for twice, f in (
        (join(join(a, b, CHOSEN), c, CHOSEN), [expected[0], expected[1][:, CHOSEN], expected[2][:, CHOSEN]]),
        (join(c, pair := join(a, b, CHOSEN), pair.alive), [expected[2], expected[0], expected[1][:, CHOSEN]]),
    ):
        found = load(save(twice, tmp_path / "twice.safetensors")).encode(X).dense()[:, twice.alive]
        torch.testing.assert_close(found, torch.cat(f, dim=1), atol=1e-5, rtol=1e-5)


def test_dictionaries_that_normalise_differently_are_not_stitched():
    with pytest.raises(DictlabError, match="layer_norm"):
        join(random_dictionary(name="a"), random_dictionary(name="b", normalisation=LayerNorm()), torch.ones(24).bool())
    with pytest.raises(DictlabError, match=r"1e-05.*0\.1"):
        join(*(random_dictionary(normalisation=LayerNorm(eps)) for eps in (1e-5, 0.1)), torch.ones(24).bool())


@pytest.mark.parametrize("normalisation", [None, Scale(0.3), LayerNorm()])
def test_the_refitted_decoder_is_the_least_squares_solution(normalisation):
    """Against NumPy's lstsq on the full design matrix, the ridge as good as none; 1e-3 on reconstructions of order 3."""
    dictionary = random_dictionary(12, 8, normalisation=normalisation)
    refit = refit_decoder(dictionary, X.split(70), ridge=1e-9)
    undo = dictionary.normalisation(X)[1]
    scale = torch.as_tensor(undo.scale).expand(len(X), 1)
    design = torch.cat([dictionary.encode(X).dense(), torch.ones(len(X), 1)], dim=1) * scale
    solution = np.linalg.lstsq(design.double().numpy(), (X - undo.shift).double().numpy(), rcond=None)[0]
    expected = design.double().numpy() @ solution + torch.as_tensor(undo.shift).double().numpy()
    np.testing.assert_allclose(refit.reconstruct(X).numpy(), expected, atol=1e-3)
    assert torch.equal(refit.W_enc, dictionary.W_enc)


def test_a_strong_ridge_leaves_the_directions_as_they_were():
    dictionary = random_dictionary(12, 8)
    refit = refit_decoder(dictionary, [X], ridge=1e9)
    torch.testing.assert_close(refit.W_dec, dictionary.W_dec, atol=1e-5, rtol=1e-5)


def test_the_ridge_is_the_one_that_explains_what_was_not_fitted():
    """A right decoder and little noisy data ask for a strong pull, a wrong one and plenty of data for a weak one."""
    generator = torch.Generator().manual_seed(0)
    wide = random_dictionary(60, 8, activation=TopK(20))
    right = refit_decoder(wide, [torch.randn(20_000, 8, generator=generator)], ridge=1e-6)
    assert refit_decoder(right, [torch.randn(100, 8, generator=generator)]).metadata.training["ridge"] >= 1.0
    narrow = random_dictionary(6, 8, activation=ReLU())
    wrong = replace(narrow, W_dec=2 * narrow.W_dec)
    assert refit_decoder(wrong, [torch.randn(5000, 8, generator=generator)]).metadata.training["ridge"] == 1e-3


def test_latents_that_never_fire_keep_their_directions():
    dictionary = random_dictionary(12, 8)
    dictionary = replace(dictionary, b_enc=torch.where(torch.arange(12) == 3, -1000.0, dictionary.b_enc))
    refit = refit_decoder(dictionary, [X])
    torch.testing.assert_close(refit.W_dec[3], dictionary.W_dec[3])
    silent = replace(dictionary, b_enc=torch.full((12,), -1000.0), activation=ReLU())
    still = refit_decoder(silent, [X])
    torch.testing.assert_close(still.W_dec, dictionary.W_dec)
    torch.testing.assert_close(still.b_out, X.mean(dim=0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalisation", [None, Scale(0.3), LayerNorm()])
def test_the_refitted_bias_cannot_be_bettered(normalisation):
    dictionary = random_dictionary(12, 8, normalisation=normalisation)
    refit = refit_bias(dictionary, X.split(70))

    def error(change: torch.Tensor) -> float:
        return float((X - replace(refit, b_out=refit.b_out + change).reconstruct(X)).square().sum())

    best = error(torch.zeros(8))
    assert best < float((X - dictionary.reconstruct(X)).square().sum())
    assert all(error(sign * 0.01 * torch.eye(8)[i]) > best for i in range(8) for sign in (1, -1))


def test_inserting_the_planted_novel_latents_makes_small_as_good_as_large():
    small, large, x = planted()
    joined = join(small, large, torch.arange(32) >= 20)
    flat = x.flatten(0, 1)
    torch.testing.assert_close(joined.reconstruct(flat), large.reconstruct(flat), atol=1e-4, rtol=1e-4)


def test_too_many_latents_for_the_normal_equations_are_refused(monkeypatch):
    monkeypatch.setattr(refit, "LARGEST_REFIT", 10)
    with pytest.raises(DictlabError, match="refit='bias'"):
        refit_decoder(random_dictionary(12, 8), [X])


# The analysis


def test_a_decoder_too_large_to_be_refitted_is_refused_after_the_first_batch(monkeypatch):
    monkeypatch.setattr(refit, "LARGEST_REFIT", 30)
    small, large = parents()
    drawn = []

    def batches():
        for number in range(3):
            drawn.append(number)
            yield torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(number))

    with pytest.raises(DictlabError, match=r"large: \d+ of its 40 latents are active on 64 tokens.*at most 30.*'bias'"):
        sampled_for_refit(batches(), [small, large])
    assert drawn == [0]
    assert len(sampled_for_refit(batches(), [small])) == 3


def test_what_only_the_whole_sample_shows_to_be_too_large_is_refused_before_the_search(monkeypatch, text):
    monkeypatch.setattr(refit, "LARGEST_REFIT", 30)
    monkeypatch.setattr(refit, "PROBED_TOKENS", 1)
    monkeypatch.setattr(
        "analyses.composition.stitching.latent_selection.by_insertion", lambda *_: pytest.fail("too late")
    )
    with pytest.raises(DictlabError, match=r"large: \d+ latents are active on [\d,]+ tokens.*refit='none'"):
        run(text)


def parents():
    """Random dictionaries: whatever is inserted unrefitted only does harm."""
    return (
        random_dictionary(n, 16, seed=n, name=name, activation=TopK(4)) for n, name in ((20, "small"), (40, "large"))
    )


def run(text, **options):
    options = {"select": "effect"} | options
    return stitching(*parents(), model=tiny_model(), text=text, tokens=2000, contexts=20, **options)


def test_the_report_measures_both_parents_both_rules_the_controls_and_the_result(text):
    report = run(text)
    quality = report.tables["quality"].frame.set_index("dictionary")
    assert list(quality.index) == [
        "small",
        "large",
        "inserted by effect",
        "inserted by cosine",
        "small, refitted",
        "large, refitted",
        "by cosine, refitted",
        "stitched",
    ]
    assert quality["MSE"]["stitched"] < quality["MSE"]["small"]
    stitched = report.dictionaries["stitched"]
    assert stitched.metadata.sources == ("small", "large") and stitched.metadata.site == SITE
    assert stitched.metadata.metrics["mse"] == quality["MSE"]["stitched"]
    latents = report.tables["latents"].frame
    novel = latents["latent"][latents["class"] == "novel"]
    assert quality["latents"]["stitched"] == 20 + len(novel)
    taken = stitched.alive.nonzero().squeeze(1)[20:] - 20
    assert set(taken.tolist()) == set(novel)


@pytest.mark.parametrize("refit", ["decoder", "bias", "none"])
def test_the_first_sentence_holds_the_result_against_the_best_parent_at_its_l0(text, refit):
    """Against parents of whole k below and above, refitted alone, with a line in both logarithms between them."""
    report, model = run(text, refit=refit), tiny_model()
    sample = list(activations.sample_site(model, text.as_split("train"), SITE, context=32, tokens=2000))
    again = {"decoder": refit_decoder, "bias": refit_bias, "none": lambda dictionary, _: dictionary}[refit]
    alone = [again(replace(d, activation=TopK(k)), sample) for d in parents() for k in (3, 4, 5)]
    stitched, *measured = evaluate(
        [report.dictionaries["stitched"], *alone], model, text.as_split("heldout"), contexts=20
    )
    percents, names = [], ("small", "large")
    for curve in (measured[:3], measured[3:]):
        x, y = (np.log([[d.value(key), *d.draws(key)] for d in curve]) for key in ("l0", "mse"))
        at = np.log([stitched.value("l0"), *stitched.draws("l0")])
        y = np.minimum.accumulate(y, axis=0)  # a sparser parent that is better is better at this L0 too
        expected = np.exp(y[1] + ((at - x[1]) / (x[2] - x[1])).clip(0, 1) * (y[2] - y[1]))
        percents.append(100 * (np.array([stitched.value("mse"), *stitched.draws("mse")]) / expected - 1))
    best = int(np.argmax([series[0] for series in percents]))
    value, (low, high) = percents[best][0], interval(percents[best][1:])
    assert 4 <= stitched.value("l0") < 4.9
    verdict = "WORSE than" if value > 0 else "better than"
    first = report.summary.partition(". With ")[0]
    assert first.startswith(f"At its L0 of {stitched.value('l0'):.1f} the stitched dictionary is {verdict} the best")
    assert f"the best parent, {names[best]}," in first and ("refitted" in first) == (refit != "none")
    shown = re.search(r"MSE (\S+) % \[(\S+), (\S+)\]", first)
    assert [float(number) for number in shown.groups()] == pytest.approx([value, low, high], abs=0.11) and "KL" in first
    assert ("within the noise" in first) == (low <= 0 <= high)


def test_what_a_stitching_returns_goes_into_the_next_analysis_from_any_folder(tmp_path, monkeypatch):
    """The model lies beside the parents' files, which the stitched dictionary itself has none of."""
    checkpoints = Path(__file__).parents[4] / "checkpoints"
    small, large, other = (checkpoints / f"local-topk16-{name}.safetensors" for name in ("256-s0", "512-s0", "256-s1"))
    monkeypatch.chdir(tmp_path)
    stitched = stitching(small, large, tokens=512, contexts=2, refit="bias", select="effect").dictionaries["stitched"]
    assert stitched.path is None
    report = novelty(other, stitched, tokens=512, cards=0)
    assert len(report.tables["latents"].frame) == stitched.n_latents and report.inputs[1].name == "stitched"


def test_a_result_that_is_worse_than_small_says_so(text):
    report = run(text, select="cosine", threshold=1.1, refit="none")
    quality = report.tables["quality"].frame.set_index("dictionary")["MSE"]
    assert quality["stitched"] == quality["inserted by cosine"] > quality["small"]
    assert any("WORSE than small" in warning for warning in report.warnings)
    assert not any("WORSE than small" in warning for warning in run(text).warnings)


def test_the_same_seed_gives_the_same_tables_and_dictionary(text):
    one, other = run(text), run(text)
    for name, table in one.tables.items():
        pd.testing.assert_frame_equal(table.frame, other.tables[name].frame, check_exact=True)
    a, b = (r.dictionaries["stitched"] for r in (one, other))
    assert all(torch.equal(t, u) for (_, t), (_, u) in zip(a._weights(), b._weights(), strict=True))


def test_a_parent_may_be_a_stitched_dictionary_itself(text):
    small, large = parents()
    options = {"model": tiny_model(), "text": text, "tokens": 2000, "contexts": 20, "select": "effect"}
    first = stitching(small, large, **options).dictionaries["stitched"]
    quality = stitching(first, large, **options).tables["quality"].frame
    error = quality.set_index("dictionary")["MSE"]
    assert error["stitched (parent)"] == pytest.approx(first.metadata.metrics["mse"])
    assert error["stitched (parent)"] != error["stitched"]


def test_nothing_to_insert_is_small_itself(text, tmp_path):
    small = random_dictionary(20, 16, seed=1, name="small")
    large = random_dictionary(30, 16, seed=2, name="large", activation=ReLU())
    options = {"select": "cosine", "threshold": -1.0, "refit": "none"}
    report = stitching(small, large, model=tiny_model(), text=text, tokens=2000, contexts=20, **options)
    report.save(tmp_path / "out")
    stitched, x = load(tmp_path / "out" / "stitched.safetensors"), torch.randn(30, 16)
    torch.testing.assert_close(stitched.reconstruct(x), small.reconstruct(x), atol=1e-5, rtol=1e-5)


def test_the_stitched_dictionary_is_a_file_like_any_other(text, tmp_path):
    report = run(text)
    report.save(tmp_path / "out")
    loaded = load(tmp_path / "out" / "stitched.safetensors")
    x = torch.randn(50, 16)
    assert torch.equal(loaded.reconstruct(x), report.dictionaries["stitched"].reconstruct(x))


def test_dictionaries_of_two_libraries_are_stitched_as_if_they_were_of_one(text, tmp_path):
    """Written as SAELens and as sparsify write them: another bias, another layout, another name of the site."""
    small, large = parents()
    theirs = (
        conversion.write(small, tmp_path / "saelens", "saelens"),
        conversion.write(large, tmp_path / "h.0", "sparsify"),
    )
    options = {"model": tiny_model(), "text": text, "tokens": 2000, "contexts": 20, "select": "effect"}
    ours, mixed = (stitching(*pair, **options).tables["quality"].frame for pair in ((small, large), theirs))
    assert ours["latents"].tolist() == mixed["latents"].tolist()
    for metric in ("L0", "MSE", "explained variance", "CE increase"):
        np.testing.assert_allclose(ours[metric], mixed[metric], rtol=1e-3, err_msg=metric)  # float32, folded biases


def test_several_larger_dictionaries_are_inserted_one_after_the_other(text):
    """Into what has been stitched so far, which is what stitching the result with the next one starts from."""
    small, large = parents()
    larger = random_dictionary(30, 16, seed=5, name="larger", activation=ReLU())
    options = {"model": tiny_model(), "text": text, "tokens": 2000, "contexts": 20, "refit": "none", "select": "effect"}
    at_once = stitching(small, [large, larger], **options)
    first = stitching(small, large, **options).dictionaries["stitched"]
    then = stitching(replace(first, name="first"), larger, **options)
    a, b = (r.dictionaries["stitched"] for r in (at_once, then))
    x = torch.randn(50, 16)
    torch.testing.assert_close(a.reconstruct(x), b.reconstruct(x), atol=1e-5, rtol=1e-5)
    assert a.metadata.sources == ("small", "large", "larger")
    latents = at_once.tables["latents"].frame
    assert latents.groupby("dictionary").size().to_dict() == {"large": 40, "larger": 30}
    assert {"effects", "effects_2"} < at_once.plots.keys()


def test_a_cosine_rule_that_harms_is_warned_of(text):
    warned = [any("cosine rule inserts" in w for w in run(text, select=rule).warnings) for rule in ("effect", "cosine")]
    assert warned == [False, True]


def test_parts_are_refitted_as_the_dictionaries_that_they_are(monkeypatch):
    """Out of the equations of the whole pool, and, where that is too large, of their own."""
    small, large = (random_dictionary(n, 8, seed=n, activation=k) for n, k in ((20, TopK(4)), (30, ReLU())))
    pool = pool_of([small, large])
    chosen = np.arange(50) % 3 != 0
    part = part_of(pool, torch.from_numpy(chosen))
    expected = {"bias": refit_bias(part, [X]), "decoder": refit_decoder(part, [X])}
    for limit in (8192, 40):
        monkeypatch.setattr(refit, "LARGEST_REFIT", limit)
        subsets = RefittedSubsets(pool, encode_sample(pool, [X]))
        for kind, other in expected.items():
            torch.testing.assert_close(
                subsets.subset(chosen, kind, "part").reconstruct(X), other.reconstruct(X), atol=1e-3, rtol=1e-3
            )
        assert torch.equal(subsets.subset(chosen, "none", "part").reconstruct(X), part.reconstruct(X))


@pytest.mark.parametrize(
    ("objectives", "seeds"), [(("local", "e2e"), (0, 0)), (("e2e", "local"), (0, 0)), (("local", "local"), (0, 1))]
)
def test_dictionaries_of_two_objectives_or_seeds_are_stitched_and_measured_in_the_model(text, objectives, seeds):
    small, large = (
        replace(d, metadata=replace(d.metadata, objective=o, seed=s))
        for d, o, s in zip(parents(), objectives, seeds, strict=True)
    )
    report = stitching(small, large, model=tiny_model(), text=text, tokens=2000, contexts=20)
    quality = report.tables["quality"].frame.set_index("dictionary")
    assert (quality["KL"] > 0).all() and np.isfinite(quality["CE increase"]).all()
    stitched = report.dictionaries["stitched"]
    assert stitched.metadata.objective == "stitched" and stitched.metadata.seed is None
    assert {"KL", "CE increase"} <= set(report.tables["differences"].frame["metric"])


def test_a_search_keeps_to_its_budgets_and_is_no_worse_than_large_where_it_was_made(text):
    """With the best bias, on the text that was searched on; by default at the L0 of LARGE."""
    options = {"model": tiny_model(), "text": text, "tokens": 2000, "contexts": 20, "refit": "bias"}
    report = stitching(*parents(), select="optimal", **options)
    stitched, rates = report.dictionaries["stitched"], report.dictionaries["stitched"].firing_rate
    assert float(rates.sum()) <= 4 + 1e-4 and "found by search" in report.summary
    small = stitching(*parents(), select="optimal", max_latents=7, max_l0=2.5, **options).dictionaries["stitched"]
    assert small.n_emitting <= 7 and float(small.firing_rate.sum()) <= 2.5 + 1e-4
    sample = activations.sample_site(tiny_model(), text.as_split("train"), SITE, context=32, tokens=2000)
    x = torch.cat([batch.flatten(0, 1) for batch in sample])
    large = refit_bias(list(parents())[1], [x])
    error = [float((x - d.reconstruct(x)).square().mean()) for d in (stitched, large)]
    assert error[0] <= error[1] * (1 + 1e-5)


def test_a_search_for_a_decoder_that_is_refitted_is_no_worse_refitted_than_any_of_the_dictionaries():
    """Against dense least squares with the pull; every start fits the budget."""
    small, large = (random_dictionary(n, 8, seed=n) for n in (20, 40))
    chain = encode_chain([small, large], [X.view(3, 100, 8)])
    seen = chain.sample
    root = np.sqrt(penalties_of(QuadraticError.from_sample(seen, chain.pool.W_dec), 0.01))

    def error(chosen):
        design = np.hstack([seen.codes.toarray()[:, chosen], np.ones((seen.n_tokens, 1))])
        before = chain.pool.W_dec.numpy()[chosen]
        rows = np.hstack([np.diag(root[chosen]), np.zeros((len(before), 1))])
        both = np.vstack([design, rows]), np.vstack([seen.target, root[chosen, None] * before])
        return np.square(both[0] @ np.linalg.lstsq(*both, rcond=None)[0] - both[1]).sum()

    budget = 1.01 * max(small.encode(X).l0().float().mean(), large.encode(X).l0().float().mean())
    found = by_search(chain, None, float(budget), "decoder")
    first = np.arange(chain.pool.n_latents) < small.n_latents
    assert error(found.chosen) <= min(error(first), error(~first)) * (1 + 1e-6)
    assert seen.firing_rate[found.chosen].sum() <= budget


def test_budgets_without_a_search_are_refused(text):
    with pytest.raises(DictlabError, match="select='best'"):
        run(text, max_l0=3.0)
    with pytest.raises(DictlabError, match=r"no latent fits into latents None and L0 1e-06"):
        run(text, select="best", max_l0=1e-6)


@pytest.mark.parametrize("budget", [{}, {"max_latents": 15, "max_l0": 3.0}])
def test_the_best_rule_within_a_budget_is_the_best_of_all_on_tokens_that_are_not_reported_on(text, budget):
    """Each candidate made again by itself, and scored again on the sequences that decided."""
    options = {"model": tiny_model(), "text": text, "tokens": 2000, "contexts": 20}
    report = stitching(*parents(), select="best", competition="own", **options, **budget)
    stitched, how = report.dictionaries["stitched"], report.dictionaries["stitched"].metadata.training
    assert stitched.n_emitting <= budget.get("max_latents", 60)
    assert float(stitched.firing_rate.sum()) <= budget.get("max_l0", 4.0) + 1e-4
    sample = list(activations.sample_site(tiny_model(), text.as_split("train"), SITE, context=32, tokens=2000))
    chain = encode_chain(list(parents()), sample)
    limits = {"latents": budget.get("max_latents"), "l0": budget.get("max_l0")}
    inserted = {choice.rule: choice for choice in by_insertion(chain, 0.7)}
    choices, _ = within_budget(chain, inserted, threshold=0.7, order="cosine", seed=0, refit="decoder", **limits)
    assert set(choices) == {"effect", "cosine", "optimal"} | (set() if budget else {"path"})  # longer than the budget
    made = [refit_decoder(part_of(chain.pool, torch.from_numpy(c.chosen), name=n), sample) for n, c in choices.items()]
    measured = evaluate(made, tiny_model(), text.as_split("train"), contexts=CONTEXTS, seed=APART)
    scores = {e.name: (e.value("mse") * e.value("kl")) ** 0.5 for e in measured}
    assert how["select"] == min(scores, key=scores.get)
    quality = report.tables["quality"].frame
    assert (quality["best"] == "<--").sum() == 1


@pytest.mark.parametrize("competition", ["topk", "jumprelu"])
def test_a_result_under_one_competition_is_an_ordinary_dictionary_whose_steps_are_measured(text, competition, tmp_path):
    report = run(text, competition=competition)
    stitched = report.dictionaries["stitched"]
    assert stitched.activation.kind == competition == stitched.metadata.training["competition"]
    assert stitched.n_latents == stitched.n_emitting and f"all under one {competition}" in report.summary
    error = report.tables["quality"].frame.set_index("dictionary")["MSE"]
    steps = [f"one {competition}{step}" for step in ("", ", refitted")]
    assert error[steps[1]] < error[steps[0]] and "each by its own rule, refitted" in error.index
    curves = report.tables["sparsity_curves"].frame["dictionary"]
    assert curves.str.contains("under one jumprelu, rescaled, refitted").any() == (competition == "jumprelu")
    written = conversion.write(stitched, tmp_path / "saelens", "saelens")
    x = torch.randn(50, 16)
    torch.testing.assert_close(load(written).reconstruct(x), stitched.reconstruct(x), atol=1e-3, rtol=1e-3)
