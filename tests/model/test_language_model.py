"""Resuming, splicing and capturing agree with the model's own forward, on six architectures."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from dictlab.errors import DictlabError
from dictlab.model.language_model import LanguageModel

BLOCKS = 3
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": BLOCKS, "intermediate_size": 32}


def build(architecture: str) -> LanguageModel:
    torch.manual_seed(0)
    if architecture == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=32, n_embd=16, n_layer=BLOCKS, n_head=2, **ENDS))
    elif architecture == "gpt_neox":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, num_attention_heads=2, **ENDS))
    elif architecture == "gpt_neox_sequential":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, num_attention_heads=2, use_parallel_residual=False, **ENDS))
    elif architecture == "gpt_neo":
        model = GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=60,
                max_position_embeddings=32,
                hidden_size=16,
                num_layers=BLOCKS,
                attention_types=[[["global", "local", "global"], 1]],
                num_heads=2,
                **ENDS,
            )
        )
    elif architecture == "gemma2":
        sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
        model = Gemma2ForCausalLM(Gemma2Config(**SMALL, **sizes, **ENDS))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SMALL, num_attention_heads=2, num_key_value_heads=1, **ENDS))
    for name, parameter in model.named_parameters():  # biases and norms start at 0 and 1: make every part count
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name or "ln" in name), std=0.3)
    return LanguageModel(model, None, architecture)


PARALLEL = "gpt_neox"
NORMED = "gemma2"  # normalises what attention and MLP give before adding it
ARCHITECTURES = ["gpt2", PARALLEL, "gpt_neox_sequential", "gpt_neo", "llama", NORMED]
INNER = ["hook_attn_out", "hook_mlp_out", "attn.hook_z", "mlp.hook_post"]
TOKENS = torch.arange(14).reshape(2, 7) * 3


@pytest.fixture(params=ARCHITECTURES)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return build(request.param)


def residual_sites(lm: LanguageModel) -> list[str]:
    hooks = ["resid_pre", "resid_post"] + ([] if lm.name == PARALLEL else ["resid_mid"])
    return [f"blocks.{i}.hook_{hook}" for i in range(lm.n_blocks) for hook in hooks]


def test_resuming_from_every_block_gives_the_logits_bit_for_bit(lm):
    logits = lm.forward(TOKENS).logits
    for site in residual_sites(lm):
        resumed = lm.resume(lm.capture(TOKENS, site)[site], site).logits
        assert torch.equal(resumed, logits), site


def test_splicing_in_the_captured_activation_changes_nothing(lm):
    logits = lm.forward(TOKENS).logits
    inner = [f"blocks.{i}.{hook}" for i in range(lm.n_blocks) for hook in INNER]
    for site in residual_sites(lm) + inner:
        captured = lm.capture(TOKENS, site)[site]
        assert torch.equal(lm.splice(TOKENS, site, captured).logits, logits), site
        assert torch.equal(lm.splice(TOKENS, site, lambda x: x.clone()).logits, logits), site


def test_resuming_inside_a_block_with_its_residual_gives_the_logits_bit_for_bit(lm):
    logits = lm.forward(TOKENS).logits
    for site in (f"blocks.{i}.{hook}" for i in range(lm.n_blocks) for hook in INNER):
        start = lm.block_input(site)
        caught = lm.capture(TOKENS, [start, site])
        assert torch.equal(lm.resume(caught[site], site, residual=caught[start]).logits, logits), site
        changed = lm.resume(2 * caught[site], site, residual=caught[start]).logits
        assert torch.equal(changed, lm.splice(TOKENS, site, lambda x: 2 * x).logits), site
        assert not torch.allclose(changed, logits), site


def projections(lm: LanguageModel, block: int) -> dict[str, torch.nn.Module]:
    """The last linear maps of attention and MLP, by an independent search: those that come last in the module list."""
    names = {"attn.hook_z": ("attn", "attention", "self_attn"), "mlp.hook_post": ("mlp",)}
    found = {}
    for hook, children in names.items():
        half = next(getattr(lm.blocks[block], name) for name in children if hasattr(lm.blocks[block], name))
        found[hook] = [m for m in half.modules() if type(m).__name__ in ("Linear", "Conv1D")][-1]
    return found


def test_the_heads_outputs_and_the_neurons_are_what_the_last_projections_read(lm):
    """The projection of what was captured, with its bias, is the output of attention and MLP."""
    for hook, projection in projections(lm, 1).items():
        site, half = f"blocks.1.{hook}", "hook_attn_out" if hook == "attn.hook_z" else "hook_mlp_out"
        place = lm.locate(site)
        assert place.module is projection and place.side == "in"
        if lm.name != NORMED:
            caught = lm.capture(TOKENS, [site, f"blocks.1.{half}"])
            torch.testing.assert_close(projection(caught[site]), caught[f"blocks.1.{half}"], atol=1e-6, rtol=1e-6)
    width = lm.capture(TOKENS, "blocks.1.mlp.hook_post")["blocks.1.mlp.hook_post"].shape[-1]
    assert width == (32 if lm.name not in ("gpt2", "gpt_neo") else 64)


def test_a_spliced_change_reaches_the_logits_as_it_does_through_plain_hooks(lm):
    """Against an independent way: a hook of torch's own on the block, which rewrites its input."""
    block, site = lm.blocks[1], "blocks.1.hook_resid_pre"

    def rewrite(module, args, kwargs):
        if args:
            return (args[0] * 0.5, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] * 0.5}

    handle = block.register_forward_pre_hook(rewrite, with_kwargs=True)
    expected = lm.model(input_ids=TOKENS, use_cache=False).logits
    handle.remove()
    assert torch.equal(lm.splice(TOKENS, site, lambda x: x * 0.5).logits, expected)
    assert not torch.allclose(expected, lm.forward(TOKENS).logits)


def test_the_parts_of_a_block_add_up(lm):
    """resid_post = resid_pre + attn_out + mlp_out, to float32 rounding (additions in another order)."""
    for i in range(lm.n_blocks):
        names = [f"blocks.{i}.hook_{hook}" for hook in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
        pre, attention, mlp, post = (lm.capture(TOKENS, names)[name] for name in names)
        torch.testing.assert_close(pre + attention + mlp, post, atol=1e-5, rtol=1e-5)
        if lm.name != PARALLEL:
            mid = lm.capture(TOKENS, f"blocks.{i}.hook_resid_mid")[f"blocks.{i}.hook_resid_mid"]
            torch.testing.assert_close(mid + mlp, post, atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_resume_and_agree_with_finite_differences(lm):
    site = "blocks.1.hook_resid_pre"
    lm.model.double()
    x = lm.capture(TOKENS, site)[site].requires_grad_()
    lm.resume(x, site).logits.square().mean().backward()
    step = torch.zeros_like(x)
    step[1, 2, 3] = 1e-3  # a Llama computes its norms in float32: smaller steps drown in rounding
    with torch.no_grad():
        up, down = (lm.resume(x + s, site).logits.square().mean() for s in (step, -step))
    assert x.grad is not None and x.grad[1, 2, 3] != 0
    rounding = 5e-7 if lm.name == NORMED else 1e-8  # its gradient here is of order 5e-6, its norms are float32 too
    torch.testing.assert_close(x.grad[1, 2, 3], (up - down) / 2e-3, rtol=1e-3, atol=rounding)
    assert all(p.grad is None for p in lm.model.parameters())


def calls(lm: LanguageModel, action) -> list[int]:
    """How often the attention of each block ran."""
    counts = [0] * lm.n_blocks
    handles = []
    for i, block in enumerate(lm.blocks):
        attention = next(getattr(block, n) for n in ("attn", "attention", "self_attn") if hasattr(block, n))
        handles.append(attention.register_forward_pre_hook(lambda *_, i=i: counts.__setitem__(i, counts[i] + 1)))
    action()
    for handle in handles:
        handle.remove()
    return counts


def test_an_early_capture_does_not_run_the_later_blocks_nor_resume_the_earlier_ones(lm):
    site = "blocks.1.hook_resid_pre"
    x = lm.capture(TOKENS, site)[site]
    for tried in (site, "blocks.1.hook_attn_out"):
        lm.check_site(tried)  # its forwards are done before counting
    assert calls(lm, lambda: lm.capture(TOKENS, site)) == [1, 0, 0]
    assert calls(lm, lambda: lm.capture(TOKENS, [site, "blocks.1.hook_attn_out"])) == [1, 1, 0]
    assert calls(lm, lambda: lm.resume(x, site)) == [0, 1, 1]
    assert calls(lm, lambda: lm.splice(TOKENS, site, x)) == [1, 1, 1]


def test_module_paths_name_the_same_places(lm):
    path = next(name for name, module in lm.model.named_modules() if module is lm.blocks[1])
    pairs = {
        f"{path}:in": "blocks.1.hook_resid_pre",
        path: "blocks.1.hook_resid_post",
    } | ({} if lm.name == NORMED else {f"{path}.mlp": "blocks.1.hook_mlp_out"})
    for by_path, by_hook in pairs.items():
        assert torch.equal(lm.capture(TOKENS, by_path)[by_path], lm.capture(TOKENS, by_hook)[by_hook])
        assert torch.equal(lm.splice(TOKENS, by_path, torch.relu).logits, lm.splice(TOKENS, by_hook, torch.relu).logits)


def test_paths_from_the_base_models_root_name_the_same_places(lm):
    """Other libraries leave out the outermost name."""
    path = next(name for name, module in lm.model.named_modules() if module is lm.blocks[1])
    short = path.partition(".")[2]
    inside = next(name for name, _ in lm.blocks[1].named_modules() if "norm" in name or "ln" in name)
    for rest in ("", ":in", ":out", ".mlp", ".mlp:in", f".{inside}", f".{inside}:in"):
        assert lm.locate(f"{short}{rest}") == lm.locate(f"{path}{rest}"), rest
    wte = next(name for name, module in lm.model.named_modules() if isinstance(module, torch.nn.Embedding))
    assert lm.locate(wte.partition(".")[2]) == lm.locate(wte)


def test_a_modules_path_is_that_module_also_where_a_norm_follows_it():
    """What Gemma 2's MLP gives, and what is added to the stream, are different activations with different names."""
    lm = build(NORMED)
    for half, hook in (("mlp", "hook_mlp_out"), ("self_attn", "hook_attn_out")):
        names = [f"layers.1.{half}", f"model.layers.1.{half}:out", f"model.layers.1.{half}", f"blocks.1.{hook}"]
        *raw, added = (lm.capture(TOKENS, names)[name] for name in names)
        assert torch.equal(raw[0], raw[1]) and torch.equal(raw[1], raw[2])
        assert not torch.allclose(raw[0], added)


@pytest.mark.parametrize(("architecture", "one"), [("llama", True), ("gpt2", True), (PARALLEL, True), (NORMED, False)])
def test_whether_a_module_gives_what_its_half_adds_is_asked_of_the_model(architecture, one):
    """Whatever the model is called: a norm stands between the two in Gemma 2."""
    lm = build(architecture)
    lm.name = "gpt2"
    path = next(name for name, module in lm.model.named_modules() if module is lm.blocks[1])
    assert lm.same_site(f"{path}.mlp", "blocks.1.hook_mlp_out") == one
    x = lm.capture(TOKENS, [f"{path}.mlp", "blocks.1.hook_mlp_out"])
    assert torch.equal(*x.values()) == one
    assert not lm.same_site(f"{path}.mlp", "blocks.2.hook_mlp_out")
    assert lm.same_site(path, "blocks.2.hook_resid_pre") and not lm.same_site(path, "blocks.1.hook_resid_pre")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", PARALLEL])
def test_queries_keys_values_and_single_heads_are_those_that_attention_computes(architecture):
    """For the first token, each head gives its value; columns of one head are those of all heads, cut."""
    lm = build(architecture)
    sites = [f"blocks.1.attn.hook_{letter}" for letter in "qkvz"]
    x = lm.capture(TOKENS, sites)
    q, k, v, z = x.values()
    heads = z.shape[-1] // v.shape[-1]  # two heads share one key and value in this Llama
    torch.testing.assert_close(z[:, 0], v[:, 0].repeat(1, heads), atol=1e-6, rtol=1e-6)
    assert q.shape == z.shape and k.shape == v.shape
    assert not torch.allclose(k, v) and not torch.allclose(q[..., : k.shape[-1]], k)
    head = lm.capture(TOKENS, "blocks.1.attn.hook_z.head.1")["blocks.1.attn.hook_z.head.1"]
    assert torch.equal(head, z[..., 8:])
    site = "blocks.1.attn.hook_q.head.0"
    own = lm.capture(TOKENS, site)[site]
    assert torch.equal(own, q[..., :8])
    silenced = lm.splice(TOKENS, site, torch.zeros_like).logits
    assert torch.equal(
        silenced, lm.splice(TOKENS, sites[0], lambda all_: torch.cat([0 * own, all_[..., 8:]], -1)).logits
    )
    assert not torch.equal(silenced, lm.forward(TOKENS).logits)
    with pytest.raises(DictlabError, match="heads 0 to"):
        lm.locate("blocks.1.attn.hook_z.head.2")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", NORMED])
def test_what_attention_and_the_mlp_read_is_the_stream_normalised_with_and_without_gain(architecture):
    lm = build(architecture)
    for norm, stream in (("ln1", "hook_resid_pre"), ("ln2", "hook_resid_mid")):
        names = [f"blocks.1.{stream}", f"blocks.1.{norm}.hook_normalized", f"blocks.1.{norm}.hook_out"]
        x, plain, gained = (lm.capture(TOKENS, names)[name] for name in names)
        centred = x - x.mean(-1, keepdim=True) if architecture == "gpt2" else x
        expected = centred / centred.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        torch.testing.assert_close(
            plain, expected, atol=2e-2 * float(expected.std()), rtol=1e-2
        )  # epsilon under the root
        assert not torch.allclose(plain, gained, atol=1e-2)
        logits = lm.splice(TOKENS, names[1], lambda value: value).logits
        assert torch.equal(logits, lm.forward(TOKENS).logits)


def test_the_embedding_is_what_is_added_to_the_stream():
    lm = build(NORMED)  # it multiplies its embedding by the root of its width
    x = lm.capture(TOKENS, ["hook_embed", "blocks.0.hook_resid_pre"])
    torch.testing.assert_close(*x.values())
    assert lm.locate("hook_embed").affine is not None or torch.equal(*x.values())


def test_a_block_spelt_as_in_another_model_is_that_block():
    lm = build("gpt2")
    for site in ("model.layers.1", "gpt_neox.layers.1:out", "layers.1"):
        assert lm.locate(site) == lm.locate("blocks.1.hook_resid_post")


def test_sites_before_a_splice_are_those_of_the_clean_forward_and_later_ones_those_of_the_altered(lm):
    tokens, site = TOKENS, "blocks.1.hook_resid_post"
    clean = lm.capture(tokens, ["blocks.0.hook_resid_pre", "blocks.1.hook_attn_out"])
    names = [*clean, site, "blocks.2.hook_mlp_out"]
    found = lm.splice(tokens, site, lambda x: 2 * x, names).activations
    assert list(found) == names
    assert all(torch.equal(found[name], clean[name]) for name in clean)
    post = lm.capture(tokens, site)[site]
    assert torch.equal(found[site], 2 * post)
    expected = lm.resume(2 * post, site, ["blocks.2.hook_mlp_out"]).activations
    assert torch.equal(found["blocks.2.hook_mlp_out"], expected["blocks.2.hook_mlp_out"])


def test_resuming_after_attention_refuses_what_comes_before_it():
    lm = build("gpt2")
    site = "blocks.1.hook_resid_mid"
    x = lm.capture(TOKENS, site)[site]
    for before in ("blocks.1.hook_resid_pre", "blocks.1.hook_attn_out"):
        with pytest.raises(DictlabError, match="not computed"):
            lm.resume(x, site, [before])
    found = lm.resume(x, site, [site, "blocks.1.hook_mlp_out"]).activations
    clean = lm.capture(TOKENS, "blocks.1.hook_mlp_out")
    assert torch.equal(found[site], x)
    assert torch.equal(found["blocks.1.hook_mlp_out"], clean["blocks.1.hook_mlp_out"])


def test_resuming_refuses_sites_that_it_does_not_compute(lm):
    x = lm.capture(TOKENS, "blocks.1.hook_resid_post")["blocks.1.hook_resid_post"]
    embedding = next(name for name, m in lm.model.named_modules() if isinstance(m, torch.nn.Embedding))
    for site in ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", f"{embedding}:out"):
        with pytest.raises(DictlabError, match="not computed"):
            lm.resume(x, "blocks.1.hook_resid_post", [site])
    norm = next(name for name, m in lm.model.named_modules() if m in lm._after_blocks)
    assert f"{norm}:in" in lm.resume(x, "blocks.1.hook_resid_post", [f"{norm}:in"]).activations


def test_the_model_is_left_as_it_was_found(lm):
    logits = lm.forward(TOKENS).logits
    site = "blocks.1.hook_resid_pre"
    lm.capture(TOKENS, site)
    with pytest.raises(DictlabError, match="replacement"):
        lm.splice(TOKENS, site, lambda x: x[:1])
    assert torch.equal(lm.forward(TOKENS).logits, logits)
    assert not any("forward" in vars(module) for module in lm.model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize("site", ["blocks.9.hook_resid_pre", "blocks.1.hook_reside", "no.such.module", ""])
def test_an_unknown_site_is_named_with_what_is_possible(site):
    with pytest.raises(DictlabError, match="blocks"):
        build("gpt2").capture(TOKENS, site)


def test_no_middle_of_the_stream_where_attention_and_mlp_run_in_parallel():
    with pytest.raises(DictlabError, match="parallel"):
        build(PARALLEL).capture(TOKENS, "blocks.1.hook_resid_mid")


def test_the_middle_of_the_stream_is_what_the_norm_before_the_mlp_reads():
    """Also where attention adds through a norm of its own."""
    lm, site = build(NORMED), "blocks.1.hook_resid_mid"
    read = lm.capture(TOKENS, [site, "model.layers.1.pre_feedforward_layernorm:in"])
    assert torch.equal(*read.values())


def test_resuming_inside_a_block_asks_for_the_residual():
    lm = build("gpt2")
    site = "blocks.1.hook_mlp_out"
    with pytest.raises(DictlabError, match=r"blocks\.1\.hook_resid_pre"):
        lm.resume(lm.capture(TOKENS, site)[site], site)


def test_equal_weights_have_equal_fingerprints():
    assert build("gpt2").fingerprint == build("gpt2").fingerprint
    changed = build("gpt2")
    with torch.no_grad():
        changed.model.transformer.h[0].mlp.c_fc.weight[0, 0] += 0.01
    assert changed.fingerprint != build("gpt2").fingerprint


def test_a_model_that_is_not_there_says_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(DictlabError, match=r"Tried: the folder .*beside.*nobody; the folder models/nobody\.$"):
        LanguageModel.load("models/nobody", beside=tmp_path / "beside")


def test_a_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(DictlabError, match="no CUDA device"):
        LanguageModel.load("anything", device="cuda")
