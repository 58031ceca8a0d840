"""A dictionary of tensors that are there already: the formula of the papers, and what does not fit is named."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dictlab import Dictionary, DictlabError, ReLU, TopK
from dictlab.dictionary.activation_functions import JumpReLU
from dictlab.dictionary.normalisation import Scale
from tests.planted import random_dictionary

GENERATOR = torch.Generator().manual_seed(0)
W_ENC, B_ENC = torch.randn(4, 6, generator=GENERATOR), torch.randn(6, generator=GENERATOR)
W_DEC, B_DEC = torch.randn(6, 4, generator=GENERATOR), torch.randn(4, generator=GENERATOR)
X = torch.randn(10, 4, generator=GENERATOR)
GIVEN = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, "activation": "relu"}


def test_one_bias_is_subtracted_before_and_added_after():
    expected = ((X - B_DEC) @ W_ENC + B_ENC).relu() @ W_DEC + B_DEC
    assert torch.allclose(Dictionary.from_tensors(**GIVEN).reconstruct(X), expected, atol=1e-5)


def test_two_biases_and_none():
    biases = {"b_dec": None, "b_pre": 0, "b_out": B_DEC}
    expected = (X @ W_ENC).relu() @ W_DEC + B_DEC
    made = Dictionary.from_tensors(**{**GIVEN, "b_enc": 0, **biases})
    assert torch.allclose(made.reconstruct(X), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "more", "function"),
    [
        ("topk:2", {}, TopK(2)),
        ("jumprelu:0.5", {}, JumpReLU(torch.full((6,), 0.5))),
        ("jumprelu", {"threshold": torch.arange(6.0) / 6}, JumpReLU(torch.arange(6.0) / 6)),
        (TopK(3), {}, TopK(3)),
    ],
)
def test_activation_functions_by_name(name, more, function):
    made = Dictionary.from_tensors(**{**GIVEN, "activation": name, **more})
    relu = Dictionary.from_tensors(**GIVEN)
    assert torch.equal(made.reconstruct(X), replace(relu, activation=function).reconstruct(X))


def test_arrays_half_precision_and_parameters_become_float32_without_gradients():
    weights = {"W_enc": W_ENC.numpy(), "W_dec": torch.nn.Parameter(W_DEC), "b_enc": B_ENC.bfloat16()}
    made = Dictionary.from_tensors(**{**GIVEN, **weights}, firing_rate=np.full(6, 0.5))
    assert all(t.dtype == torch.float32 and not t.requires_grad for _, t in made._weights())
    assert torch.equal(made.W_dec, W_DEC) and made.firing_rate.tolist() == [0.5] * 6


def test_what_is_known_of_it_is_kept():
    made = Dictionary.from_tensors(
        **GIVEN, name="mine", site="blocks.1.hook_resid_pre", model="gpt2", normalisation=Scale(2.0)
    )
    assert (made.name, made.metadata.site, made.metadata.model) == ("mine", "blocks.1.hook_resid_pre", "gpt2")
    assert torch.allclose(made.reconstruct(X), Dictionary.from_tensors(**GIVEN).reconstruct(2 * X) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_enc": W_ENC.T}, r"W_enc has shape \[6, 4\]; expected \[4, 6\].*transposed it would fit"),
        ({"W_dec": B_DEC}, r"W_dec has shape \[4\]; expected \[n_latents, d_in\]"),
        ({"b_enc": B_DEC}, r"b_enc has shape \[4\]; expected \[6\]"),
        ({"b_dec": None}, "b_pre is missing.*or 0 where there is none, or b_dec"),
        ({"b_enc": None}, "b_enc is missing"),
        ({"b_pre": B_DEC}, "b_dec stands for both"),
        ({"W_enc": W_ENC.long()}, "W_enc holds int64; expected floating-point"),
        ({"W_enc": W_ENC.tolist()}, "W_enc is a list; expected a tensor"),
        ({"b_enc": 0.5}, "b_enc is a float; expected a tensor"),
        ({"b_enc": B_ENC / 0}, "b_enc holds 6 values that are NaN or infinite"),
        ({"activation": "topk"}, "activation is 'topk'; expected topk:k with k from 1 to 6"),
        ({"activation": "topk:7"}, "k from 1 to 6"),
        ({"activation": "softplus"}, "activation is 'softplus'; expected one of relu, jumprelu"),
        ({"activation": "jumprelu"}, "the tensor 'threshold' is missing"),
        ({"activation": "jumprelu", "threshold": B_DEC}, "threshold has shape"),
        ({"activation": "relu:1"}, "activation is 'relu:1'"),
        ({"threshold": B_ENC}, "threshold is given"),
        ({"firing_rate": B_DEC.abs()}, "firing_rate has shape"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(DictlabError, match=message):
        Dictionary.from_tensors(**{**GIVEN, **change})


def test_the_constructor_refuses_shapes_and_types_that_do_not_fit():
    good = random_dictionary(activation=ReLU())
    for change, name in (
        ({"b_out": torch.zeros(9)}, "b_out"),
        ({"W_enc": good.W_enc.T}, "W_enc"),
        ({"b_enc": torch.zeros(24, dtype=torch.long)}, "b_enc"),
        ({"firing_rate": torch.zeros(3)}, "firing_rate"),
        ({"activation": "relu"}, "from_tensors takes a name"),
    ):
        with pytest.raises(DictlabError, match=name):
            replace(good, **change)
