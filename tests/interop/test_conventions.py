"""A dictionary of a TransformerLens model gives on the Hugging Face model the codes that it gives in its own world."""

from dataclasses import replace

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights, convert_neox_weights
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from dictlab import LanguageModel, Metadata
from dictlab.dictionary.normalisation import ConstantNorm, LayerNorm, NoNormalisation, Scale
from dictlab.evaluation.transformer_lens import adapted
from tests.planted import random_dictionary

pytestmark = pytest.mark.interop

D, HEADS, BLOCKS, VOCABULARY = 24, 3, 3, 50
TOKENS = torch.randint(0, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
SITES = [
    "blocks.0.hook_resid_pre",
    "blocks.1.hook_resid_pre",
    "blocks.2.hook_resid_post",
    "blocks.1.hook_attn_out",
    "blocks.1.hook_mlp_out",
    "blocks.1.attn.hook_z",
    "blocks.2.mlp.hook_post",
]
# Two float32 forwards of different weights, products of magnitude 10: 1e-4 absolute, far below an effect of centring.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def shaken(model):
    """Biases and norms start at 0 and 1: make every part count."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(
                parameter, mean=float("norm" in name or "ln_" in name) * ("bias" not in name), std=0.3
            )
        else:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def gpt2():
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=D, n_layer=BLOCKS, n_head=HEADS)
    return shaken(GPT2LMHeadModel(config)), convert_gpt2_weights, {"act_fn": "gelu_new"}


def pythia():
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=D, num_hidden_layers=BLOCKS, num_attention_heads=HEADS, intermediate_size=4 * D,
        max_position_embeddings=16, rotary_pct=0.5,
    )  # fmt: skip
    own = {
        "act_fn": "gelu",
        "positional_embedding_type": "rotary",
        "rotary_dim": D // HEADS // 2,
        "rotary_adjacent_pairs": False,
        "parallel_attn_mlp": True,
    }
    return shaken(GPTNeoXForCausalLM(config)), convert_neox_weights, own


def worlds(build):
    """The same random model in both libraries: unprocessed, and processed as TransformerLens does by default."""
    hf, convert, own = build()
    config = HookedTransformerConfig(
        n_layers=BLOCKS, d_model=D, n_ctx=16, d_head=D // HEADS, n_heads=HEADS, d_mlp=4 * D, d_vocab=VOCABULARY,
        normalization_type="LN", eps=1e-5, **own,
    )  # fmt: skip
    lens = HookedTransformer(config)
    lens.load_and_process_state_dict(
        convert(hf, config), fold_ln=True, center_writing_weights=True, center_unembed=True, fold_value_biases=True
    )
    return LanguageModel(hf, None, build.__name__), lens.eval()


def of_the_lens(site: str, d: int, **kwargs):
    metadata = Metadata(site=site, convention="transformer_lens")
    return random_dictionary(48, d, metadata=metadata, **kwargs)


@pytest.mark.parametrize("build", [gpt2, pythia])
@pytest.mark.parametrize("site", SITES)
def test_codes_and_errors_are_those_of_its_own_world(build, site):
    model, lens = worlds(build)
    _, cache = lens.run_with_cache(TOKENS)
    theirs = cache[site].flatten(0, 1).flatten(1).detach()
    ours = model.capture(TOKENS, site)[site].flatten(0, 1)
    dictionary = of_the_lens(site, theirs.shape[1])
    moved = adapted(dictionary, model)
    torch.testing.assert_close(moved.encode(ours).dense(), dictionary.encode(theirs).dense(), **TOLERANCE)
    torch.testing.assert_close(ours - moved.reconstruct(ours), theirs - dictionary.reconstruct(theirs), **TOLERANCE)
    if site != "blocks.2.mlp.hook_post":  # the one site that processing leaves alone
        assert not torch.allclose(dictionary.encode(ours).dense(), dictionary.encode(theirs).dense(), **TOLERANCE)


@pytest.mark.parametrize("normalisation", [NoNormalisation(), Scale(0.3), LayerNorm(), ConstantNorm()])
def test_every_input_normalisation_is_carried_over(normalisation):
    site = "blocks.1.hook_resid_pre"
    model, lens = worlds(gpt2)
    _, cache = lens.run_with_cache(TOKENS)
    theirs, ours = cache[site].flatten(0, 1).detach(), model.capture(TOKENS, site)[site].flatten(0, 1)
    dictionary = of_the_lens(site, D, normalisation=normalisation)
    moved, own = adapted(dictionary, model), dictionary.in_input_units()
    torch.testing.assert_close(moved.encode(ours).dense(), own.encode(theirs).dense(), **TOLERANCE)
    torch.testing.assert_close(ours - moved.reconstruct(ours), theirs - own.reconstruct(theirs), **TOLERANCE)


@pytest.mark.parametrize("build", [gpt2, pythia])
def test_splicing_the_moved_dictionary_in_gives_the_logits_of_its_own_world(build):
    """Log-probabilities: the processing takes a constant away from each token's logits."""
    site = "blocks.1.hook_resid_pre"
    model, lens = worlds(build)
    dictionary = of_the_lens(site, D)
    moved = adapted(dictionary, model)
    theirs = lens.run_with_hooks(TOKENS, fwd_hooks=[(site, lambda x, hook: dictionary.reconstruct(x))])
    ours = model.splice(TOKENS, site, moved.reconstruct).logits
    torch.testing.assert_close(ours.log_softmax(-1), theirs.detach().log_softmax(-1), atol=1e-3, rtol=1e-3)


def test_a_dictionary_of_the_unprocessed_model_is_left_as_it_is():
    model, _ = worlds(gpt2)
    plain = random_dictionary(48, D, metadata=Metadata(site=SITES[1], convention="huggingface"))
    assert adapted(plain, model) is plain
    unknown = replace(plain, metadata=Metadata(site=SITES[1]))
    assert adapted(unknown, model) is unknown
