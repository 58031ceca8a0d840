"""The rule against the obvious loops, the frontier against closed forms, fine-tuning, and the report."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from analyses.composition.frankenstein.append_rule import appended
from analyses.composition.frankenstein.frankenstein import frankenstein
from analyses.composition.trained_frontier import frontier_at
from analyses.pool.dictionary_pool import pool_of
from analyses.pool.gradient_refit import finetuned
from analyses.pool.pool_sample import encode_sample
from analyses.pool.quadratic_error import QuadraticError
from analyses.pool.search_starts import best_of_starts
from dictlab import DictlabError, ReLU, TopK, load
from dictlab.dictionary.unit_directions import with_unit_directions
from tests.planted import random_dictionary, sparse_data, tiny_model

# The rule


def directions(*widths: int, d: int = 12) -> list[torch.Tensor]:
    return [torch.randn(n, d, generator=torch.Generator().manual_seed(n)) for n in widths]


def obvious(rows, rates, sequence, threshold, duplicates):
    """Latent by latent."""
    kept = []
    for place, donor in enumerate(sequence):
        unit, before = normalize(rows[donor], dim=1), list(kept)
        for latent in torch.argsort(rates[donor], descending=True, stable=True).tolist():
            if rates[donor][latent] == 0 or not rows[donor][latent].any():
                continue
            cosines = [(float(unit[latent] @ normalize(rows[a][b], dim=0)), a) for a, b in kept]
            near = any(c > threshold for c, a in cosines if a != donor)
            twice = any(c > duplicates for c, a in cosines if a == donor)
            if place == 0 or not (near or twice):
                kept.append((donor, latent))
        assert before == kept[: len(before)]
    return sorted(kept)


@pytest.mark.parametrize("block", [3, 1024])
@pytest.mark.parametrize(("widths", "sequence"), [((20, 14, 40), (1, 0, 2)), ((40, 20, 14), (2, 1, 0))])
def test_the_rule_is_that_of_the_obvious_loop(widths, sequence, block, monkeypatch):
    monkeypatch.setattr("analyses.composition.frankenstein.append_rule.BLOCK", block)
    rows = directions(*widths)
    rows[2][7] = 2 * rows[2][3] + 0.05  # duplicates inside one
    rows[2][9], rows[1][2] = 0.0, 0.0  # no direction
    rates = [torch.rand(len(r), generator=torch.Generator().manual_seed(len(r))) for r in rows]
    rates[0][4] = 0.0
    found = appended(rows, rates, threshold=0.5, duplicates=0.6)
    starts = np.cumsum([0, *widths[:-1]])
    expected = obvious(rows, rates, sequence, 0.5, 0.6)
    assert found.order == sequence
    assert np.flatnonzero(found.chosen).tolist() == sorted(starts[a] + b for a, b in expected)
    assert sum(found.near) + sum(found.twice) + int(found.chosen.sum()) == 74 - 3


def test_of_a_dictionary_given_again_nothing_is_taken_and_of_a_rotated_one_almost_all():
    (rows,) = directions(30, d=200)
    rates = [torch.ones(30)] * 2
    assert appended([rows, rows[torch.randperm(30)]], rates).chosen[30:].sum() == 0
    rotation = torch.linalg.qr(torch.randn(200, 200, generator=torch.Generator().manual_seed(1))).Q
    assert appended([rows, rows @ rotation], rates).chosen[30:].sum() >= 28


# The frontier


def test_the_frontier_is_a_line_in_both_logarithms_through_what_nothing_beats():
    cost = np.array([[10.0, 40.0, 20.0, 160.0]])
    error = np.array([[8.0, 2.0, 9.0, 0.5]])  # 20 is beaten by 10
    for at, expected in ((10.0, 8.0), (20.0, 4.0), (40.0, 2.0), (80.0, 1.0), (160.0, 0.5), (1000.0, 0.5)):
        assert frontier_at(cost, error, np.array([at]))[0] == pytest.approx(expected)
    assert np.isnan(frontier_at(cost, error, np.array([5.0]))[0])
    assert np.isnan(frontier_at(cost, -error, np.array([20.0]))[0])
    assert frontier_at(cost[:, :1], error[:, :1], np.array([20.0]))[0] == pytest.approx(8.0)


# Fine-tuning


def test_finetuning_never_makes_the_part_that_is_not_fitted_worse_and_repairs_a_wrong_dictionary():
    x, true = sparse_data(4000, 16, 16, 2)
    right = replace(
        random_dictionary(16, 16, activation=ReLU()),
        W_enc=true.T.clone(), W_dec=true, b_pre=torch.full((16,), 0.7), b_out=torch.full((16,), 0.7), b_enc=torch.full((16,), -0.02),
    )  # fmt: skip
    wrong = replace(right, b_out=right.b_out + 0.5, b_enc=right.b_enc + 0.4)
    for parameters, factor in (("biases", 0.4), ("all", 0.4)):
        tuned = finetuned(wrong, [x], parameters, steps=300)
        assert tuned.after < factor * tuned.before and tuned.step > 0
        changed = {
            name
            for name in ("W_enc", "W_dec")
            if not torch.equal(getattr(tuned.dictionary, name), getattr(with_unit_directions(wrong), name))
        }
        assert changed == (set() if parameters == "biases" else {"W_enc", "W_dec"})
        again = finetuned(wrong, [x], parameters, steps=300)
        assert torch.equal(again.dictionary.b_enc, tuned.dictionary.b_enc)
    rest = x[len(x) - len(x) // 5 :]
    assert float((rest - tuned.dictionary.reconstruct(rest)).square().mean()) == pytest.approx(tuned.after, rel=1e-4)
    spoilt = finetuned(right, [x], "all", steps=20, rate=10.0)
    assert spoilt.after <= spoilt.before
    torch.testing.assert_close(finetuned(right, [x], "all", steps=0).dictionary.reconstruct(x), right.reconstruct(x))


# The report


def donors(kind=None, widths=(12, 20, 30)):
    return [random_dictionary(n, 16, seed=n, name=f"d{n}", activation=kind or TopK(4)) for n in widths]


def run(text, dictionaries=None, **options):
    given = {"model": tiny_model(), "text": text, "tokens": 2000, "contexts": 10} | options
    return frankenstein(dictionaries or donors(), **given)


@pytest.mark.parametrize("kind", [TopK(4), ReLU()])
def test_the_report_compares_at_equal_l0_and_size_and_writes_what_it_measured(text, tmp_path, kind):
    report = run(text, donors(kind), gradient_refits=kind == ReLU(), gradient_steps=5, max_latents=15, max_l0=6.0)
    quality = report.tables["quality"].frame.set_index("dictionary")
    choices = ("cosine", "equal size", "equal L0", "best donor's L0", "as asked", "best donor")
    refits = ("none", "bias", "decoder", *(("biases by gradient", "all by gradient") if kind == ReLU() else ()))
    assert set(quality.index) == {"d12", "d20", "d30", *(f"{c}, {r}" for c in choices for r in refits)}
    size = quality.loc["cosine, none", "latents"]
    assert quality.loc["equal size, none", "latents"] <= size and quality.loc["as asked, bias", "latents"] <= 15
    assert report.tables["rule"].frame["taken"].sum() == size
    for name in ("at_equal_l0", "at_equal_size"):
        frame = report.tables[name].frame
        known = frame[frame["ratio"].notna()]
        np.testing.assert_allclose(known["value"] / known["frontier"], known["ratio"])
        assert len(known) and (known["low"] <= known["ratio"] * 1.05).all()
    report.save(tmp_path)
    back = load(tmp_path / "frankenstein.safetensors")
    assert back.metadata.training["choice"] == "cosine" and back.metadata.sources == ("d12", "d20", "d30")
    assert back.metadata.metrics["mse"] == pytest.approx(quality.loc["cosine, decoder", "MSE"])
    assert (tmp_path / "l0.png").exists() and (tmp_path / "latents.png").exists()


def test_what_is_chosen_by_error_is_no_worse_on_the_sample_than_what_the_rule_chose():
    """As many latents at most, without a refit, with the best bias, on the tokens they were chosen on."""
    made = donors(ReLU())
    x = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    pool = pool_of(made)
    seen = encode_sample(pool, [x])
    rule = appended([d.W_dec for d in made], list(torch.from_numpy(seen.firing_rate).split([12, 20, 30])))
    whole = QuadraticError.from_sample(seen, pool.W_dec)
    found = best_of_starts(whole, [rule.chosen], latents=int(rule.chosen.sum()))
    assert found.error <= whole.error(rule.chosen) + 1e-9


def test_compact_dictionaries_carry_no_rivals_and_the_difference_is_reported(text):
    report = run(text, compact="codes", written_refit="bias")
    made = report.dictionaries["frankenstein"]
    assert made.activation.kind == "jumprelu" and made.n_latents == made.n_emitting
    table = report.tables["compact"].frame.set_index("dictionary")
    row = table.loc["cosine, bias, compact"]
    assert row["encoders"] < row["encoders before"] and 0 < row["firings"] <= 1
    assert run(text).dictionaries["frankenstein"].activation.kind == "union"


def test_baselines_are_part_of_the_frontier_and_give_no_latents(text):
    other = random_dictionary(40, 16, seed=9, name="other", activation=TopK(9))
    report = run(text, baselines=[other])
    assert report.dictionaries["frankenstein"].metadata.sources == ("d12", "d20", "d30")
    assert "other" in set(report.tables["quality"].frame["dictionary"])
    assert not any("level" in where for where in report.tables["at_equal_l0"].frame["frontier there"][:3])


def test_bad_input_is_answered_in_a_sentence(text):
    with pytest.raises(DictlabError, match="2 or more"):
        run(text, donors()[:1])
    with pytest.raises(DictlabError, match="give it once"):
        run(text, baselines=donors()[:1])
    elsewhere = replace(donors()[1], metadata=replace(donors()[1].metadata, site="blocks.2.hook_resid_pre"))
    with pytest.raises(DictlabError, match="site"):
        run(text, [donors()[0], elsewhere])
    with pytest.raises(DictlabError, match="expected one of"):
        run(text, written_refit="some")
    with pytest.raises(DictlabError, match="no latent fits"):
        run(text, max_latents=0)
    dead = [replace(d, b_enc=torch.full_like(d.b_enc, -1e6), activation=ReLU()) for d in donors()]
    with pytest.raises(DictlabError, match="no latent"):
        run(text, dead)


def test_dictionaries_of_one_latent_duplicates_and_zero_rows_are_joined(text):
    one = random_dictionary(1, 16, seed=3, name="one", activation=ReLU())
    twice = random_dictionary(10, 16, seed=4, name="twice", activation=ReLU())
    twice = replace(
        twice,
        **{k: torch.cat([getattr(twice, k)] * 2, dim=-1) for k in ("W_enc", "b_enc")},
        W_dec=torch.cat([twice.W_dec] * 2),
    )
    twice.W_dec[3] = 0.0
    report = run(text, [one, twice], contexts=1)
    assert report.tables["rule"].frame.set_index("dictionary").loc["twice", "duplicates"] >= 8
    assert any("One sequence" in warning for warning in report.warnings)
