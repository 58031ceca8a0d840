"""The mean squared error against torch's own: value, gradient, precision, nothing at all."""

import pytest
import torch
from torch.nn.functional import mse_loss

from dictlab.dictionary.kernels import error
from dictlab.dictionary.kernels.error import squared_error


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_value_and_gradient_are_torchs(monkeypatch, rows):
    monkeypatch.setattr(error, "ROWS", 7)
    x_hat, x = torch.randn(rows, 5, requires_grad=True), torch.randn(rows, 5)
    torch.testing.assert_close(squared_error(x_hat, x), mse_loss(x_hat, x))
    one, other = (torch.autograd.grad(3 * f(x_hat, x), x_hat)[0] for f in (squared_error, mse_loss))
    torch.testing.assert_close(one, other)


def test_the_gradient_passes_gradcheck():
    x_hat, x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.randn(6, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(squared_error, (x_hat, x))


def test_a_row_may_be_one_vector_for_all():
    x = torch.randn(600, 5)
    mean = x.mean(dim=0)
    torch.testing.assert_close(squared_error(mean.expand_as(x), x), (x - mean).square().mean())
