"""Nearest decoder directions against the whole cosine matrix, and chance levels against known values."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from analyses.matching import chance, matching, mean_interval
from analyses.neighbours import nearest
from dictlab import DictlabError, Metadata
from tests.planted import random_dictionary

small = st.integers(1, 12)


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(small, small, st.integers(2, 6), st.integers(1, 4), st.integers(1, 7), st.integers(0, 1000))
def test_streamed_blocks_give_the_largest_entries_of_the_whole_matrix(n, m, d, top, block, seed):
    a, b = rows(n, d, seed), rows(m, d, seed + 1)
    found = nearest(a, b, top=top, block=block)
    whole = normalize(a, dim=1) @ normalize(b, dim=1).T
    expected = whole.sort(dim=1, descending=True)
    torch.testing.assert_close(found.cosine, expected.values[:, :top])
    torch.testing.assert_close(whole.gather(1, found.rows), found.cosine)


@given(st.integers(2, 12), st.integers(2, 6), st.integers(1, 7), st.integers(0, 1000))
def test_a_row_is_not_its_own_neighbour_when_it_must_not_be(n, d, block, seed):
    a = rows(n, d, seed)
    found = nearest(a, a, itself=False, block=block)
    whole = (normalize(a, dim=1) @ normalize(a, dim=1).T).fill_diagonal_(-2)
    torch.testing.assert_close(found.cosine[:, 0], whole.max(dim=1).values)
    assert (found.rows[:, 0] != torch.arange(n)).all()


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_rescaling_and_permuting_rows_changes_no_cosine(seed):
    a, b = rows(9, 5, seed), rows(11, 5, seed + 1)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
    scale = torch.rand(11, 1, dtype=torch.float64) + 0.1
    one, other = nearest(a, b), nearest(3 * a, (scale * b)[order])
    torch.testing.assert_close(one.cosine, other.cosine)
    assert torch.equal(order[other.rows], one.rows)


def test_a_duplicate_is_found_and_a_zero_row_has_no_likeness():
    b = torch.cat([torch.eye(3), torch.zeros(1, 3)])
    found = nearest(torch.cat([b[1:2], torch.zeros(1, 3)]), b, top=2)
    assert found.cosine[0].tolist() == [1, 0] and found.rows[0, 0] == 1
    assert found.cosine[1].tolist() == [0, 0]


def test_memory_is_bounded_by_the_block_not_by_n_times_m(monkeypatch):
    """The largest matrix that any product makes has block x block entries."""
    sizes = []
    original = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: sizes.append((out := original(a, b)).numel()) or out)
    nearest(torch.randn(100, 4), torch.randn(300, 4), top=3, block=16)
    assert max(sizes) == 256


@pytest.mark.parametrize(("d", "n", "expected"), [(128, 512, 0.265), (768, 768, 0.114), (768, 6144, 0.136)])
def test_isotropic_chance_levels_are_those_of_simulation(d, n, expected):
    """Values simulated elsewhere for one uniform direction against n others; given to three digits."""
    b = torch.randn(n, d, generator=torch.Generator().manual_seed(9))
    assert chance(b, shaped=False) == pytest.approx(expected, abs=0.003)


def test_shaped_chance_equals_isotropic_chance_for_isotropic_rows_and_exceeds_it_for_crowded_ones():
    b = torch.randn(4000, 20, generator=torch.Generator().manual_seed(3))
    assert chance(b, shaped=True) == pytest.approx(chance(b, shaped=False), abs=0.02)
    crowded = b * torch.linspace(0.05, 3, 20)
    assert chance(crowded, shaped=True) > chance(crowded, shaped=False) + 0.1


def test_a_chance_level_does_not_meet_the_rows_that_a_seed_initialises():
    """A bare manual_seed(0) would draw the same directions for both."""
    b = torch.randn(512, 128, generator=torch.Generator().manual_seed(0))
    assert chance(b, shaped=False, seed=0) < 0.3


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = mean_interval(values, 0)
    assert (high - low) / 2 == pytest.approx(1.96 / 20, rel=0.15)


def test_a_dictionary_and_its_permutation_match_one_to_one():
    a = random_dictionary(name="a")
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    b = replace(a, W_dec=2 * a.W_dec[order], W_enc=a.W_enc[:, order], b_enc=a.b_enc[order], name="b")
    report = matching(a, b, top=1)
    overview = report.tables["overview"].frame
    assert overview["MMCS"].tolist() == pytest.approx([1, 1])
    assert overview["mutual nearest"].tolist() == [24, 24]
    latents = report.tables["latents"].frame
    assert (order.numpy()[latents["neighbour"]] == latents["latent"]).all()


def test_opposite_directions_are_not_alike():
    a = random_dictionary(10, 64, name="a")
    b = replace(a, W_dec=-a.W_dec, name="b")
    assert matching(a, b).tables["overview"].frame["MMCS"].max() < 0.4


def test_dead_latents_are_left_out_and_counted():
    a = random_dictionary(name="a")
    b = replace(a, firing_rate=(torch.arange(24) >= 4).float(), name="b")
    overview = matching(a, b).tables["overview"].frame
    assert overview["dead latents"].tolist() == [0, 4]
    assert overview["MMCS"][1] == pytest.approx(1) and overview["MMCS"][0] < 1


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (random_dictionary(24, 9, name="b"), "width d_in is 8 and 9"),
        (random_dictionary(name="b", metadata=Metadata(site="elsewhere")), "site"),
        (random_dictionary(name="b", metadata=Metadata(model="gpt3", site="blocks.1.hook_resid_pre")), "model"),
        (random_dictionary(name="a"), "called"),
    ],
)
def test_dictionaries_of_different_places_are_refused_by_name(other, what):
    a = random_dictionary(name="a", metadata=Metadata(model="gpt2", site="blocks.1.hook_resid_pre"))
    with pytest.raises(DictlabError, match=what):
        matching(a, other)


def test_one_model_under_two_names_is_one_model():
    a = random_dictionary(name="a", metadata=Metadata(model="folder/model", model_fingerprint="f"))
    b = random_dictionary(name="b", metadata=Metadata(model="model", model_fingerprint="f"))
    matching(a, b)
    with pytest.raises(DictlabError, match=r"model is folder/model \(f\) and model \(g\)"):
        matching(a, replace(b, metadata=replace(b.metadata, model_fingerprint="g")))


def test_cosines_of_equal_directions_do_not_pass_one():
    rows = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))
    assert nearest(rows, 3 * rows).cosine.max() <= 1


def test_too_few_alive_latents_are_named():
    a = random_dictionary(name="a")
    with pytest.raises(DictlabError, match="b: 0 alive"):
        matching(a, replace(a, firing_rate=torch.zeros(24), name="b"))
