"""What TransformerLens' processing does to activations, by hand; `interop` shows the same against that library itself."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analyses.common.opening import in_model
from analyses.composition.novelty.novelty import novelty
from analyses.composition.stitching.stitching import stitching
from analyses.quality.pareto.pareto import pareto
from analyses.quality.verification.verification import verification
from dictlab import DictlabError, LanguageModel, Metadata, ReLU, TopK
from dictlab.dictionary.normalisation import Centred, ConstantNorm, LayerNorm, NoNormalisation, Scale
from dictlab.evaluation.evaluate import evaluate
from dictlab.evaluation.transformer_lens import adapted
from tests.model.test_language_model import build
from tests.planted import random_dictionary, tiny_model

TOKENS = torch.arange(14).reshape(2, 7) * 3
CENTRED_SITES = [
    "blocks.0.hook_resid_pre",
    "blocks.1.hook_resid_mid",
    "blocks.2.hook_resid_post",
    "blocks.1.hook_attn_out",
    "blocks.1.hook_mlp_out",
]


def of_the_lens(site: str | None, d: int = 16, **kwargs):
    """A dictionary that was trained on a processed model."""
    return random_dictionary(24, d, metadata=Metadata(site=site, convention="transformer_lens"), **kwargs)


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(dim=-1, keepdim=True)


@pytest.mark.parametrize("site", CENTRED_SITES)
@pytest.mark.parametrize("normalisation", [NoNormalisation(), Scale(0.3), LayerNorm(), ConstantNorm()])
def test_the_stream_and_what_is_added_to_it_are_read_centred_and_written_back_with_their_mean(site, normalisation):
    model = build("gpt2")
    dictionary = of_the_lens(site, normalisation=normalisation)
    moved, own = adapted(dictionary, model), dictionary.in_input_units()
    x = model.capture(TOKENS, site)[site].flatten(0, 1)
    assert not torch.allclose(x, centred(x))
    torch.testing.assert_close(moved.encode(x).dense(), own.encode(centred(x)).dense(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x - moved.reconstruct(x), centred(x) - own.reconstruct(centred(x)), atol=1e-5, rtol=1e-5)
    assert moved.metadata == replace(dictionary.metadata, convention="huggingface")
    assert adapted(moved, model) is moved


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt_neox_sequential", "gpt_neo"])
def test_every_model_with_layer_norm_is_centred(architecture):
    assert adapted(of_the_lens("blocks.1.hook_resid_pre"), build(architecture)).normalisation == Centred()


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("site", [*CENTRED_SITES, "blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"])
def test_a_model_with_rms_norm_is_left_alone(architecture, site):
    dictionary = of_the_lens(site)
    moved = adapted(dictionary, build(architecture))
    assert moved.normalisation == NoNormalisation() and moved.metadata.convention == "huggingface"
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(moved._weights(), dictionary._weights(), strict=True))


def test_other_spellings_of_a_site_are_the_same_site():
    model = build("gpt2")
    for site in ("transformer.h.1:in", "h.1", "h.1.mlp", "transformer.h.1.attn"):
        assert adapted(of_the_lens(site), model).normalisation == Centred(), site
    shift = adapted(of_the_lens("blocks.1.attn.hook_z"), model).b_pre
    assert torch.equal(adapted(of_the_lens("h.1.attn.c_proj:in"), model).b_pre, shift)


def shift_of(model: LanguageModel, block: int) -> torch.Tensor:
    """How far `adapted` moves a dictionary at the heads' outputs."""
    dictionary = of_the_lens(f"blocks.{block}.attn.hook_z")
    moved = adapted(dictionary, model)
    torch.testing.assert_close(moved.b_pre - dictionary.b_pre, moved.b_out - dictionary.b_out)
    assert moved.normalisation == NoNormalisation()
    return moved.b_pre - dictionary.b_pre


@pytest.mark.parametrize("block", [0, 2])
def test_the_heads_outputs_are_read_without_the_value_bias_of_gpt2(block):
    """By hand from the weights: the values' third of c_attn, with its own bias and that of ln_1. 1e-6: float32 sums."""
    model = build("gpt2")
    attention, norm = model.blocks[block].attn, model.blocks[block].ln_1
    expected = norm.bias @ attention.c_attn.weight[:, 32:] + attention.c_attn.bias[32:]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(shift_of(model, block), expected, atol=1e-6, rtol=1e-6)


def test_the_value_bias_of_a_neox_lies_between_those_of_its_queries_and_keys():
    """There each head's queries, keys and values lie together."""
    model = build("gpt_neox")
    attention, norm = model.blocks[1].attention, model.blocks[1].input_layernorm
    both = attention.query_key_value(norm.bias).view(2, 3, 8)
    torch.testing.assert_close(shift_of(model, 1), both[:, 2].flatten(), atol=1e-6, rtol=1e-6)


def test_the_value_bias_of_a_gpt_neo_is_that_of_its_norm():
    """Its projections have no bias of their own."""
    model = build("gpt_neo")
    inner, norm = model.blocks[1].attn.attention, model.blocks[1].ln_1
    torch.testing.assert_close(shift_of(model, 1), inner.v_proj(norm.bias), atol=1e-6, rtol=1e-6)


def test_a_value_bias_counts_also_behind_rms_norm():
    """One key and value for two heads: the bias is that of both."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, attention_bias=True))
    bias = torch.nn.init.normal_(model.model.layers[1].self_attn.v_proj.bias)
    torch.testing.assert_close(shift_of(LanguageModel(model, None), 1), bias.detach().repeat(2), atol=1e-6, rtol=1e-6)


def test_a_shifted_dictionary_is_the_old_one_on_shifted_activations():
    model, site = build("gpt2"), "blocks.1.attn.hook_z"
    for normalisation in (NoNormalisation(), Scale(0.3)):
        dictionary = of_the_lens(site, normalisation=normalisation, activation=TopK(5))
        own, moved = dictionary.in_input_units(), adapted(dictionary, model)
        x = model.capture(TOKENS, site)[site].flatten(0, 1)
        shift = shift_of(model, 1)
        torch.testing.assert_close(moved.encode(x).dense(), own.encode(x - shift).dense(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(moved.reconstruct(x), own.reconstruct(x - shift) + shift, atol=1e-5, rtol=1e-5)


def test_a_normalisation_after_the_shift_cannot_be_expressed_and_is_refused():
    for normalisation in (LayerNorm(), ConstantNorm(), Centred()):
        with pytest.raises(DictlabError, match=rf"random: its input normalisation \({normalisation.kind}\)"):
            adapted(of_the_lens("blocks.1.attn.hook_z", normalisation=normalisation), build("gpt2"))


def test_the_neurons_are_the_same_in_both_worlds():
    dictionary = of_the_lens("blocks.1.mlp.hook_post")
    moved = adapted(dictionary, build("gpt2"))
    assert moved.W_enc is dictionary.W_enc and moved.b_pre is dictionary.b_pre
    assert moved.normalisation == NoNormalisation()


@pytest.mark.parametrize("site", ["blocks.1.hook_mlp_in", "blocks.1.ln1.hook_normalized", "transformer.h.1.ln_1", None])
def test_a_site_where_the_difference_is_not_known_is_refused(site):
    with pytest.raises(DictlabError, match=rf"random was trained on.*{site or 'an unnamed site'}.*hook_resid"):
        adapted(of_the_lens(site), build("gpt2"))


def test_who_does_not_say_is_taken_to_read_the_model_as_it_is_and_who_says_something_unknown_is_refused():
    model = build("gpt2")
    for convention in (None, "huggingface"):
        dictionary = random_dictionary(24, 16, metadata=Metadata(site=CENTRED_SITES[0], convention=convention))
        assert adapted(dictionary, model) is dictionary
    with pytest.raises(DictlabError, match=r"'nnsight'.*huggingface and transformer_lens"):
        adapted(replace(dictionary, metadata=Metadata(convention="nnsight")), model)


def test_the_model_is_left_as_it_was_found():
    model = build("gpt2")
    before = model.forward(TOKENS).logits
    adapted(of_the_lens("blocks.1.attn.hook_z"), model)
    assert torch.equal(model.forward(TOKENS).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


# Wherever a dictionary meets a model


SITE = "blocks.1.hook_resid_pre"


def pair():
    """A dictionary of a TransformerLens model, and what it is for the model of Hugging Face, written out."""
    lens = of_the_lens(SITE, activation=ReLU(), name="small")
    plain = replace(lens, normalisation=Centred(), metadata=Metadata(site=SITE, convention="huggingface"))
    return lens, plain


def test_evaluate_gives_a_dictionary_the_activations_that_it_was_trained_on(text):
    model, held = tiny_model(), text.as_split("heldout")
    lens, plain = pair()
    blind = replace(lens, metadata=Metadata(site=SITE), name="blind")
    found, expected, wrong = evaluate([lens, plain, blind], model, held, contexts=8)
    for metric in ("l0", "mse", "explained_variance", "ce_increase"):
        assert found.value(metric) == expected.value(metric)
        assert found.value(metric) != pytest.approx(wrong.value(metric), rel=1e-3)


def test_analyses_do_the_same(text):
    model = tiny_model()
    large = random_dictionary(40, 16, seed=3, name="large", activation=TopK(4), normalisation=Centred())
    for analysis, options, table in (
        (novelty, {"tokens": 2000}, "latents"),
        (stitching, {"tokens": 2000, "contexts": 8}, "quality"),
    ):
        one, other = (analysis(small, large, model=model, text=text, **options).tables[table].frame for small in pair())
        assert one.equals(other), analysis.__name__
    one, other = (pareto([small], model=model, text=text, contexts=8) for small in pair())
    assert all(one.tables[name].frame.equals(other.tables[name].frame) for name in one.tables)
    one, other = (verification(small, model=model, text=text, contexts=8).tables["checks"].frame for small in pair())
    assert one.equals(other)


def test_a_dictionary_comes_to_a_model_with_the_right_reading():
    lens, plain = pair()
    (moved,) = in_model([lens], tiny_model())
    x = torch.randn(20, 16)
    assert torch.equal(moved.reconstruct(x), plain.reconstruct(x))
