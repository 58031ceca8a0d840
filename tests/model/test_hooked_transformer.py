"""A model with the hook points of TransformerLens: sites are read and replaced at these, later tokens as in one go.

The stand-in computes a block as TransformerLens does. The library itself is compared in tests/interop.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dictlab import DictlabError
from dictlab.model.hooked_transformer import HookedTransformerModel, is_hooked_transformer
from tests.planted import tiny_model, tiny_tokenizer

TOKENS = torch.arange(24).reshape(2, 12)


class Attention(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.inner = nn.Linear(d, d)

    def forward(self, query_input, key_input, value_input):  # causal: the mean of what came before
        seen = torch.arange(1, query_input.shape[1] + 1)[:, None]
        return self.inner(value_input).cumsum(dim=1) / seen


class Block(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = nn.Identity(), nn.Identity(), nn.Identity()
        self.hook_attn_out, self.hook_mlp_out = nn.Identity(), nn.Identity()
        self.ln1, self.attn, self.mlp = nn.LayerNorm(d), Attention(d), nn.Sequential(nn.Linear(d, d), nn.Tanh())
        self.mlp.hook_post = nn.Identity()

    def forward(self, resid_pre):
        x = self.hook_resid_pre(resid_pre)
        inner = self.ln1(x)
        x = self.hook_resid_mid(
            x + self.hook_attn_out(self.attn(query_input=inner, key_input=inner, value_input=inner))
        )
        return self.hook_resid_post(x + self.hook_mlp_out(self.mlp.hook_post(self.mlp[0](x).tanh())))


class Hooked(nn.Module):
    def __init__(self, d: int = 16, centred: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cfg = SimpleNamespace(n_ctx=32, d_vocab=97, model_name="gpt2-small", normalization_type="LN")
        self.embed, self.unembed = nn.Embedding(97, d), nn.Linear(d, 97)
        self.blocks = nn.ModuleList([Block(d) for _ in range(3)])
        self.tokenizer = None
        if centred:
            with torch.no_grad():
                self.embed.weight -= self.embed.weight.mean(dim=1, keepdim=True)

    def forward(self, tokens, return_type="logits"):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)

    def run_with_cache(self, tokens):
        raise NotImplementedError


@pytest.fixture
def model() -> HookedTransformerModel:
    return HookedTransformerModel(Hooked(), tiny_tokenizer())


def at(model: HookedTransformerModel, site: str) -> torch.Tensor:
    """What passes through a hook point, by a hook of torch's."""
    caught = []
    handle = model.model.get_submodule(site).register_forward_hook(lambda module, args, out: caught.append(out))
    model.model(TOKENS)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize(
    "name", ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"]
)
@torch.no_grad()
def test_sites_are_the_hook_points(model, name):
    site = f"blocks.1.{name}"
    x = model.capture(TOKENS, site)[site]
    assert torch.equal(x, at(model, site))
    entering = at(model, "blocks.1.hook_resid_pre")
    assert torch.equal(model.resume(x, site, residual=entering, tokens=TOKENS).logits, model.model(TOKENS))
    changed = model.splice(TOKENS, site, x + 1)
    handle = model.model.get_submodule(site).register_forward_hook(lambda module, args, out: out + 1)
    assert torch.equal(changed.logits, model.model(TOKENS))
    handle.remove()


@torch.no_grad()
def test_later_tokens_are_as_in_one_go(model):
    site, last = "blocks.1.hook_resid_pre", model.last_site
    x = model.capture(TOKENS, [site, last])
    earlier = model.kv_cache(x[site][:, :5], site)
    later = model.final_residual(x[site][:, 5:].repeat(3, 1, 1), site, kv_cache=earlier)
    torch.testing.assert_close(later, x[last][:, 5:].repeat(3, 1, 1))


@torch.no_grad()
def test_a_site_that_tries_the_model_out_leaves_no_trace_in_the_others():
    sites = ["blocks.1.hook_resid_post", "blocks.1.hook_resid_mid"]
    for model in (tiny_model(), HookedTransformerModel(Hooked(), tiny_tokenizer())):
        both = model.capture(TOKENS, sites)
        for site in sites:
            assert torch.equal(both[site], model.capture(TOKENS, site)[site])


def test_processing_is_noticed(model):
    assert not model.centred
    assert HookedTransformerModel(Hooked(centred=True), tiny_tokenizer()).centred


def test_what_cannot_be_done_is_refused(model):
    with pytest.raises(DictlabError, match=r"hook_z.*Hugging Face"):
        model.locate("blocks.1.attn.hook_z")
    with pytest.raises(DictlabError, match="has no tokenizer"):
        HookedTransformerModel(Hooked())


def test_other_models_are_told_apart():
    assert is_hooked_transformer(Hooked())
    assert not is_hooked_transformer(tiny_model().model)
