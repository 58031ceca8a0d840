"""Products against torch's own, values and gradients."""

import pytest
import torch
from torch import nn

from dictlab.numerics.linear import FrozenProducts


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (0, 5)])
def test_frozen_linear_layers_give_the_same_values_and_gradients(bias, shape):
    layer, results = nn.Linear(5, 7, bias=bias).requires_grad_(False), []
    x = torch.randn(shape, requires_grad=True)
    for mode in (FrozenProducts(), torch.enable_grad()):
        with mode:
            out = layer(x).square()
        results.append([out, torch.autograd.grad(out.sum(), x)[0]])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_layers_in_training_keep_their_gradients():
    layer = nn.Linear(5, 7)
    with FrozenProducts():
        layer(torch.randn(3, 5)).sum().backward()
    assert layer.weight.grad.any() and layer.bias.grad.any()
