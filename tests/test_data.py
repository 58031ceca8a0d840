"""Analyses of plain activations: the same numbers as with the model that they come from, and no model opened."""

import numpy as np
import pytest
import torch

from analyses.novelty import novelty
from dictlab import DictlabError
from dictlab.activations import ModelActivations
from tests.planted import SITE, random_dictionary, tiny_model


def test_plain_activations_give_the_same_effects_as_the_model_that_they_come_from(tmp_path, text):
    """The activations of the sample, saved as sequences and as rows; no model is opened for them."""
    model = tiny_model()
    small, large = (random_dictionary(n, 16, seed=n, name=f"d{n}") for n in (12, 24))
    with_model = novelty(small, large, model=model, text=text, tokens=640, cards=0)
    x = torch.cat(list(ModelActivations(model, text, SITE, 32).sample(640)))
    np.save(tmp_path / "x.npy", x.numpy())
    for data in (x, str(tmp_path / "x.npy")):
        plain = novelty(small, large, data=data, tokens=10**6)
        a, b = (r.tables["latents"].frame.sort_values("latent", ignore_index=True) for r in (with_model, plain))
        np.testing.assert_allclose(a["change in MSE"], b["change in MSE"], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(a["standard error"], b["standard error"], rtol=1e-3, atol=1e-7)
    assert (
        not plain.cards and plain.settings["data_unit"] == "sequences" and not any("rows" in w for w in plain.warnings)
    )
    rows = novelty(small, large, data=x.flatten(0, 1), tokens=10**6)
    assert any("over blocks of 10 rows of array" in warning for warning in rows.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": torch.zeros(64, 5)}, "activations of width 5; d12 reads 16"),
        ({"data": torch.zeros(64, 16), "behaviour": 3}, "needs a model; data has none"),
        ({"data": torch.zeros(64, 16), "model": "x"}, "a model and data are given"),
    ],
)
def test_plain_activations_that_do_not_fit_are_refused(options, message):
    small, large = (random_dictionary(n, 16, seed=n, name=f"d{n}") for n in (12, 24))
    with pytest.raises(DictlabError, match=message):
        novelty(small, large, **options)
