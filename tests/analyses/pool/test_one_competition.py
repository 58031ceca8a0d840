"""One ordinary encoder in place of a union: codes by brute force, files of other libraries, and its steps."""

import pytest
import torch

from analyses.pool.dictionary_pool import part_of, pool_of
from analyses.pool.one_competition import competition_steps, in_one_competition
from analyses.pool.ridge_refit import refit_decoder
from dictlab import DictlabError, ReLU, TopK, load
from dictlab.dictionary.activation_functions import AbsTopK
from dictlab.dictionary.normalisation import Scale
from dictlab.formats import conversion
from tests.dictionary.test_activation_functions import gated, jumprelu
from tests.planted import random_dictionary

X = 2 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) + 1
HALF = torch.arange(54) % 2 == 0


def stitched(first, second, normalisation=None):
    donors = [
        random_dictionary(n, 8, seed=n, activation=kind, normalisation=normalisation)
        for n, kind in ((24, first), (30, second))
    ]
    pool = pool_of(donors)
    long = pool.W_dec * torch.linspace(0.5, 2.0, 54)[:, None]  # as after a refit
    return part_of(pool, HALF, W_dec=long), [d.folded() for d in donors], long


@pytest.mark.parametrize("normalisation", [None, Scale(0.4)])
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_what_is_added_is_the_largest_of_all_that_the_chosen_latents_could_add(kind, normalisation):
    """Of all contributions relu(z_j) |d_j|, those of ranked donors unfiltered: the k largest a token, or of all."""
    part, donors, directions = stitched(TopK(5), TopK(6), normalisation)
    one = in_one_competition(part, kind, 4.0, X)
    z = torch.cat([X @ d.W_enc + d.b_enc for d in donors], dim=1).relu()[:, HALF]
    added = z * directions[HALF].norm(dim=1)
    keep = torch.zeros_like(added, dtype=torch.bool)
    if kind == "topk":
        keep.scatter_(1, added.topk(4, dim=1).indices, True)
    else:
        keep.view(-1)[added.flatten().topk(4 * len(X)).indices] = True
    torch.testing.assert_close(one.encode(X).dense(), added * keep, atol=1e-4, rtol=1e-4)
    expected = (z * keep) @ directions[HALF] + part.b_out
    torch.testing.assert_close(one.reconstruct(X), expected, atol=1e-3, rtol=1e-3)
    assert one.n_latents == 27


@pytest.mark.parametrize("kinds", [(ReLU(), jumprelu(30, 1)), (gated(24, 1), TopK(5))])
def test_latents_with_thresholds_are_never_active_where_they_were_not(kinds):
    part, donors, _ = stitched(*kinds)
    one = in_one_competition(part, "jumprelu", 3.0, X)
    active = one.encode(X).dense() != 0
    assert 2.9 <= float(active.sum(dim=1).double().mean()) <= 3.0
    own = donors[0].encode(X).dense()[:, HALF[:24]] != 0
    assert not (active[:, :12] & ~own).any()


def test_it_is_a_file_of_other_libraries(tmp_path):
    part, _, _ = stitched(TopK(5), ReLU())
    with pytest.raises(DictlabError):
        conversion.write(part, tmp_path / "union", "saelens")
    for kind in ("topk", "jumprelu"):
        one = in_one_competition(part, kind, 4.0, X)
        written = conversion.write(one, tmp_path / kind, "saelens")
        torch.testing.assert_close(load(written).reconstruct(X), one.reconstruct(X), atol=1e-3, rtol=1e-3)


def test_the_steps_end_with_a_decoder_that_is_refitted_twice_at_unit_scales():
    part, _, _ = stitched(TopK(5), TopK(6))
    steps = competition_steps(part, "topk", 4.0, [X], "decoder", X)
    assert len(steps) == 3 and list(competition_steps(part, "topk", 4.0, [X], "bias", X)) == list(steps)[:2]
    plain, refitted, calibrated = steps.values()
    error = [float((X - step.reconstruct(X)).square().mean()) for step in (plain, refitted)]
    assert error[1] < error[0]
    again = refit_decoder(in_one_competition(refit_decoder(plain, [X]), "topk", 4.0, X), [X])
    torch.testing.assert_close(calibrated.reconstruct(X), again.reconstruct(X), atol=1e-3, rtol=1e-3)


def test_negative_codes_and_unknown_rules_are_refused():
    with pytest.raises(DictlabError, match="abstopk"):
        in_one_competition(random_dictionary(24, 8, activation=AbsTopK(3)), "topk", 3, X)
    with pytest.raises(DictlabError, match="competition is 'softmax'"):
        in_one_competition(random_dictionary(24, 8), "softmax", 3, X)
