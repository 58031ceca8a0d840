"""The k largest of each row: against torch.topk, ties and NaN and odd shapes among them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dictlab import selection
from dictlab.selection import largest


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 6), st.integers(0, 10_000), st.booleans())
def test_values_are_those_of_topk_and_stand_where_the_columns_say(rows, groups, k, seed, ties):
    z = torch.randn(rows, 16 * groups, generator=torch.Generator().manual_seed(seed))
    z = z.round() if ties else z
    k = min(k, z.shape[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "WIDE", 1)
        values, columns = largest(z, k)
    assert torch.equal(values.sort(dim=1).values, z.topk(k, dim=1).values.sort(dim=1).values)
    assert torch.equal(z.gather(1, columns), values)
    assert all(len(set(row.tolist())) == k for row in columns)  # no column twice


def test_widths_that_no_group_divides_are_no_trouble(monkeypatch):
    monkeypatch.setattr(selection, "WIDE", 1)
    z = torch.randn(3, 1001)
    assert torch.equal(largest(z, 4)[0].sort().values, z.topk(4).values.sort().values)
