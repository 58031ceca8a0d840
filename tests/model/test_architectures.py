"""In tiny random models of many architectures a site is what its name says, or it is refused by name."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dictlab.errors import DictlabError
from dictlab.model.language_model import LanguageModel

TOKENS = torch.arange(20, 44).view(2, 12)
LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 97, "n_positions": 64, "bos_token_id": 1}
GPT2 |= {"eos_token_id": 2, "rotary_dim": 4}
PER_LAYER_INPUTS = LLAMA | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
# Attention and the MLP add to the stream one after the other.
SEQUENTIAL = {
    **dict.fromkeys(
        [
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma",
            "gemma2",
            "gemma3_text",
            "olmo",
            "olmo2",
            "olmo3",
            "phi3",
            "starcoder2",
            "smollm3",
            "glm",
            "glm4",
            "exaone4",
            "nemotron",
            "biogpt",
            "hunyuan_v1_dense",
            "helium",
            "ernie4_5",
            "seed_oss",
            "stablelm",
            "apertus",
            "arcee",
            "bitnet",
            "cwm",
            "diffllama",
            "ministral",
            "vaultgemma",
            "granite_swa",
        ],
        LLAMA,
    ),
    **dict.fromkeys(
        ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss", "minimax_m2", "afmoe", "granitemoe"],
        LLAMA | EXPERTS,
    ),
    "gpt2": GPT2,
    "gpt_neo": LLAMA | {"num_layers": 3, "num_heads": 4, "attention_types": [[["global", "local", "global"], 1]]},
    "gpt_bigcode": GPT2,
    "bloom": GPT2 | {"hidden_size": 32},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "vocab_size": 97},
    "gemma3": {  # text and images; its text part alone is run
        "text_config": {"model_type": "gemma3_text"} | LLAMA,
        "vision_config": VISION,
        "mm_tokens_per_image": 1,
        "image_token_index": 90,
    },
    "granite": LLAMA | {"residual_multiplier": 0.22, "embedding_multiplier": 12.0},
    "gemma4_text": LLAMA | {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
}
PARALLEL = {
    "gpt_neox": LLAMA,
    "gptj": GPT2,
    "codegen": GPT2,
    "phi": LLAMA,
    "cohere": LLAMA,
    "cohere2": LLAMA,
    "falcon": {key: value for key, value in LLAMA.items() if key != "head_dim"}
    | {"new_decoder_architecture": False, "parallel_attn": True, "multi_query": True},
}
# The stream alone: it is scaled or normalised on its way, or something else is added to it.
STREAM_ONLY = {
    "minimax": LLAMA | EXPERTS,
    "doge": LLAMA,
    "mamba": LLAMA | {"state_size": 4},
    "jamba": LLAMA | EXPERTS | {"mamba_d_state": 4},
    "recurrent_gemma": LLAMA | {"lru_width": 32},
    "lfm3": LLAMA,
    # A part of what a block adds is looked up by the token in each block.
    "gemma4_text": PER_LAYER_INPUTS | {"num_kv_shared_layers": 0},
}


def tiny(kind: str, settings: dict) -> LanguageModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).float()
    with torch.no_grad():
        for parameter in model.parameters():  # gains and biases start at 1 and 0, others small: make every part count
            parameter.add_(0.3 * torch.randn_like(parameter)) if parameter.ndim == 1 else parameter.mul_(2)
    return LanguageModel(model, None, kind)


def check_resuming(lm: LanguageModel, site: str) -> None:
    """On tokens other than those that the model was tried on: captured, spliced in and resumed from, it is no change;
    a change of it is what a hook of torch's own makes of it (for streams entering a block)."""
    logits, start = lm.forward(TOKENS).logits, lm.block_input(site)
    x = lm.capture(TOKENS, [site, start])
    largest = float(logits.abs().max())
    resumed = lm.resume(x[site], site, residual=x[start], tokens=TOKENS).logits
    for same in (resumed, lm.splice(TOKENS, site, lambda value: value).logits):
        assert float((same - logits).abs().max()) <= 1e-5 * largest, site
    changed = lm.splice(TOKENS, site, lambda value: value + value.flip(1)).logits
    assert float((changed - logits).abs().max()) > 1e-3 * largest, site
    if site == start:
        block = lm.blocks[lm.locate(site).block]

        def double(module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            new = x + x.flip(1)
            return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

        handle = block.register_forward_pre_hook(double, with_kwargs=True)
        expected = lm.logits(TOKENS)
        handle.remove()
        assert float((changed - expected).abs().max()) <= 1e-5 * largest


def check_sum(lm: LanguageModel, middle: bool) -> None:
    """resid_pre + attn_out + mlp_out = resid_post, to float32 rounding, though each is captured by itself."""
    hooks = ["resid_pre", "attn_out", "mlp_out", "resid_post"] + ["resid_mid"] * middle
    sites = [f"blocks.1.hook_{hook}" for hook in hooks]
    pre, attention, mlp, post, *mid = (lm.capture(TOKENS, site)[site] for site in sites)
    assert float((pre + attention + mlp - post).norm()) <= 1e-5 * float((post - pre).norm())
    assert min(float(attention.norm()), float(mlp.norm())) > 1e-3 * float(pre.norm())
    for stream in mid:
        assert float((stream + mlp - post).norm()) <= 1e-5 * float((post - pre).norm())
    for site in sites:
        check_resuming(lm, site)


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_a_block_is_the_sum_of_its_parts_and_can_be_resumed_at_each(kind):
    check_sum(tiny(kind, SEQUENTIAL[kind]), middle=True)


@pytest.mark.parametrize("kind", PARALLEL)
def test_a_parallel_block_is_the_sum_of_its_parts_and_has_no_middle(kind):
    lm = tiny(kind, PARALLEL[kind])
    check_sum(lm, middle=False)
    with pytest.raises(DictlabError, match="parallel"):
        lm.locate("blocks.1.hook_resid_mid")


@pytest.mark.parametrize("kind", STREAM_ONLY)
def test_parts_that_do_not_add_up_are_refused_by_name_and_the_stream_can_be_resumed(kind):
    lm = tiny(kind, STREAM_ONLY[kind])
    for half in ("attn_out", "mlp_out", "resid_mid"):
        with pytest.raises(DictlabError, match=r"does not hold|has no module"):
            lm.capture(TOKENS, f"blocks.1.hook_{half}")
    check_resuming(lm, "blocks.1.hook_resid_pre")
    check_resuming(lm, "blocks.1.hook_resid_post")


def test_a_forward_with_inputs_of_each_layer_is_not_resumed_without_tokens():
    lm = tiny("gemma4_text", PER_LAYER_INPUTS | {"num_kv_shared_layers": 0})
    for site in ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"):
        x = lm.capture(TOKENS, site)[site]
        with pytest.raises(DictlabError, match="look tokens up again: give resume tokens"):
            lm.resume(x, site)


def test_where_keys_and_values_of_earlier_blocks_are_read_again_the_forward_is_not_resumed():
    layers = ["sliding_attention", "full_attention", "full_attention", "full_attention"]
    settings = {"num_kv_shared_layers": 1, "num_hidden_layers": 4, "layer_types": layers}
    lm = tiny("gemma4_text", PER_LAYER_INPUTS | settings)
    check_resuming(lm, "blocks.2.hook_resid_pre")  # block 2 makes what block 3 reads
    x = lm.capture(TOKENS, "blocks.3.hook_resid_pre")["blocks.3.hook_resid_pre"]
    with pytest.raises(DictlabError, match="not the model's own"):
        lm.resume(x, "blocks.3.hook_resid_pre", tokens=TOKENS)


def test_several_streams_side_by_side_are_refused():
    """Gemma 3n's blocks take and return several versions of the stream at once."""
    settings = {"num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2, "intermediate_size": [48] * 3}
    settings |= {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
    lm = tiny("gemma3n_text", PER_LAYER_INPUTS | settings | {"activation_sparsity_pattern": [0.0] * 3})
    for hook in ("resid_pre", "resid_post", "attn_out", "mlp_out", "resid_mid"):
        with pytest.raises(DictlabError, match="one vector a token"):
            lm.capture(TOKENS, f"blocks.1.hook_{hook}")


def test_at_least_forty_architectures_are_tried():
    assert len(SEQUENTIAL) + len(PARALLEL) + len(STREAM_ONLY) >= 50
