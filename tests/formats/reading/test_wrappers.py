"""State dicts within state dicts are the same functions; a temporal dictionary is refused by its name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from dictlab import DictlabError, load
from tests.formats.libraries.test_batchtopk import config as batchtopk_config
from tests.formats.libraries.test_batchtopk import tensors as batchtopk_state
from tests.formats.libraries.test_openai import TOPK, state

D, M = 12, 40
BATCHTOPK = batchtopk_config()


def saved(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


WRAPPERS = {
    "state_dict": lambda inner: {"state_dict": inner, "epoch": 3, "optimizer": {"state": {}}},
    "model_state_dict": lambda inner: {"model_state_dict": inner, "step": 7},
    "module.": lambda inner: {f"module.{n}" if torch.is_tensor(v) else n: v for n, v in inner.items()},
    "both": lambda inner: {"state_dict": {f"module._orig_mod.{n}": v for n, v in inner.items() if torch.is_tensor(v)}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_state_dict_is_the_same_dictionary(tmp_path, wrapper):
    inner = state() if wrapper == "both" else state(**TOPK)
    bare, wrapped = saved(tmp_path / "a.pt", inner), saved(tmp_path / "b.pt", WRAPPERS[wrapper](inner))
    x = torch.randn(20, D)
    one, other = load(bare), load(wrapped)
    assert torch.equal(one.reconstruct(x), other.reconstruct(x)) and one.activation == other.activation


def test_a_configuration_in_the_file_is_read_as_if_it_lay_beside(tmp_path):
    content = batchtopk_state()
    beside = saved(tmp_path / "beside" / "sae.pt", content)
    (tmp_path / "beside" / "config.json").write_text(json.dumps(BATCHTOPK))
    inside = saved(tmp_path / "inside" / "sae.pt", {"state_dict": content, "cfg": BATCHTOPK})
    one, other = load(beside), load(inside)
    assert one.activation == other.activation and torch.equal(one.W_enc, other.W_enc)


def test_what_is_around_and_not_known_to_be_harmless_is_refused(tmp_path):
    path = saved(tmp_path / "a.pt", {"state_dict": state(**TOPK), "input_mean": [0.5]})
    with pytest.raises(DictlabError, match="the entry 'input_mean' is unknown here and may change the function"):
        load(path)
    path = saved(tmp_path / "b.pt", {"state_dict": state(**TOPK, mean=torch.ones(D))})
    with pytest.raises(DictlabError, match="the tensor 'mean' is unknown here and may change the function"):
        load(path)


def test_a_mapping_names_tensors_as_the_file_has_them(tmp_path):
    path = saved(tmp_path / "a.pt", {"state_dict": state()})
    tensors = {"W_enc": "encoder.weight.T", "W_dec": "decoder.weight.T", "b_enc": "latent_bias", "b_dec": "pre_bias"}
    named = {key: f"state_dict/{name}" for key, name in tensors.items()}
    assert load(path, map=named | {"activation": "relu", "normalisation": "none"}).n_latents == M


def test_a_temporal_dictionary_is_refused_by_name(tmp_path):
    config = {"architecture": "temporal", "d_in": D, "d_sae": M, "metadata": {}}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    tensors = {"W_dec": torch.randn(M, D), "b_dec": torch.zeros(D), "attn_layers.0.k_ctx.weight": torch.randn(M, M)}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    with pytest.raises(DictlabError, match=r"'temporal'.*tokens before it"):
        load(tmp_path)
