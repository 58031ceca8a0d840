"""What a missing field means, beside what the releases of each library have as the default of their classes."""

import pytest

from dictlab.formats.libraries.defaults import DICTIONARY_LEARNING, FIRST, SAELENS, SPARSIFY, default

# What the released packages have: of each field, versions beside the default that their source gives.
RELEASED = {
    "rescale_acts_by_decoder_norm of batchtopk": {
        **dict.fromkeys(("6.1.0", "6.5.3", "6.12.3", "6.13.0", "6.13.1"), False),  # no such field
        **dict.fromkeys(("6.14.0", "6.15.0", "6.22.3", "6.41.2", "6.54.12"), True),
    },
    "rescale_acts_by_decoder_norm": dict.fromkeys(("6.0.0", "6.13.1", "6.14.0", "6.54.12"), False),
    "apply_b_dec_to_input": dict.fromkeys(("0.1.0", "0.5.1", "2.1.3", "3.0.0", "5.11.0", "6.0.0", "6.54.12"), True),
    "normalize_activations": dict.fromkeys(("0.1.0", "1.8.0", "3.5.0", "5.11.0", "6.0.0", "6.54.12"), "none"),
    "activation_fn": dict.fromkeys(("0.1.0", "1.0.0", "3.0.0", "5.11.0"), "relu"),
    "finetuning_scaling_factor": {
        **dict.fromkeys(("0.5.1", "1.0.0", "2.1.3"), True),
        **dict.fromkeys(("3.0.0", "3.23.4", "4.4.5", "5.11.0", "6.0.0"), False),
    },
    "architecture": {**dict.fromkeys(("0.1.0", "3.5.0", "5.11.0"), "standard"), "6.0.0": None},
    "dtype": dict.fromkeys(("0.1.0", "0.5.1", "3.0.0", "6.54.12"), "float32"),
}


@pytest.mark.parametrize(("field", "released"), RELEASED.items())
def test_a_missing_field_of_saelens_means_what_that_version_had(field, released):
    assert {version: default(SAELENS, field, version) for version in released} == released


@pytest.mark.parametrize("version", ["0.0.1", "1.0.0", "1.1.3", "1.2.2", "1.3.3"])
def test_a_missing_field_of_sparsify_means_the_same_in_every_release(version):
    assert {name: default(SPARSIFY, name, version) for name in SPARSIFY} == {
        "activation": "topk",
        "signed": False,
        "num_latents": 0,
        "transcode": False,
        "skip_connection": False,
        "multi_topk": False,
        "normalize_decoder": True,
    }


@pytest.mark.parametrize("table", [SAELENS, SPARSIFY, DICTIONARY_LEARNING])
def test_without_a_version_the_earliest_meaning_holds_and_periods_are_in_order(table):
    for name, entries in table.items():
        since = [entry.since for entry in entries]
        assert since == sorted(set(since)) and since[0] == FIRST
        assert default(table, name) == entries[0].value == default(table, name, "no version")
