"""Llama Scope and Qwen-Scope as SAELens reads them; llamascopium's own class, where it is installed (not in `make interop`)."""

import itertools
import math

import pytest
import torch
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file, save_file

from dictlab import load
from tests.formats.libraries import test_llamascopium, test_qwen_scope
from tests.formats.libraries.test_llamascopium import NORM, SITE, D, M

pytestmark = pytest.mark.interop

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
MODES = list(
    itertools.product(
        ["relu", "jumprelu", "topk", "batchtopk"], ["dataset-wise", "token-wise", "inference"], [True, False]
    )
)


def local(monkeypatch, folder):
    """Have SAELens find files of the Hub in a folder."""

    def found(repo=None, name=None, *, repo_id=None, filename=None, subfolder="", force_download=False):
        return str(folder / subfolder / (name or filename))

    monkeypatch.setattr(loaders, "hf_hub_download", found)


def test_llama_scope_is_what_saelens_makes_of_it(tmp_path, monkeypatch):
    """SAELens passes over decoder lengths, which released files say to select by; so they are 1 here."""
    path, _ = test_llamascopium.llama_scope(tmp_path)
    unit = load_file(path)
    unit["decoder.weight"] = torch.nn.functional.normalize(unit["decoder.weight"], dim=0)
    save_file(unit, path)
    local(monkeypatch, tmp_path)
    name = path.parent.parent.name
    cfg, state, _ = loaders.llama_scope_sae_huggingface_loader("r", name, cfg_overrides={"dtype": "float32"})
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=M, apply_b_dec_to_input=False))
    sae.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()})
    sae.fold_activation_norm_scaling_factor(math.sqrt(D) / NORM)
    x = 2 * torch.randn(80, D, generator=torch.Generator().manual_seed(0))
    codes, x_hat = load(path)(x)
    with torch.no_grad():
        torch.testing.assert_close(codes.dense(), sae.encode(x), **CLOSE)
        torch.testing.assert_close(x_hat, sae(x), **CLOSE)
    assert cfg["hook_name"] == load(path).metadata.site


def test_qwen_scope_is_what_saelens_makes_of_it(tmp_path, monkeypatch):
    repository = "SAE-Res-Qwen3-1.7B-Base-W2K-L0_50"
    path = test_qwen_scope.saved(tmp_path / repository)
    local(monkeypatch, path.parent)
    cfg, state, _ = loaders.qwen_scope_sae_huggingface_loader(f"Qwen/{repository}", path.name)
    k = cfg["activation_fn_kwargs"]["k"]
    sae = TopKSAE(TopKSAEConfig(d_in=test_qwen_scope.D, d_sae=cfg["d_sae"], k=k, apply_b_dec_to_input=False))
    sae.load_state_dict(state)
    x = torch.randn(80, test_qwen_scope.D, generator=torch.Generator().manual_seed(0))
    codes, x_hat = load(path)(x)
    with torch.no_grad():
        torch.testing.assert_close(codes.dense(), sae.encode(x), **CLOSE)
        torch.testing.assert_close(x_hat, sae(x), **CLOSE)
    about = load(path).metadata
    assert (cfg["hook_name"], cfg["model_name"]) == (about.site, about.model)


@pytest.mark.parametrize(("kind", "norm", "by_length"), MODES)
def test_llamascopiums_own_class_does_the_same(tmp_path, kind, norm, by_length):
    library = pytest.importorskip("llamascopium.models.sae")
    config = test_llamascopium.config(
        act_fn=kind, norm_activation=norm, sparsity_include_decoder_norm=by_length, dtype=torch.float32
    )
    sae = library.SparseAutoEncoder(library.SAEConfig(**config))
    sae.load_full_state_dict(test_llamascopium.tensors(kind))
    sae.save_checkpoint(tmp_path / "sae_weights.safetensors")
    sae.cfg.save_hyperparameters(tmp_path)
    x = 2 * torch.randn(80, D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        normed, scales = sae.normalize_activations({SITE: x}, return_scale_factor=True)
        theirs = sae.encode(normed[SITE])
        their_x_hat = sae.decode(theirs) / scales[SITE]
    codes, x_hat = load(tmp_path)(x)
    lengths = sae.decoder_norm().detach() if by_length and "topk" in kind else torch.ones(M)
    torch.testing.assert_close(codes.dense() / lengths, theirs, **CLOSE)
    torch.testing.assert_close(x_hat, their_x_hat, **CLOSE)
