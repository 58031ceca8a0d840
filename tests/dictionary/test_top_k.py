"""The k largest of each row: against torch.topk, ties and NaN and odd shapes among them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dictlab.dictionary import top_k
from dictlab.dictionary.top_k import largest, largest_of_all, positions


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 6), st.integers(0, 10_000), st.booleans())
def test_values_are_those_of_topk_and_stand_where_the_columns_say(rows, groups, k, seed, ties):
    z = torch.randn(rows, 16 * groups, generator=torch.Generator().manual_seed(seed))
    z = z.round() if ties else z
    k = min(k, z.shape[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k, "WIDE", 1)
        values, columns = largest(z, k)
    assert torch.equal(values.sort(dim=1).values, z.topk(k, dim=1).values.sort(dim=1).values)
    assert torch.equal(z.gather(1, columns), values)
    assert all(len(set(row.tolist())) == k for row in columns)  # no column twice


def test_widths_that_no_group_divides_are_no_trouble(monkeypatch):
    monkeypatch.setattr(top_k, "WIDE", 1)
    z = torch.randn(3, 1001)
    assert torch.equal(largest(z, 4)[0].sort().values, z.topk(4).values.sort().values)


@given(st.integers(1, 5), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10_000), st.booleans())
def test_the_largest_of_all_are_those_of_topk(rows, n, share, seed, ties):
    z = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    z, count = (z.round() if ties else z), round(share * z.numel())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k, "SAMPLE", 2)
        found = largest_of_all(z, count)
    assert len(set(found.tolist())) == count
    assert torch.equal(z.flatten()[found].sort().values, z.flatten().topk(count).values.sort().values)


def test_a_sample_that_misleads_costs_time_and_no_exactness(monkeypatch):
    """Every entry that is looked at for the bound is far above the others."""
    monkeypatch.setattr(top_k, "SAMPLE", 4)
    z = torch.rand(10, 400)
    z[:, ::4] += 100
    assert torch.equal(largest_of_all(z, 1200).sort().values, z.flatten().topk(1200).indices.sort().values)


def test_positions_are_where_a_mask_is_true():
    mask = torch.rand(1000) < 0.1
    assert torch.equal(positions(mask), mask.nonzero().squeeze(1))
