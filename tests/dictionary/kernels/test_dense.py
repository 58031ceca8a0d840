"""Codes as a full matrix against the same as entries: values, gradients, counts, whole training steps."""

import pytest
import torch

from dictlab.dictionary.activation_functions import ReLU
from dictlab.dictionary.kernels import dense, sparse
from dictlab.training.objectives import Batch
from dictlab.training.variants.penalties import l1
from tests.dictionary.test_activation_functions import gated, jumprelu
from tests.planted import sparse_data
from tests.training.test_train import learner_for

RULES = [ReLU(), jumprelu(9), gated(9)]
rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)


def problem(tokens: int = 6, n: int = 9, d: int = 5, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(tokens, d), (d, n), (n,), (d,), (n, d)]
    return [torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def by_matrix(rule, x, W_enc, b_enc, centre, W_dec):
    return dense.reconstruct(x, W_enc, b_enc, rule, centre, 1.0, W_dec)


def by_entries(rule, x, W_enc, b_enc, centre, W_dec):
    codes = sparse.encode(x, W_enc, b_enc, rule, centre)
    return codes, sparse.decode(codes, W_dec)


@rules
def test_a_matrix_is_the_codes_of_its_rule(rule):
    z = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rule.matrix(z), rule(z).dense())


@rules
def test_gradients_pass_gradcheck(rule):
    """Through the reconstruction and through the codes."""
    inputs = problem()
    assert torch.autograd.gradcheck(lambda *own: (lambda c, y: (c.values, y))(*by_matrix(rule, *own)), inputs)


@rules
@pytest.mark.parametrize("p", [None, 1.0, 0.5, 2.0])
@pytest.mark.parametrize("rows", [512, 7])
def test_both_ways_have_the_same_values_and_gradients(monkeypatch, rule, p, rows):
    """In float32 at 1e-4, with and without a penalty on the codes, in one block of tokens and in several."""
    monkeypatch.setattr(dense, "ROWS", rows)
    monkeypatch.setattr(dense, "BLOCK", rows)
    monkeypatch.setattr(dense, "SUMMED", 2 * rows)
    results = []
    for way in (by_matrix, by_entries):
        inputs = problem(50, dtype=torch.float32)
        codes, y = way(rule, *inputs)
        loss = y.square().sum() + (0 if p is None else l1(codes, 5, p))
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_counts_and_lists_are_those_of_the_entries():
    inputs = problem(30)
    (matrix, _), (entries, _) = (way(ReLU(), *inputs) for way in (by_matrix, by_entries))
    assert (matrix.n_tokens, matrix.n_latents) == (entries.n_tokens, entries.n_latents) == (30, 9)
    assert torch.equal(matrix.l0(), entries.l0()) and torch.equal(matrix.active_counts(), entries.active_counts())
    assert torch.equal(matrix.active_latents(), entries.active_latents())
    for one, other in zip(matrix.to_sparse()[:3], entries.to_sparse()[:3], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("shift", "expected"), [(0.0, True), (-100.0, False)])
@pytest.mark.parametrize("tokens", [1, 50, 1000])
def test_a_matrix_pays_where_many_latents_are_active(shift, expected, tokens):
    x, W_enc, b_enc, centre, _ = problem(tokens)
    assert dense.pays(x, W_enc, b_enc + shift, ReLU(), centre) == expected


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_tokens_at_all_have_no_codes_and_no_gradient(monkeypatch, share):
    monkeypatch.setattr(dense, "SHARE", share)
    inputs = problem(0)
    codes, y = by_matrix(ReLU(), *inputs)
    assert codes.dense().shape == (0, 9) and y.shape == (0, 5)
    y.sum().backward()
    assert not any(own.grad.any() for own in inputs)
    assert not dense.pays(*inputs[:3], ReLU(), inputs[3])


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_training_goes_the_same_way_by_matrix_and_by_entries(monkeypatch, p):
    """Twenty steps, weights and what the log says, at 1e-4."""
    x, _ = sparse_data(256)
    ways, counts, original = [], [], dense.reconstruct
    monkeypatch.setattr(dense, "reconstruct", lambda *own: counts.append(1) or original(*own))
    for share in (0.0, 1.0):
        monkeypatch.setattr(dense, "SHARE", share)
        learner = learner_for(x, activation="relu", l1=(0.1,), p_norm=p, lr=1e-2)
        log = [learner.step(Batch(x), None) for _ in range(20)][-1]
        ways.append([*learner.parameters, learner.since_fired, *log.values()])
        assert len(counts) == 20
    for one, other in zip(*ways, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
