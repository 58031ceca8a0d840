"""Nearest decoder directions against the whole cosine matrix, and chance levels against known values."""

from dataclasses import replace
from itertools import permutations

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from analyses.common import matmul_backends
from analyses.common import neighbours as searching
from analyses.common.chance import max_cosine_levels
from analyses.common.neighbours import nearest, neighbours
from analyses.similarity.matching.assignment import assignment
from analyses.similarity.matching.matching import matching
from dictlab import DictlabError, Metadata
from dictlab.formats.loading import mapped
from dictlab.formats.native import native_file as native
from dictlab.numerics.statistics import mean_interval
from tests.planted import SITE, random_dictionary

small = st.integers(1, 12)


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(small, small, st.integers(2, 6), st.integers(1, 4), st.integers(1, 7), st.integers(0, 1000))
def test_streamed_blocks_give_the_largest_entries_of_the_whole_matrix(n, m, d, top, block, seed):
    a, b = rows(n, d, seed), rows(m, d, seed + 1)
    found = nearest(a, b, top=top, tile=(block, block))
    whole = normalize(a, dim=1) @ normalize(b, dim=1).T
    expected = whole.sort(dim=1, descending=True)
    torch.testing.assert_close(found.cosine, expected.values[:, :top])
    torch.testing.assert_close(whole.gather(1, found.rows), found.cosine)


@given(st.integers(2, 12), st.integers(2, 6), st.integers(1, 7), st.integers(0, 1000))
def test_a_row_is_not_its_own_neighbour_when_it_must_not_be(n, d, block, seed):
    a = rows(n, d, seed)
    found = nearest(a, a, itself=False, tile=(block, block))
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


@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (17, 1000)])
def test_no_more_cosines_are_held_at_once_than_a_tile_has(monkeypatch, shape):
    sizes = []
    original = searching._tile
    monkeypatch.setattr(searching, "_tile", lambda *args: sizes.append((out := original(*args)).numel()) or out)
    neighbours(torch.randn(shape[0], 4), torch.randn(shape[1], 4), top=3, tile=(64, 16))
    assert max(sizes) == 64 * 16


@pytest.mark.parametrize(("d", "n", "expected"), [(128, 512, 0.265), (768, 768, 0.114), (768, 6144, 0.136)])
def test_isotropic_chance_levels_are_those_of_simulation(d, n, expected):
    """Values simulated elsewhere for one uniform direction against n others; given to three digits."""
    b = torch.randn(n, d, generator=torch.Generator().manual_seed(9))
    assert max_cosine_levels(b, 0)["isotropic"] == pytest.approx(expected, abs=0.003)


def test_shaped_chance_equals_isotropic_chance_for_isotropic_rows_and_exceeds_it_for_crowded_ones():
    b = torch.randn(4000, 20, generator=torch.Generator().manual_seed(3))
    assert max_cosine_levels(b, 0)["shaped"] == pytest.approx(max_cosine_levels(b, 0)["isotropic"], abs=0.02)
    crowded = b * torch.linspace(0.05, 3, 20)
    assert max_cosine_levels(crowded, 0)["shaped"] > max_cosine_levels(crowded, 0)["isotropic"] + 0.1


def test_a_chance_level_does_not_meet_the_rows_that_a_seed_initialises():
    """A bare manual_seed(0) would draw the same directions for both."""
    b = torch.randn(512, 128, generator=torch.Generator().manual_seed(0))
    assert max_cosine_levels(b, 0)["isotropic"] < 0.3


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = mean_interval(values, 0)
    assert (high - low) / 2 == pytest.approx(1.96 / 20, rel=0.15)


def test_a_dictionary_and_its_permutation_match_one_to_one():
    a = random_dictionary(name="a")
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    b = replace(a, W_dec=2 * a.W_dec[order], W_enc=a.W_enc[:, order], b_enc=a.b_enc[order], name="b")
    report = matching([a, b], neighbours=1)
    overview = report.tables["overview"].frame
    assert overview["MMCS"].tolist() == pytest.approx([1, 1])
    assert overview["mutual nearest"].tolist() == [24, 24]
    latents = report.tables["latents"].frame
    latents = latents[latents["from"] == "a"]
    assert len(latents) == 24 and (order.numpy()[latents["neighbour"]] == latents["latent"]).all()


def test_opposite_directions_are_not_alike():
    a = random_dictionary(10, 64, name="a")
    b = replace(a, W_dec=-a.W_dec, name="b")
    assert matching([a, b]).tables["overview"].frame["MMCS"].max() < 0.4


def test_dead_latents_are_left_out_and_counted():
    a = random_dictionary(name="a")
    b = replace(a, firing_rate=(torch.arange(24) >= 4).float(), name="b")
    overview = matching([a, b]).tables["overview"].frame
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
        matching([a, other])


def test_one_model_under_two_names_is_one_model():
    a = random_dictionary(name="a", metadata=Metadata(model="folder/model", model_fingerprint="f"))
    b = random_dictionary(name="b", metadata=Metadata(model="model", model_fingerprint="f"))
    matching([a, b])
    with pytest.raises(DictlabError, match=r"model is folder/model \(f\) and model \(g\)"):
        matching([a, replace(b, metadata=replace(b.metadata, model_fingerprint="g"))])


def test_cosines_of_equal_directions_do_not_pass_one():
    rows = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))
    assert nearest(rows, 3 * rows).cosine.max() <= 1


def test_too_few_alive_latents_are_named():
    a = random_dictionary(name="a")
    with pytest.raises(DictlabError, match="b: all of its 24 latents are dead"):
        matching([a, replace(a, firing_rate=torch.zeros(24), name="b")])


def whole(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return normalize(a.double(), dim=1) @ normalize(b.double(), dim=1).T


def check_both_ways(a: torch.Tensor, b: torch.Tensor, top: int, block: int) -> None:
    """Equal to sorting the whole matrix by row and by column; rows named once, with the cosines they have."""
    cosine = whole(a, b)
    for found, expected in zip(neighbours(a, b, top=top, tile=(block, block)), (cosine, cosine.T), strict=True):
        best = expected.sort(dim=1, descending=True).values[:, :top]
        torch.testing.assert_close(found.cosine.double(), best, atol=2e-6, rtol=0)
        torch.testing.assert_close(expected.gather(1, found.rows), best, atol=2e-6, rtol=0)
        assert all(len(set(row)) == len(row) for row in found.rows.tolist())


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 9), st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=60)
def test_one_pass_both_ways_equals_the_whole_matrix(n, m, top, block, seed):
    check_both_ways(rows(n, 5, seed).float(), rows(m, 5, seed + 1).float(), top, block)


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=30)
def test_doubled_and_zero_rows_do_not_disturb_it(seed, block, top):
    a, b = rows(30, 3, seed).float(), rows(20, 3, seed + 1).float()
    a[::4], b[::3] = 0, 0
    check_both_ways(torch.cat([a, a[:9], b]), torch.cat([b, b, a[:5]]), top, block)


@pytest.mark.parametrize("order", [1, -1])
def test_candidates_that_only_get_better_or_worse_are_all_seen(order):
    """Every block beats the last, or none does: the two ways of looking into a block, without end."""
    angle = torch.linspace(0.1, 1.5, 600)[::order] if order == 1 else torch.linspace(0.1, 1.5, 600).flip(0)
    b = torch.stack([angle.cos(), angle.sin()], dim=1)
    check_both_ways(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), b, 8, 32)
    check_both_ways(b, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 8, 32)


def test_numpys_product_gives_the_neighbours_that_torchs_does(monkeypatch):
    a, b = rows(200, 6, 0).float(), rows(150, 6, 1).float()
    expected = neighbours(a, b, top=4, tile=(64, 48))
    monkeypatch.setattr(matmul_backends, "MIN_MULTIPLICATIONS_TO_TIME", 0)
    monkeypatch.setattr(matmul_backends, "numpy_is_faster", lambda: True)
    threads = torch.get_num_threads()
    for one, other in zip(neighbours(a, b, top=4, tile=(64, 48)), expected, strict=True):
        torch.testing.assert_close(one.cosine, other.cosine)
        assert torch.equal(one.rows, other.rows)
    assert torch.get_num_threads() == threads


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_many_tiles_after_which_little_is_new_give_the_whole_matrix_too(seed):
    """Bars are high after the first tiles, so that later ones are looked into at a few places only."""
    check_both_ways(rows(700, 8, seed).float(), rows(900, 8, seed + 1).float(), 5, 64)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_finds_the_same_neighbours():
    a, b = rows(700, 8, 0).float(), rows(900, 8, 1).float()
    for one, other in zip(neighbours(a, b, device="cuda"), neighbours(a, b), strict=True):
        torch.testing.assert_close(one.cosine.cpu(), other.cosine, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_in_a_file_in_any_precision_give_what_the_same_numbers_in_memory_do(tmp_path, dtype):
    made = [random_dictionary(60, 8, seed=seed).to(dtype=dtype) for seed in (0, 1)]
    files = [mapped(native.save(one, tmp_path / f"{i}.safetensors")) for i, one in enumerate(made)]
    assert files[0].W_dec.dtype == dtype
    found = neighbours(files[0].W_dec, files[1].W_dec, top=3, of_a=torch.arange(5, 50), tile=(64, 16))
    expected = neighbours(made[0].W_dec.float()[5:50], made[1].W_dec.float(), top=3)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cosine, other.cosine)
        assert torch.equal(one.rows, other.rows)


def test_a_row_that_is_no_number_is_named():
    a = torch.ones(9, 3)
    a[7, 1] = torch.nan
    with pytest.raises(DictlabError, match=r"row 7 .* NaN"):
        neighbours(torch.ones(2, 3), a, tile=(4, 4))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=30)
def test_the_assignment_is_the_best_of_all_that_there_are(n, m, seed):
    a, b = rows(n, 4, seed).float(), rows(m, 4, seed + 1).float()
    found, cosine = assignment(a, b), whole(a, b)
    if n > m:
        cosine = cosine.T
    few, many = cosine.shape
    best = max(sum(cosine[i, j] for i, j in enumerate(order)) / few for order in permutations(range(many), few))
    assert found.exact and found.mean == pytest.approx(float(best), abs=1e-5)
    assert len(found.rows) == len(set(found.partners.tolist())) == few


@given(st.integers(20, 60), st.integers(20, 60), st.integers(0, 1000))
@settings(max_examples=30)
def test_the_assignment_along_neighbours_is_complete_and_its_bound_holds(n, m, seed):
    a, b = rows(n, 6, seed).float(), rows(m, 6, seed + 1).float()
    best, found = assignment(a, b), assignment(a, b, exact=16)
    assert not found.exact and len(found.rows) == len(set(found.partners.tolist())) == min(n, m)
    assert found.mean <= best.mean + 1e-6 and best.mean <= found.bound + 1e-6
    assert found.bound - found.mean < 0.1


def test_the_assignment_along_neighbours_ends_where_all_rows_are_alike():
    found = assignment(torch.ones(300, 4), torch.ones(300, 4), exact=16)
    assert sorted(found.partners.tolist()) == list(range(300))
    assert found.mean == pytest.approx(1) and found.bound == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("exact", [1 << 24, 16])
def test_a_planted_permutation_is_found_by_nearest_by_mutual_and_by_assignment(exact):
    a = rows(80, 16, 0).float()
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    forward, backward = neighbours(a, a[order], top=1)
    found = assignment(a, a[order], exact=exact)
    assert torch.equal(order[forward.rows[:, 0]], torch.arange(80)) and torch.equal(backward.rows[:, 0], order)
    assert torch.equal(order[found.partners], torch.arange(80)) and found.mean == pytest.approx(1)


def test_planted_noise_lowers_the_cosine_of_the_assignment_as_it_must():
    """Noise of length s at right angles to a unit row leaves the cosine 1 / sqrt(1 + s^2)."""
    a = torch.eye(200)[:100]
    for s in (0.2, 0.5, 1.0):
        noise = normalize(torch.cat([torch.zeros(100, 100), rows(100, 100, 3).float()], dim=1), dim=1)
        found = assignment(a, a + s * noise)
        assert torch.equal(found.partners, torch.arange(100))
        assert found.mean == pytest.approx((1 + s * s) ** -0.5, abs=1e-5)


def overview_of(a, b):
    report = matching([a, b])
    return report.tables["overview"].frame, report.tables["assignment"].frame, report.tables["thresholds"].frame


def test_turning_both_dictionaries_changes_no_similarity():
    a, b = random_dictionary(name="a"), random_dictionary(seed=1, name="b")
    Q = torch.linalg.qr(rows(8, 8, 5)).Q.float()
    turned = [replace(x, W_dec=x.W_dec @ Q, W_enc=Q.T @ x.W_enc) for x in (a, b)]
    for one, other in zip(overview_of(a, b), overview_of(*turned), strict=True):
        columns = [c for c in one.columns if "chance" not in c]
        pd.testing.assert_frame_equal(one[columns], other[columns], atol=1e-4)


def test_doubled_latents_keep_the_max_cosine_and_the_assignment_and_one_mutual_pair_each():
    a = random_dictionary(name="a")
    twice = [torch.cat([w, w], dim=-1 if name == "W_enc" else 0) for name, w in
             (("W_enc", a.W_enc), ("b_enc", a.b_enc), ("W_dec", a.W_dec))]  # fmt: skip
    b = replace(a, W_enc=twice[0], b_enc=twice[1], W_dec=twice[2], name="b")
    overview, one_to_one, _ = overview_of(a, b)
    assert overview["MMCS"].tolist() == pytest.approx([1, 1])
    assert overview["mutual nearest"].tolist() == [24, 24] and overview["share mutual"].tolist() == [1, 0.5]
    assert one_to_one["MCC"].tolist() == pytest.approx([1, 1]) and one_to_one["pairs"].tolist() == [24, 24]


def test_encoders_that_pair_otherwise_are_no_aligned_latents():
    """The same decoder; the encoders of the first four latents moved on by one."""
    a = random_dictionary(name="a")
    order = torch.tensor([1, 2, 3, 0, *range(4, 24)])
    _, one_to_one, shares = overview_of(a, replace(a, W_enc=a.W_enc[:, order], name="b"))
    assert one_to_one["same pair in the other matrix"].tolist() == pytest.approx([20 / 24] * 2)
    assert shares["assigned, decoder"].tolist() == [1] * 14
    assert shares["aligned"].tolist() == pytest.approx([20 / 24] * 14)


def family_member(name, seed, n=24, rate=None):
    about = Metadata(site=SITE, objective="local", seed=seed)
    return replace(random_dictionary(n, 8, seed=seed, metadata=about, name=name), firing_rate=rate)


def test_every_ordered_pair_has_a_row_and_stands_beside_its_seed_floor():
    report = matching([family_member("a", 0), family_member("b", 1), family_member("wide", 0, 60)], tokens=0)
    overview = report.tables["overview"].frame.set_index(["from", "to"])
    assert len(overview) == 6 and set(overview["relation"]) == {"cross-seed", "cross-width"}
    assert overview.loc[("a", "wide"), "seed floor"] == overview.loc[("a", "b"), "MMCS"]
    assert overview.loc[("b", "wide"), "seed floor"] == overview.loc[("b", "a"), "MMCS"]
    assert overview.loc[[("wide", "a"), ("a", "b")], "seed floor"].isna().all()
    found = report.tables["similarities"].frame.set_index(["measure", "from", "to"])
    assert found.loc[("MCC, decoder", "b", "wide"), "seed floor"] == found.loc[("MCC, decoder", "a", "b"), "value"]
    assert {"matrix", "cosines", "thresholds", "spaces"} <= set(report.plots)
    assert len(report.warnings) == 2 and all("firing rates are known" in warning for warning in report.warnings)


def test_without_two_seeds_it_says_that_there_is_no_floor():
    report = matching([family_member("a", 0), family_member("wide", 0, 60)], tokens=0)
    assert any("no floor" in warning for warning in report.warnings)
    assert report.tables["overview"].frame["seed floor"].isna().all()


def test_every_similarity_of_directions_stands_beside_both_chance_levels():
    found = matching([family_member("a", 0), family_member("b", 1, 60)], tokens=0).tables["similarities"].frame
    assert found[["chance (isotropic)", "chance (shaped)"]].notna().all().all()
    bounded = found[found["measure"].isin(["MMCS", "MCC, decoder", "MCC, encoder"])]
    assert ((bounded["low"] <= bounded["value"]) & (bounded["value"] <= bounded["high"])).all()


def test_random_dictionaries_are_at_the_chance_level_of_their_kind():
    """Directions are uniform, so their similarity is that of uniform directions, in every measure."""
    a, b = (random_dictionary(300, 40, seed=seed, name=str(seed)) for seed in (1, 2))
    found = matching([a, b], tokens=0).tables["similarities"].frame.set_index("measure")
    for measure in ("MMCS", "MCC, decoder", "CKA, paired decoders", "RSA, paired decoders"):
        rows = found.loc[[measure]]
        assert (rows["value"] - rows["chance (isotropic)"]).abs().max() < 0.03, measure


def test_a_dictionary_and_its_negative_are_not_alike_by_any_signed_measure():
    a = random_dictionary(100, 40, name="a")
    found = matching([a, replace(a, W_dec=-a.W_dec, name="b")], tokens=0).tables["similarities"].frame
    found = found.set_index("measure")
    for measure in ("MMCS", "MCC, decoder", "mutual nearest, share"):
        rows = found.loc[[measure]]
        assert (rows["value"] - rows["chance (isotropic)"]).abs().max() < 0.1, measure


def test_a_rotated_dictionary_falls_to_chance_latent_by_latent():
    a = random_dictionary(100, 40, name="a")
    Q = torch.linalg.qr(rows(40, 40, 5)).Q.float()
    found = matching([a, replace(a, W_dec=a.W_dec @ Q, name="b")], tokens=0).tables["similarities"].frame
    found = found.set_index("measure")
    for measure in ("MMCS", "MCC, decoder"):
        assert (found.loc[[measure], "value"] - found.loc[[measure], "chance (isotropic)"]).abs().max() < 0.1


def test_strata_tell_frequent_latents_that_match_from_rare_ones_that_do_not():
    """The more frequent half of the latents has its directions kept, the other half has random ones."""
    rate = torch.linspace(0.01, 0.5, 200)
    a = replace(random_dictionary(200, 40, name="a"), firing_rate=rate)
    directions = a.W_dec.clone()
    directions[:100] = random_dictionary(100, 40, seed=7).W_dec
    strata = matching([a, replace(a, W_dec=directions, name="b")], tokens=0).tables["strata"].frame
    assert strata["decile"].tolist() == list(range(1, 11))
    assert strata["MCC"][5:].tolist() == pytest.approx([1] * 5) and strata["MCC"][:5].max() < 0.6
    assert strata["rate from"].is_monotonic_increasing and strata["rate to"].iloc[-1] == pytest.approx(0.5)
    assert (strata["MCC"][:5] - strata["chance (isotropic)"][:5]).abs().max() < 0.15


def test_unknown_firing_rates_are_said_to_be():
    report = matching([random_dictionary(name="a"), random_dictionary(seed=1, name="b")], tokens=0)
    assert "strata" not in report.tables and any("No firing rates" in warning for warning in report.warnings)


def test_one_dictionary_alone_is_refused():
    with pytest.raises(DictlabError, match="compares 2 or more dictionaries; 1 were given"):
        matching([random_dictionary(name="a")])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"threshold": 1.1}, "threshold is 1.1; expected -1 to 1"),
        ({"correlation_threshold": float("nan")}, "correlation_threshold is nan; expected -1 to 1"),
        ({"ridge": 0.0}, "ridge is 0; expected more than 0"),
        ({"neighbours": 0}, "neighbours is 0; expected 1 or more"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_read(options, what):
    with pytest.raises(DictlabError, match=what):
        matching(["nowhere.safetensors", "nowhere either.safetensors"], **options)
