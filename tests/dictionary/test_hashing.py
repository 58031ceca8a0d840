"""One hash for the same numbers, another for others."""

from dataclasses import replace

import pytest
import torch

from dictlab import TopK, load, save
from dictlab.dictionary import hashing
from dictlab.dictionary.hashing import sha256_of_weights
from dictlab.dictionary.union import Union
from dictlab.formats import conversion
from dictlab.formats.loading import mapped
from tests.dictionary.test_activation_functions import every
from tests.planted import random_dictionary


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_files_hash_is_one_however_it_is_opened(tmp_path, dtype):
    for number, activation in enumerate(every(24, 4, 0)):
        made = random_dictionary(activation=activation).to(dtype=torch.float16).to(dtype=torch.float32)
        path = save(made, tmp_path / f"{number}.safetensors", dtype)
        opened = load(path)
        assert sha256_of_weights(mapped(path)) == sha256_of_weights(opened) == sha256_of_weights(load(path))
        if dtype != torch.bfloat16:  # which rounds these numbers again
            assert sha256_of_weights(opened) == sha256_of_weights(made)


@pytest.mark.parametrize("format", ["saelens", "sparsify", "dictionary_learning"])
def test_the_hash_survives_a_change_of_format_that_moves_no_number(tmp_path, format):
    made = random_dictionary(activation=TopK(4))
    made = replace(made, b_pre=made.b_out)
    written = conversion.write(made, tmp_path / format, format)
    assert sha256_of_weights(load(written)) == sha256_of_weights(mapped(written)) == sha256_of_weights(made)


def test_every_number_counts(monkeypatch):
    one = random_dictionary(activation=Union(((24, TopK(4)),), torch.arange(24) % 3 > 0))
    whole = sha256_of_weights(one)
    for name, tensor in one._weights():
        other = tensor.clone()
        other.view(-1)[-1] += 1
        assert sha256_of_weights(replace(one, **{name: other})) != whole
    assert sha256_of_weights(replace(one, activation=Union(((24, TopK(4)),), torch.arange(24) % 3 > 1))) != whole
    monkeypatch.setattr(hashing, "BLOCK", 7)
    assert sha256_of_weights(one) == whole, "blocks are a matter of memory alone"
