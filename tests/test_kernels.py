"""Sparse kernels against dense autograd: values to 1e-5 in float32, gradients by gradcheck in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dictlab.codes import Codes
from dictlab.kernels import sparse
from dictlab.sparsity import ReLU, TopK

ACTIVATIONS = [ReLU(), TopK(3), TopK(30), TopK(1)]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def problem(tokens: int, n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, d), (d, n), (n,), (n, d)]
    return [torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def dense_reference(h, W_enc, b_enc, W_dec, activation):
    """The same by plain operators on full matrices; the selection itself has no gradient."""
    z = h @ W_enc + b_enc
    mask = torch.zeros_like(z)
    if isinstance(activation, TopK):
        mask.scatter_(1, z.topk(min(activation.k, z.shape[1]), dim=1).indices, 1.0)
    else:
        mask.fill_(1.0)
    return torch.relu(z) * mask @ W_dec


@given(st.integers(1, 7), st.integers(1, 30), st.integers(1, 9), st.integers(0, 10_000), st.sampled_from(ACTIVATIONS))
def test_values_and_gradients_agree_with_dense_autograd(tokens, n, d, seed, activation):
    """1e-5 absolute and relative: float32 sums of at most 30 terms of order 10."""
    inputs = problem(tokens, n, d, seed)
    h, W_enc, b_enc, W_dec = inputs
    weight = torch.randn(tokens, d, generator=torch.Generator().manual_seed(1))
    out = sparse.decode(sparse.encode(h, W_enc, b_enc, activation), W_dec)
    expected = dense_reference(h, W_enc, b_enc, W_dec, activation)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad((out * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_pass_gradcheck(activation):
    inputs = problem(6, 9, 5, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda h, E, b, D: sparse.decode(sparse.encode(h, E, b, activation), D), inputs)


def test_entries_that_repeat_add_up():
    codes = Codes(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 1, 0]), torch.tensor([0, 2, 3]), 3)
    W_dec = torch.eye(3)
    assert sparse.decode(codes, W_dec).tolist() == [[0, 3, 0], [4, 0, 0]]
    assert sparse.transposed(codes, torch.eye(2)).tolist() == [[0, 4], [3, 0], [0, 0]]


def test_tokens_without_any_active_latent_reconstruct_to_nothing():
    codes = Codes(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(4, dtype=torch.long), 5)
    W_dec = torch.randn(5, 2, requires_grad=True)
    out = sparse.decode(codes, W_dec)
    assert out.shape == (3, 2) and not out.any()
    out.sum().backward()
    assert not W_dec.grad.any()


def test_products_are_taken_at_the_entries_only():
    codes = TopK(2)(torch.randn(5, 7))
    left, right = torch.randn(5, 3), torch.randn(7, 3)
    expected = (left @ right.T)[codes.rows, codes.indices]
    torch.testing.assert_close(sparse.products_at(codes, left, right), expected, atol=1e-6, rtol=1e-6)


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_cuda_agrees_with_cpu(activation):
    inputs = problem(50, 30, 9, 0)
    results = []
    for device in ("cpu", "cuda"):
        own = [t.detach().to(device).requires_grad_() for t in inputs]
        out = sparse.decode(sparse.encode(*own[:3], activation), own[3])
        results.append([out, *torch.autograd.grad(out.square().sum(), own)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other.cpu(), atol=1e-3, rtol=1e-3)
