"""A step of the weights against the same by plain operators, one after the other."""

import pytest
import torch
from torch.nn.functional import normalize

from dictlab.training.learner import optimizer_step


def parameters(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(*shape, generator=generator).requires_grad_() for shape in ((1500, 6), (1500,), (6,))]
    for own in made:
        own.grad = torch.randn(own.shape, generator=generator)
    return made


def test_a_projected_gradient_has_no_part_along_its_row_and_keeps_the_rest():
    rows, gradient = normalize(torch.randn(1500, 6), dim=1), torch.randn(1500, 6)
    expected = gradient - (gradient * rows).sum(dim=1, keepdim=True) * rows
    optimizer_step.project(gradient, rows)
    torch.testing.assert_close(gradient, expected)
    assert (gradient * rows).sum(dim=1).abs().max() <= 1e-5


@pytest.mark.parametrize("limit", [0.1, 1e9])
def test_a_clipped_step_is_clipping_and_then_adam(limit):
    """Two steps, so that moments count; the scaled gradients stay behind."""
    ours, theirs = parameters(), parameters()
    fused, plain = (torch.optim.Adam(own, lr=0.1, fused=kind) for own, kind in ((ours, True), (theirs, False)))
    for _ in range(2):
        optimizer_step.clipped_step(fused, ours, limit)
        torch.nn.utils.clip_grad_norm_(theirs, limit)
        plain.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-8)
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_a_limit_of_zero_makes_every_gradient_of_norm_one(factor):
    ours, theirs = parameters(), parameters()
    fused, plain = (torch.optim.Adam(own, lr=0.1, fused=kind) for own, kind in ((ours, True), (theirs, False)))
    for own in ours:
        own.grad *= factor
    norm = torch.cat([own.grad.flatten() for own in theirs]).norm()
    for own in theirs:
        own.grad /= norm
    optimizer_step.clipped_step(fused, ours, 0.0)
    plain.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [0.0, None])
def test_a_gradient_of_zero_is_no_step(limit):
    ours = parameters()
    for own in ours:
        own.grad.zero_()
    before = [own.detach().clone() for own in ours]
    optimizer_step.clipped_step(torch.optim.Adam(ours, fused=True), ours, limit)
    assert all(torch.equal(one, other) for one, other in zip(ours, before, strict=True))


def test_without_a_limit_gradients_are_taken_as_they_are():
    ours, theirs = parameters(), parameters()
    optimizer_step.clipped_step(torch.optim.Adam(ours, lr=0.1, fused=True), ours, None)
    torch.optim.Adam(theirs, lr=0.1).step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_parameters_without_a_gradient_stay_where_they_are():
    ours = parameters()
    ours[1].grad = None
    before = ours[1].detach().clone()
    optimizer_step.clipped_step(torch.optim.Adam(ours, fused=True), ours, 1.0)
    assert torch.equal(ours[1], before)


def test_renormalised_rows_have_unit_length_and_zero_rows_stay():
    rows = torch.randn(5, 3)
    rows[2] = 0
    optimizer_step.renormalise(rows)
    torch.testing.assert_close(rows.norm(dim=1), torch.tensor([1.0, 1, 0, 1, 1]))
