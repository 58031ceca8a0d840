"""Codes and activation functions against their dense definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dictlab.codes import Codes, concatenate
from dictlab.errors import DictlabError
from dictlab.sparsity import ReLU, TopK, Union, from_record

shapes = st.tuples(st.integers(0, 6), st.integers(1, 12), st.integers(0, 10_000))


def random(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn(shape[0], shape[1], generator=torch.Generator().manual_seed(shape[2]))


def dense_topk(z: torch.Tensor, k: int) -> torch.Tensor:
    """By sorting each row in Python."""
    out = torch.zeros_like(z)
    for row in range(len(z)):
        for j in sorted(range(z.shape[1]), key=lambda j: -float(z[row, j]))[:k]:
            out[row, j] = max(float(z[row, j]), 0.0)
    return out


@given(shapes)
def test_relu_codes_are_the_positive_pre_activations(shape):
    z = random(shape)
    codes = ReLU()(z)
    assert torch.equal(codes.dense(), z.clamp_min(0))
    assert (codes.values > 0).all()


@given(shapes, st.integers(1, 15))
def test_topk_codes_are_the_k_largest_without_their_negative_part(shape, k):
    z = random(shape)
    codes = TopK(k)(z)
    assert torch.equal(codes.dense(), dense_topk(z, k))
    assert (codes.offsets.diff() == min(k, shape[1])).all()


@given(shapes)
def test_counts_agree_with_the_dense_matrix(shape):
    z = random(shape)
    for codes in (ReLU()(z), TopK(3)(z)):
        assert torch.equal(codes.l0(), (codes.dense() != 0).sum(dim=1))
        assert torch.equal(codes.firings(), (codes.dense() != 0).sum(dim=0))
        assert codes.n_tokens == len(z)


@given(shapes, shapes)
def test_concatenated_codes_are_the_rows_one_after_the_other(one, other):
    a, b = random(one), random((other[0], one[1], other[2]))
    assert torch.equal(concatenate([ReLU()(a), ReLU()(b)]).dense(), ReLU()(torch.cat([a, b])).dense())


@given(shapes, shapes, st.integers(1, 4), st.integers(0, 1000))
def test_a_union_is_each_donors_own_codes_at_the_latents_that_emit(one, other, k, seed):
    a, b = random(one), random((one[0], other[1], other[2]))
    emits = torch.rand(a.shape[1] + b.shape[1], generator=torch.Generator().manual_seed(seed)) < 0.7
    union = Union(((a.shape[1], TopK(k)), (b.shape[1], ReLU())), emits)
    expected = torch.cat([dense_topk(a, k), b.clamp_min(0)], dim=1) * emits
    codes = union(torch.cat([a, b], dim=1))
    assert torch.equal(codes.dense(), expected)
    assert emits[codes.indices].all()


@pytest.mark.parametrize("activation", [ReLU(), TopK(7)])
def test_a_record_says_all_there_is(activation):
    assert from_record(activation.record(), activation.tensors(), 9) == activation


def test_a_union_comes_back_from_its_record():
    union = Union(
        ((2, TopK(1)), (3, Union(((3, ReLU()),), torch.ones(3, dtype=torch.bool)))),
        torch.tensor([1, 0, 1, 1, 0]).bool(),
    )
    with pytest.raises(DictlabError, match="a union itself"):
        from_record(union.record(), union.tensors(), 5)
    flat = Union(((2, TopK(1)), (3, ReLU())), union.emits)
    back = from_record(flat.record(), flat.tensors(), 5)
    assert back.parts == flat.parts and torch.equal(back.emits, flat.emits)


@pytest.mark.parametrize(
    "record", [{}, {"kind": "sigmoid"}, {"kind": "topk"}, {"kind": "topk", "k": 0}, {"kind": "topk", "k": "8"}]
)
def test_a_record_that_says_too_little_is_refused(record):
    with pytest.raises(DictlabError, match="activation function"):
        from_record(record, {}, 9)


def test_codes_know_the_token_of_each_entry():
    codes = Codes(torch.ones(3), torch.tensor([4, 0, 2]), torch.tensor([0, 2, 2, 3]), 5)
    assert codes.rows.tolist() == [0, 0, 2]
