"""Streamed outputs against whole distributions, and tokens with a past against whole sequences, on four architectures."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM

from dictlab import LanguageModel
from dictlab.model import output_divergence
from dictlab.model.output_divergence import kl_and_ce, kl_and_ce_losses, next_tokens
from tests.model.test_language_model import ENDS, SMALL, TOKENS, build

ARCHITECTURES = ["gpt2", "gpt_neox", "llama", "gemma2"]
SITES = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"]
SITES += ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
INNER = {"gpt2": "transformer.h.1.attn.c_proj:in", "llama": "model.layers.1.self_attn.o_proj:in"}


@pytest.fixture(params=ARCHITECTURES)
def lm(request) -> LanguageModel:
    if request.param != "gemma2":
        return build(request.param)
    torch.manual_seed(0)
    config = Gemma2Config(
        **SMALL, num_attention_heads=2, num_key_value_heads=1, head_dim=8, sliding_window=4, **ENDS,
        final_logit_softcapping=0.5, initializer_range=0.3,
    )  # fmt: skip
    return LanguageModel(Gemma2ForCausalLM(config), None, "gemma2")


def streams(lm: LanguageModel, site: str, versions: int = 3):
    """Clean logits and stream, and altered versions of both by whole forwards."""
    found = lm.forward(TOKENS, [site, lm.block_input(site), lm.last_site])
    x, start = found.activations[site], found.activations[lm.block_input(site)]
    torch.manual_seed(1)
    altered = [x + torch.randn_like(x) * x.std() for _ in range(versions)]
    whole = [lm.resume(new, site, residual=start).logits for new in altered]
    carried = [lm.final_residual(new, site, residual=start) for new in altered]
    return found, torch.stack(whole), torch.stack(carried)


@pytest.mark.parametrize("logits", [1, 130, 1 << 20])
def test_streaming_in_blocks_of_any_size_agrees_with_whole_distributions(lm, logits, monkeypatch):
    monkeypatch.setattr(output_divergence, "LOGITS", logits)
    clean, whole, carried = streams(lm, "blocks.1.hook_resid_pre")
    found = kl_and_ce(
        lm, clean.activations[lm.last_site].flatten(0, 1), carried.flatten(1, 2), next_tokens(TOKENS).flatten()
    )
    p, q = clean.logits.double().log_softmax(-1), whole.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(found.kl.double(), kl.flatten(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.entropy.double(), -(p.exp() * p).sum(-1).flatten(), rtol=1e-5, atol=1e-6)
    for own, logits_ in [(found.ce_clean, clean.logits), *zip(found.ce, whole, strict=True)]:
        own = own.view(TOKENS.shape)
        expected = cross_entropy(logits_[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="none")
        torch.testing.assert_close(own[:, :-1].flatten(), expected, rtol=1e-5, atol=1e-5)
        assert own[:, -1].isnan().all()


def plain(lm, altered, clean):
    """KL and CE by plain operators on all logits at once, in float32, with the gradient of each at the streams."""
    altered = altered.clone().requires_grad_()
    p, q = lm.unembed(clean).log_softmax(-1), lm.unembed(altered).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    ce = cross_entropy(q.view(*TOKENS.shape, -1)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    return [(own.detach(), torch.autograd.grad(own, altered, retain_graph=True)[0]) for own in (kl, ce)]


@pytest.mark.parametrize("logits", [1, 130, 1 << 20])
def test_streamed_losses_and_their_gradients_are_those_of_plain_autograd(lm, logits, monkeypatch):
    """To 1e-5: final norm, unembedding and logit caps are the model's, whatever the block size."""
    monkeypatch.setattr(output_divergence, "LOSS_LOGITS", logits)
    clean = lm.forward(TOKENS, [lm.last_site]).activations[lm.last_site].flatten(0, 1)
    altered = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    expected = plain(lm, altered, clean)
    streams = altered.clone().requires_grad_()
    both = kl_and_ce_losses(lm, streams, clean=clean, targets=next_tokens(TOKENS).flatten())
    alone = (
        kl_and_ce_losses(lm, streams, clean=clean).kl,
        kl_and_ce_losses(lm, streams, targets=next_tokens(TOKENS).flatten()).ce,
    )
    for found in (both, alone):
        for own, (value, gradient) in zip(found, expected, strict=True):
            torch.testing.assert_close(own.detach(), value, rtol=1e-5, atol=1e-6)
            got = torch.autograd.grad(own, streams, retain_graph=True)[0]
            assert (got - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    weighted = torch.autograd.grad(0.5 * both.kl + 3 * both.ce, streams)[0]
    torch.testing.assert_close(weighted, 0.5 * expected[0][1] + 3 * expected[1][1], rtol=1e-4, atol=1e-7)


def test_losses_never_hold_the_logits_of_more_than_a_block_and_give_the_model_no_gradients(monkeypatch):
    lm, rows = build("gpt2"), []
    monkeypatch.setattr(output_divergence, "LOSS_LOGITS", 3 * lm.vocabulary)
    original = LanguageModel.unembed
    monkeypatch.setattr(LanguageModel, "unembed", lambda self, x: rows.append(len(x)) or original(self, x))
    clean = lm.forward(TOKENS, [lm.last_site]).activations[lm.last_site].flatten(0, 1)
    streams = (clean + 0.1).requires_grad_()
    kl_and_ce_losses(lm, streams, clean=clean).kl.backward()
    assert max(rows) == 3 and sum(rows) == 2 * len(clean)
    assert streams.grad.any() and all(p.grad is None for p in lm.model.parameters())


def test_losses_without_gradients_are_the_same_numbers(lm):
    clean = lm.forward(TOKENS, [lm.last_site]).activations[lm.last_site].flatten(0, 1)
    altered = clean + 0.1
    without = kl_and_ce_losses(lm, altered, clean=clean, targets=next_tokens(TOKENS).flatten())
    found = kl_and_ce_losses(lm, altered.requires_grad_(), clean=clean, targets=next_tokens(TOKENS).flatten())
    assert not without.kl.requires_grad and torch.equal(without.kl, found.kl) and torch.equal(without.ce, found.ce)
    assert kl_and_ce_losses(lm, altered, clean=clean).ce is None


def test_the_logit_cap_of_a_model_counts():
    """Gemma 2 bounds its logits; without that the distributions would differ."""
    torch.manual_seed(0)
    config = Gemma2Config(**SMALL, num_attention_heads=2, num_key_value_heads=1, head_dim=8, **ENDS)
    config.final_logit_softcapping = 0.01
    lm = LanguageModel(Gemma2ForCausalLM(config), None, "capped")
    x = lm.forward(TOKENS, [lm.last_site]).activations[lm.last_site].flatten(0, 1)
    assert lm.unembed(100 * x).abs().max() <= 0.01


def test_the_same_stream_has_no_divergence_at_all(lm):
    x = lm.forward(TOKENS, [lm.last_site]).activations[lm.last_site].flatten(0, 1)
    found = kl_and_ce(lm, x, torch.stack([x, x]), next_tokens(TOKENS).flatten())
    assert found.kl.abs().max() <= 2e-7
    torch.testing.assert_close(found.ce, found.ce_clean.expand(2, -1), equal_nan=True)


def test_distributions_that_hardly_overlap_do_not_overflow(monkeypatch):
    lm = build("gpt2")
    p, q = torch.zeros(2, 60), torch.zeros(2, 60)
    p[:, 0], q[:, 1] = 200, 200
    monkeypatch.setattr(LanguageModel, "unembed", lambda self, residual: residual)
    found = kl_and_ce(lm, p, q[None], torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(found.kl, torch.full((1, 2), 200.0))
    torch.testing.assert_close(found.ce, torch.full((1, 2), 200.0))


def test_carrying_gives_the_stream_that_leaves_the_blocks(lm):
    for site in SITES + ([INNER[lm.name]] if lm.name in INNER else []):
        clean, whole, carried = streams(lm, site, 1)
        torch.testing.assert_close(lm.unembed(carried[0].flatten(0, 1)), whole[0].flatten(0, 1))
        again = lm.final_residual(clean.activations[site], site, residual=clean.activations[lm.block_input(site)])
        assert torch.equal(again, clean.activations[lm.last_site]), site


@pytest.mark.parametrize("at", [0, 3, 6])
def test_versions_of_later_tokens_share_the_past_of_the_earlier_ones(lm, at):
    for site in SITES + ([INNER[lm.name]] if lm.name in INNER else []):
        start = lm.block_input(site)
        clean = lm.forward(TOKENS, [site, start]).activations
        x, residual = clean[site], clean[start]
        past = lm.kv_cache(x[:, :at], site, residual=residual[:, :at])
        versions = [x.clone() for _ in range(3)]
        for new in versions:
            new[:, at] += torch.randn_like(new[:, at])
        expected = torch.cat([lm.final_residual(new, site, residual=residual)[:, at:] for new in versions])
        stacked = torch.cat([new[:, at:] for new in versions])
        found = lm.final_residual(stacked, site, residual=residual[:, at:].repeat(3, 1, 1), kv_cache=past)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_nothing_of_a_block_is_computed_that_its_replaced_output_would_hide():
    lm, ran = build("gpt2"), []
    site = "blocks.1.hook_mlp_out"
    clean = lm.forward(TOKENS, [site, "blocks.1.hook_resid_pre"]).activations
    resume = {"residual": clean["blocks.1.hook_resid_pre"]}
    lm.final_residual(clean[site], site, **resume)  # tries the sites, in forwards that are not counted
    lm.blocks[1].mlp.c_fc.register_forward_hook(lambda *_: ran.append(1))
    lm.final_residual(clean[site], site, **resume)
    assert not ran
