"""Sparse kernels against dense autograd: values to 1e-5 in float32, gradients by gradcheck in float64."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dictlab.dictionary.activation_functions import AbsTopK, BatchTopK, Gated, GroupMax, JumpReLU, ReLU, TopK
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.kernels import sparse
from dictlab.dictionary.union import Union
from dictlab.numerics.linear import affine
from tests.dictionary.test_activation_functions import every, gated, jumprelu

ACTIVATIONS = [ReLU(), TopK(3), TopK(30), TopK(1)]
SHARES = [0.0, 1.0]  # by dense products, by sparse ones
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def problem(tokens: int, n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, d), (d, n), (n,), (n, d)]
    return [torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def dense_reference(h, W_enc, b_enc, W_dec, activation):
    """The same by plain operators on full matrices."""
    return dense_codes(h @ W_enc + b_enc, activation) @ W_dec


def dense_codes(z, activation):
    """The formula on the full matrix of pre-activations; the selection itself has no gradient."""
    if isinstance(activation, Union):
        parts = z.split([width for width, _ in activation.parts], dim=1)
        made = [dense_codes(part, own) for part, (_, own) in zip(parts, activation.parts, strict=True)]
        return torch.cat(made, dim=1) * activation.emits
    if isinstance(activation, JumpReLU):
        return torch.relu(z) * (z > activation.threshold.to(z))
    if isinstance(activation, Gated):
        b_gate, r_mag, b_mag = (t.to(z) for t in activation.tensors().values())
        return (z + b_gate > 0) * torch.relu(z * r_mag.exp() + b_mag)
    mask, n = torch.zeros_like(z), z.shape[1]
    if isinstance(activation, TopK):
        mask.scatter_(1, z.topk(min(activation.k, n), dim=1).indices, 1.0)
    elif isinstance(activation, AbsTopK):
        mask.scatter_(1, z.abs().topk(min(activation.k, n), dim=1).indices, 1.0)
        return z * mask
    elif isinstance(activation, GroupMax):
        grouped = z.unflatten(1, (activation.k, -1))
        mask.view(grouped.shape).scatter_(2, grouped.argmax(dim=2, keepdim=True), 1.0)
    elif isinstance(activation, BatchTopK):
        mask.view(-1)[z.flatten().topk(min(activation.k * len(z), z.numel())).indices] = 1.0
    else:
        mask.fill_(1.0)
    return torch.relu(z) * mask


@given(st.integers(1, 7), st.integers(1, 30), st.integers(1, 9), st.integers(0, 10_000), st.data())
def test_values_and_gradients_agree_with_dense_autograd(tokens, n, d, seed, data):
    """1e-5 absolute and relative: float32 sums of at most 30 terms of order 10."""
    activation = data.draw(st.sampled_from([*ACTIVATIONS, *every(n, 3, seed)]))
    inputs = problem(tokens, n, d, seed)
    h, W_enc, b_enc, W_dec = inputs
    weight = torch.randn(tokens, d, generator=torch.Generator().manual_seed(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "DENSE", data.draw(st.sampled_from(SHARES)))
        out = sparse.decode(sparse.encode(h, W_enc, b_enc, activation), W_dec)
        found = torch.autograd.grad((out * weight).sum(), inputs)
    expected = dense_reference(h, W_enc, b_enc, W_dec, activation)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *every(9, 3, 0)], ids=lambda activation: activation.kind)
@pytest.mark.parametrize("share", SHARES)
def test_gradients_pass_gradcheck(activation, share, monkeypatch):
    monkeypatch.setattr(sparse, "DENSE", share)
    inputs = problem(6, 9, 5, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda h, E, b, D: sparse.decode(sparse.encode(h, E, b, activation), D), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_do_not_care_in_which_precision_a_threshold_or_gate_is_kept(dtype):
    """Against dense autograd at 1e-4, which reads the same rounded numbers and computes in float32."""
    for exact in (jumprelu(9), gated(9), Union(((9, gated(9)),), torch.ones(9).bool())):
        own = (
            tensor.to(dtype) for tensor in (exact.parts[0][1] if isinstance(exact, Union) else exact).tensors().values()
        )
        made = (JumpReLU if isinstance(exact, JumpReLU) else Gated)(*own)
        activation = Union(((9, made),), torch.ones(9).bool()) if isinstance(exact, Union) else made
        inputs = problem(6, 9, 5, 3)
        h, W_enc, b_enc, W_dec = inputs
        found = torch.autograd.grad(
            sparse.decode(sparse.encode(h, W_enc, b_enc, activation), W_dec).square().sum(), inputs
        )
        wanted = torch.autograd.grad(dense_reference(*inputs, activation).square().sum(), inputs)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_half_a_unions_slope_is_not_rounded_to_less_than_its_parts():
    """A gate's factor in float64 survives beside a part whose slope is 1."""
    own = gated(4)
    precise = Gated(own.b_gate.double(), own.r_mag.double(), own.b_mag.double())
    union = Union(((2, ReLU()), (4, precise)), torch.ones(6).bool())
    assert torch.equal(union.slope(torch.tensor([0, 3, 5, 1])), torch.cat([torch.ones(1), precise.r_mag[[1, 3]].exp(), torch.ones(1)]).double())  # fmt: skip


@given(st.integers(1, 7), st.integers(1, 30), st.integers(1, 9), st.integers(0, 10_000), st.data())
def test_half_precision_chooses_latents_and_has_no_part_in_values_and_gradients(tokens, n, d, seed, data):
    """At whatever was chosen they are those of dense autograd in float32, tolerances as there."""
    activation = data.draw(st.sampled_from([*ACTIVATIONS, *every(n, 3, seed)]))
    inputs = problem(tokens, n, d, seed)
    h, W_enc, b_enc, W_dec = inputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "DENSE", data.draw(st.sampled_from(SHARES)))
        codes = sparse.encode(h, W_enc, b_enc, activation, dtype=torch.bfloat16)
        out = sparse.decode(codes, W_dec)
        found = torch.autograd.grad(out.square().sum(), inputs)
    z = (h @ W_enc + b_enc)[codes.rows, codes.indices]
    dense = torch.zeros(tokens, n).index_put((codes.rows, codes.indices), activation.emitted(z, codes.indices))
    expected = dense @ W_dec
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(found, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


@given(st.integers(1, 7), st.integers(4, 60), st.integers(1, 9), st.integers(0, 10_000))
def test_half_precision_mistakes_only_latents_that_are_nearly_equal(tokens, n, d, seed):
    """Inputs and the result are rounded by 2^-9 of their size each, so a sum by 2^-7 of its terms' at most."""
    h, W_enc, b_enc, _ = problem(tokens, n, d, seed)
    codes = sparse.encode(h, W_enc, b_enc, TopK(3), dtype=torch.bfloat16)
    z, size = h @ W_enc + b_enc, h.abs() @ W_enc.abs() + b_enc.abs()
    bound = z.topk(3, dim=1).values[:, -1] - 2 * 2**-7 * size.amax(dim=1)
    assert (z[codes.rows, codes.indices] >= bound[codes.rows]).all()


@given(st.integers(1, 7), st.integers(1, 30), st.integers(1, 9), st.integers(0, 10_000))
def test_what_is_subtracted_from_the_input_has_its_own_gradient(tokens, n, d, seed):
    """The same as subtracting it outside, values and gradients."""
    x, W_enc, b_enc, W_dec = problem(tokens, n, d, seed, torch.float64)
    centre = torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    inputs, results = [x, W_enc, b_enc, centre], []
    for codes in (sparse.encode(x, W_enc, b_enc, TopK(3), centre), sparse.encode(x - centre, W_enc, b_enc, TopK(3))):
        out = sparse.decode(codes, W_dec).square().sum()
        results.append([out, *torch.autograd.grad(out, inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *every(9, 3, 0)], ids=lambda activation: activation.kind)
def test_dense_and_sparse_products_are_the_same_sums(monkeypatch, activation):
    inputs, results = problem(6, 9, 5, 3, torch.float64), []
    for share in SHARES:
        monkeypatch.setattr(sparse, "DENSE", share)
        out = sparse.decode(sparse.encode(*inputs[:3], activation), inputs[3])
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("share", SHARES)
def test_entries_that_repeat_add_up_in_every_product(monkeypatch, share):
    monkeypatch.setattr(sparse, "DENSE", share)
    codes = Codes(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 1, 0]), torch.tensor([0, 2, 3]), 3)
    assert sparse.decode(codes, torch.eye(3)).tolist() == [[0, 3, 0], [4, 0, 0]]
    assert sparse.transposed(codes, torch.eye(2)).tolist() == [[0, 4], [3, 0], [0, 0]]
    assert sparse.products_at(codes, torch.eye(2), torch.arange(6.0).view(3, 2)).tolist() == [2, 2, 1]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.kind)
def test_encoding_in_blocks_has_the_same_gradients(monkeypatch, activation):
    monkeypatch.setattr(sparse, "DENSE", 1.0)
    inputs, results = problem(50, 30, 9, 0), []
    for rows in (256, 7):
        monkeypatch.setattr(sparse, "ROWS", rows)
        monkeypatch.setattr(sparse, "BLOCK", rows)
        out = sparse.decode(sparse.encode(*inputs[:3], activation), inputs[3]).square().sum()
        results.append([out, *torch.autograd.grad(out, inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@given(st.integers(0, 5000), st.integers(1, 600))
def test_blocks_make_up_the_whole_and_shrink(total, size):
    """None is larger than asked for by more than their number."""
    sizes = sparse.falling(total, size)
    assert sum(sizes) == total and (min(sizes) > 0 or total == 0)
    assert max(sizes) <= size + len(sizes)
    assert all(a >= b for a, b in pairwise(sizes))


@given(st.integers(1, 7), st.floats(0.1, 9.0), st.integers(0, 10_000))
def test_factors_and_biases_are_those_of_plain_operators(tokens, factor, seed):
    """`(factor x - centre) W_enc + b_enc` in, `factor (f W_dec + bias)` out; values and gradients, in float64."""
    generator = torch.Generator().manual_seed(seed)
    inputs, results = problem(tokens, 9, 5, seed, torch.float64), []
    own = [torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    x, W_enc, b_enc, W_dec = inputs
    centre, bias = own
    codes = sparse.encode(x, W_enc, b_enc, TopK(3), centre, factor)
    dense = dense_codes((factor * x - centre) @ W_enc + b_enc, TopK(3))
    for out in (sparse.decode(codes, W_dec, bias, factor), factor * (dense @ W_dec + bias)):
        results.append([out, *torch.autograd.grad(out.square().sum(), [*inputs, *own])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 5, 7), (1, 1, 1), (300, 70, 33)])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_encoders_product_is_a_product_with_a_bias(dtype, shape, transposed):
    tokens, n, d = shape
    h, W, b = torch.randn(tokens, d, dtype=dtype), torch.randn(d, n, dtype=dtype), torch.randn(n, dtype=dtype)
    W = W.T.contiguous().T if transposed else W
    torch.testing.assert_close(affine(h, W, b), (h.double() @ W.double() + b.double()).to(dtype), atol=1e-4, rtol=1e-5)
    shared = torch.randn(tokens, 2 * d, dtype=dtype)[:, ::2]  # not contiguous
    torch.testing.assert_close(affine(shared, W, b), shared @ W + b, atol=1e-4, rtol=1e-5)


def test_entries_are_sorted_by_latent_once_for_all_gradients(monkeypatch):
    monkeypatch.setattr(sparse, "DENSE", 1.0)
    sorts, original = [], torch.sort
    monkeypatch.setattr(torch, "sort", lambda *a, **k: sorts.append(1) or original(*a, **k))
    inputs = problem(6, 9, 5, 3)
    sparse.decode(sparse.encode(*inputs[:3], TopK(2)), inputs[3]).sum().backward()
    assert len(sorts) == 1


def test_without_any_latent_there_are_no_codes_and_nothing_is_decoded():
    codes = sparse.encode(torch.randn(5, 3), torch.zeros(3, 0), torch.zeros(0), ReLU())
    assert codes.n_tokens == 5 and codes.n_latents == 0 and len(codes.values) == 0
    assert torch.equal(sparse.decode(codes, torch.zeros(0, 3)), torch.zeros(5, 3))


@pytest.mark.parametrize("share", SHARES)
def test_tokens_without_any_active_latent_reconstruct_to_nothing(monkeypatch, share):
    monkeypatch.setattr(sparse, "DENSE", share)
    codes = Codes(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(4, dtype=torch.long), 5)
    W_dec = torch.randn(5, 2, requires_grad=True)
    out = sparse.decode(codes, W_dec)
    assert out.shape == (3, 2) and not out.any()
    out.sum().backward()
    assert not W_dec.grad.any()


@pytest.mark.parametrize("share", SHARES)
def test_products_are_taken_at_the_entries_only(monkeypatch, share):
    monkeypatch.setattr(sparse, "DENSE", share)
    codes = TopK(2)(torch.randn(5, 7))
    left, right = torch.randn(5, 3), torch.randn(7, 3)
    expected = (left @ right.T)[codes.rows, codes.indices]
    torch.testing.assert_close(sparse.products_at(codes, left, right), expected, atol=1e-6, rtol=1e-6)


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("activation", [*ACTIVATIONS, *every(30, 3, 0)], ids=lambda activation: activation.kind)
def test_cuda_agrees_with_cpu(activation):
    inputs = problem(50, 30, 9, 0)
    results = []
    for device in ("cpu", "cuda"):
        own = [t.detach().to(device).requires_grad_() for t in inputs]
        out = sparse.decode(sparse.encode(*own[:3], activation), own[3])
        results.append([out, *torch.autograd.grad(out.square().sum(), own)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other.cpu(), atol=1e-3, rtol=1e-3)
