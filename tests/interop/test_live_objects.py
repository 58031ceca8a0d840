"""Objects of TransformerLens and SAELens, handed over as they are, do here what they do there."""

import pytest
import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from transformer_lens import HookedTransformer, HookedTransformerConfig

from dictlab.formats.in_memory import from_saelens
from dictlab.model.hooked_transformer import HookedTransformerModel
from tests.planted import tiny_tokenizer

pytestmark = pytest.mark.interop

TOKENS = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(0))
SITES = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "mlp.hook_post")


def hooked(parallel: bool = False) -> HookedTransformer:
    config = HookedTransformerConfig(
        n_layers=3, d_model=16, n_ctx=32, d_head=8, n_heads=2, d_mlp=64, d_vocab=97, act_fn="gelu",
        normalization_type="LN", seed=1, initializer_range=0.3, parallel_attn_mlp=parallel,
    )  # fmt: skip
    return HookedTransformer(config, tokenizer=None)


@pytest.mark.parametrize("parallel", [False, True])
@torch.no_grad()
def test_activations_and_logits_are_those_of_transformer_lens(parallel):
    theirs = hooked(parallel)
    logits, cache = theirs.run_with_cache(TOKENS)
    ours = HookedTransformerModel(theirs, tiny_tokenizer())
    sites = [f"blocks.1.{name}" for name in SITES if not (parallel and name == "hook_resid_mid")]
    captured = ours.capture(TOKENS, sites)
    for site in sites:
        assert torch.equal(captured[site], cache[site])
        entering = cache["blocks.1.hook_resid_pre"]
        assert torch.equal(ours.resume(captured[site], site, residual=entering, tokens=TOKENS).logits, logits)
        new = captured[site] + 0.1 * torch.randn_like(captured[site])
        spliced = theirs.run_with_hooks(TOKENS, fwd_hooks=[(site, lambda x, hook, new=new: new)])
        assert torch.equal(ours.splice(TOKENS, site, new).logits, spliced)


def test_processed_weights_are_noticed():
    plain, processed = hooked(), hooked()
    processed.load_and_process_state_dict(plain.state_dict(), fold_ln=True, center_writing_weights=True)
    assert not HookedTransformerModel(plain, tiny_tokenizer()).centred
    assert HookedTransformerModel(processed, tiny_tokenizer()).centred


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (TopKSAE, TopKSAEConfig(16, 40, k=4)),
        (StandardSAE, StandardSAEConfig(16, 40, normalize_activations="layer_norm")),
    ],
)
@torch.no_grad()
def test_an_sae_of_saelens(kind, config):
    sae = kind(config)
    for parameter in sae.parameters():
        parameter.copy_(0.3 * torch.randn_like(parameter))
    x = torch.randn(50, 16)
    ours = from_saelens(sae)
    torch.testing.assert_close(ours.encode(x).dense(), sae.encode(x))
    torch.testing.assert_close(ours.reconstruct(x), sae(x))
