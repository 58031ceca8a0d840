"""The newest entries of the tables of defaults are those of the classes that are installed."""

from dataclasses import fields

import pytest
import sae_lens
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKSAEConfig
from sparsify import SparseCoderConfig

from dictlab.formats.libraries.defaults import DICTIONARY_LEARNING, SAELENS, SPARSIFY, default
from tests.interop.test_dictionary_learning import BatchTopKSAE

pytestmark = pytest.mark.interop


def defaults_of(config) -> dict:
    return {field.name: field.default for field in fields(config)}


@pytest.mark.parametrize(
    ("config", "of_class"),
    [
        (TopKSAEConfig, ""),
        (BatchTopKTrainingSAEConfig, " of batchtopk"),
        (MatryoshkaBatchTopKTrainingSAEConfig, " of batchtopk"),
    ],
)
def test_saelens(config, of_class):
    there, version = defaults_of(config), sae_lens.__version__
    for name in ("apply_b_dec_to_input", "normalize_activations", "reshape_activations", "dtype"):
        assert default(SAELENS, name, version) == there[name]
    rescaled = "rescale_acts_by_decoder_norm"
    assert default(SAELENS, rescaled + of_class, version) == there[rescaled]


def test_sparsify():
    there = defaults_of(SparseCoderConfig)
    assert {name: default(SPARSIFY, name) for name in SPARSIFY if name in there} == {
        name: there[name] for name in SPARSIFY if name in there
    }
    assert set(SPARSIFY) - set(there) == {"signed"}


def test_dictionary_learning():
    assert float(BatchTopKSAE(4, 8, 2).threshold) == default(DICTIONARY_LEARNING, "threshold")
