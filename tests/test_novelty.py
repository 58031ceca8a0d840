"""Effects of insertion: one pass against one brute-force reconstruction a latent, and against planted truth."""

from dataclasses import replace

import pytest
import torch

from analyses.novelty import agreement, insertion_effects, latent_table, nearest_alive
from dictlab import Dictionary, ReLU, TopK
from dictlab.normalisation import LayerNorm, Scale
from tests.planted import random_dictionary, sparse_data


def brute_force(small: Dictionary, large: Dictionary, x: torch.Tensor) -> torch.Tensor:
    """Change in MSE of SMALL's reconstruction with each latent of LARGE added to it, one at a time, in float64."""
    small, large, x = small.to(dtype=torch.float64), large.to(dtype=torch.float64), x.double()
    scale = torch.as_tensor(large.normalisation(x)[1].scale)
    codes, base = large.encode(x).dense(), small.reconstruct(x)
    before = (x - base).square().mean()
    added = [(base + scale * codes[:, [i]] * large.W_dec[i]) for i in range(large.n_latents)]
    return torch.stack([(x - x_hat).square().mean() - before for x_hat in added])


@pytest.mark.parametrize("activation", [ReLU(), TopK(4)])
@pytest.mark.parametrize("normalisation", [None, Scale(0.2), LayerNorm()])
def test_one_pass_equals_brute_force(activation, normalisation):
    """1e-5 relative to the largest effect: float32 codes, sums in float64."""
    options = {"activation": activation, "normalisation": normalisation}
    small, large = random_dictionary(20, 8, seed=1, **options), random_dictionary(64, 8, seed=2, **options)
    x = 2 * torch.randn(12, 25, 8, generator=torch.Generator().manual_seed(0))
    found = insertion_effects(small, large, x.split(5))
    expected = brute_force(small, large, x.flatten(0, 1))
    assert (found.change - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found.tokens, found.sequences) == (300, 12)


def test_the_best_scale_is_where_the_effect_is_smallest():
    small, large = random_dictionary(20, 8, seed=1), random_dictionary(10, 8, seed=2)
    x = torch.randn(4, 50, 8, generator=torch.Generator().manual_seed(0))
    found = insertion_effects(small, large, [x])
    step = 1e-3

    def change(scale: torch.Tensor) -> torch.Tensor:
        return insertion_effects(small, replace(large, W_dec=large.W_dec * scale[:, None]), [x]).change

    best = found.scale.float()
    assert (change(best) <= change(best + step)).all() and (change(best) <= change(best - step)).all()
    assert torch.equal(found.change < 0, found.scale > 0.5)


def test_standard_errors_are_those_of_the_mean_over_sequences():
    small, large = random_dictionary(20, 8, seed=1), random_dictionary(10, 8, seed=2)
    x = torch.randn(30, 20, 8, generator=torch.Generator().manual_seed(0))
    found = insertion_effects(small, large, x.split(7))
    by_sequence = torch.stack([insertion_effects(small, large, [sequence[None]]).change for sequence in x])
    torch.testing.assert_close(found.change, by_sequence.mean(dim=0), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.error, by_sequence.std(dim=0) / 30**0.5, rtol=1e-5, atol=1e-9)


def planted() -> tuple[Dictionary, Dictionary, torch.Tensor]:
    """SMALL knows 20 of the 32 directions that the data is made of; LARGE knows them all."""
    x, directions = sparse_data(4000, n=32, d=32, seed=3)
    centre = torch.full((32,), 0.7)

    def knows(kept: int, name: str) -> Dictionary:
        rows = directions[:kept]
        return Dictionary(rows.T.clone(), torch.full((kept,), -0.1), rows, centre, centre, ReLU(), name=name)

    return knows(20, "small"), knows(32, "large"), x.reshape(40, 100, 32)


def test_directions_that_small_lacks_are_novel_and_those_it_has_are_not():
    small, large, x = planted()
    effects = insertion_effects(small, large, [x])
    table = latent_table(effects, nearest_alive(large, small), 0.9).sort_values("latent")
    assert (table["class"][table["latent"] < 20] == "reconstruction").all()
    assert (table["class"][table["latent"] >= 20] == "novel").all()
    assert (table["class by cosine"] == table["class"]).all()
    counts = agreement(table)
    assert counts["latents"].tolist() == [12, 20]


def test_dead_latents_are_called_dead_by_both_rules():
    small, large, x = planted()
    large = replace(large, b_enc=torch.where(torch.arange(32) == 25, -100.0, large.b_enc))
    table = latent_table(insertion_effects(small, large, [x]), nearest_alive(large, small), 0.9)
    dead = table[table["latent"] == 25].iloc[0]
    assert dead["class"] == dead["class by cosine"] == "dead"
    assert dead["change in MSE"] == 0


def test_a_dictionary_adds_nothing_to_itself():
    """Each latent is counted twice: the error can only rise, unless activations are shrunk by half; these are not."""
    _, large, x = planted()
    refit = replace(large, b_enc=torch.full((32,), 0.0))
    effects = insertion_effects(refit, refit, [x])
    cosines = nearest_alive(refit, refit).cosine
    torch.testing.assert_close(cosines, torch.ones_like(cosines))
    assert (effects.change > 0).all()
