"""Dictionaries in memory are the same functions as those of files of the same content."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from dictlab import DictlabError, TopK, load
from dictlab.formats.in_memory import from_saelens, from_tensors
from tests.planted import random_dictionary

D = random_dictionary(activation=TopK(4))
WEIGHTS = {"W_enc": D.W_enc, "b_enc": D.b_enc, "W_dec": D.W_dec, "b_pre": D.b_pre, "b_out": D.b_out}
X = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
CONFIG = {
    "architecture": "topk", "k": 4, "d_in": 8, "d_sae": 24, "dtype": "float32", "apply_b_dec_to_input": True,
    "normalize_activations": "none", "reshape_activations": "none", "rescale_acts_by_decoder_norm": False,
    "metadata": {"sae_lens_version": "6.20.1", "hook_name": "blocks.1.hook_resid_pre", "model_name": "gpt2-small"},
}  # fmt: skip


def sae() -> SimpleNamespace:
    tensors = {"W_enc": D.W_enc, "b_enc": D.b_enc, "W_dec": D.W_dec, "b_dec": D.b_out}
    return SimpleNamespace(cfg=SimpleNamespace(to_dict=lambda: dict(CONFIG)), state_dict=lambda: dict(tensors))


def test_a_dict_of_weights():
    ours = from_tensors({**WEIGHTS, "activation": "topk:4", "normalisation": "none", "site": "blocks.1.hook_resid_pre"})
    assert torch.equal(ours.reconstruct(X), D.reconstruct(X))
    assert ours.metadata.site == "blocks.1.hook_resid_pre"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"activation": None}, "activation"),
        ({"W_enc": D.W_enc.T}, "W_enc"),
        ({"b_enc": torch.full_like(D.b_enc, torch.nan)}, "b_enc"),
        ({"W_extra": D.W_enc}, "W_extra"),
    ],
)
def test_what_a_dict_does_not_say_is_not_guessed(change, named):
    weights = {**WEIGHTS, "activation": "topk:4", "normalisation": "none"} | change
    with pytest.raises(DictlabError, match=f"tensors in memory: .*{named}"):
        from_tensors({name: value for name, value in weights.items() if value is not None})


def test_an_sae_of_saelens_is_read_as_its_file_is(tmp_path):
    save_file(
        {name: tensor.contiguous() for name, tensor in sae().state_dict().items()}, tmp_path / "sae_weights.safetensors"
    )
    (tmp_path / "cfg.json").write_text(json.dumps(CONFIG))
    theirs, ours = load(tmp_path), from_saelens(sae())
    assert torch.equal(ours.reconstruct(X), theirs.reconstruct(X))
    assert ours.metadata == theirs.metadata
    assert ours.path is None and "SAE in memory" in ours.name


def test_files_in_the_current_folder_are_none_of_its(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"sparsity": torch.full((24,), -1.0)}, "sparsity.safetensors")
    assert from_saelens(sae()).firing_rate is None


def test_other_objects_are_refused():
    with pytest.raises(DictlabError, match=r"torch.nn.*Linear is no dictionary"):
        from_saelens(torch.nn.Linear(2, 2))
