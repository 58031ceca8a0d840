"""Files of Qwen-Scope: the formula of its model cards, and what only the repository's name says."""

import numpy as np
import pytest
import torch

import dictlab
from tests.dense import agrees, draw, largest, refused, relu

D, M, K = 12, 2048, 50
REPOSITORY = "models--Qwen--SAE-Res-Qwen3-1.7B-Base-W2K-L0_50"


def tensors(**changes):
    return {
        "W_enc": torch.from_numpy(0.3 * draw(M, D, seed=1)),
        "W_dec": torch.from_numpy(0.3 * draw(D, M, seed=2)),
        "b_enc": torch.from_numpy(0.1 * draw(M, seed=3)),
        "b_dec": torch.from_numpy(0.3 * draw(D, seed=4)),
    } | changes


def saved(folder, weights=None, name="layer11.sae.pt"):
    folder.mkdir(parents=True)
    torch.save(weights or tensors(), folder / name)
    return folder / name


def test_codes_and_reconstructions_are_those_of_the_formula(tmp_path):
    dictionary = dictlab.load(saved(tmp_path / REPOSITORY / "snapshots" / "abc"))
    x = draw(40, D, seed=9)
    t = {name: value.double().numpy() for name, value in tensors().items()}
    f = relu(largest(x.astype(np.float64) @ t["W_enc"].T + t["b_enc"], K))
    agrees(dictionary, x, f, f @ t["W_dec"].T + t["b_dec"])
    about = dictionary.metadata
    assert (about.model, about.site) == ("Qwen/Qwen3-1.7B-Base", "blocks.11.hook_resid_post")
    assert about.convention == "huggingface"


def test_without_the_repositorys_name_k_is_asked_for_and_the_map_is_the_same(tmp_path):
    path = saved(tmp_path / "elsewhere")
    with refused(path, "Qwen-Scope", "`map=...` W_enc=W_enc.T", "topk:K"):
        dictlab.load(path)
    map = {"W_enc": "W_enc.T", "W_dec": "W_dec.T", "b_enc": "b_enc", "b_pre": "zero", "b_out": "b_dec"}
    mapped = dictlab.load(path, map=map | {"normalisation": "none", "activation": f"topk:{K}"})
    x = torch.from_numpy(draw(5, D))
    assert torch.equal(mapped.reconstruct(x), dictlab.load(saved(tmp_path / REPOSITORY)).reconstruct(x))


@pytest.mark.parametrize("name", ["SAE-Res-Qwen3-1.7B-Base-W4K-L0_50"])
def test_another_width_than_the_name_says_is_refused(tmp_path, name):
    path = saved(tmp_path / name)
    with refused(path, "W_enc", "[4096"):
        dictlab.load(path)
