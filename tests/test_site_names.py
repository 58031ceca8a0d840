"""Sites and models: the same thing under all of its names, and different things under different ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dictlab.site_names import canonical_model, canonical_site, hub_model, may_be_one_site, site_in_blocks

ROOTS = [
    "h",
    "transformer.h",
    "model.layers",
    "layers",
    "gpt_neox.layers",
    "model.decoder.layers",
    "transformer.blocks",
]


@pytest.mark.parametrize("root", ROOTS)
@given(block=st.integers(0, 200))
def test_a_blocks_path_is_what_it_gives_or_with_in_what_it_reads(root, block):
    assert (
        site_in_blocks(f"{root}.{block}") == site_in_blocks(f"{root}.{block}:out") == f"blocks.{block}.hook_resid_post"
    )
    assert site_in_blocks(f"{root}.{block}:in") == f"blocks.{block}.hook_resid_pre"
    assert canonical_site(f"{root}.{block}") == canonical_site(f"blocks.{block + 1}.hook_resid_pre")


@pytest.mark.parametrize(
    ("path", "site"),
    [
        ("transformer.h.3.attn.c_proj:in", "blocks.3.attn.hook_z"),
        ("transformer.h.3.attn.attention.out_proj:in", "blocks.3.attn.hook_z"),
        ("gpt_neox.layers.3.attention.dense:in", "blocks.3.attn.hook_z"),
        ("model.layers.3.self_attn.o_proj:in", "blocks.3.attn.hook_z"),
        ("transformer.h.3.mlp.c_proj:in", "blocks.3.mlp.hook_post"),
        ("model.layers.3.mlp.down_proj:in", "blocks.3.mlp.hook_post"),
        ("gpt_neox.layers.3.mlp.dense_4h_to_h:in", "blocks.3.mlp.hook_post"),
    ],
)
def test_paths_inside_a_block_have_the_names_of_its_sites(path, site):
    assert site_in_blocks(path) == canonical_site(path) == site


@pytest.mark.parametrize(
    ("path", "site"),
    [
        ("transformer.h.3.attn", "blocks.3.hook_attn_out"),
        ("model.layers.3.self_attn:out", "blocks.3.hook_attn_out"),
        ("gpt_neox.layers.3.attention", "blocks.3.hook_attn_out"),
        ("h.3.mlp", "blocks.3.hook_mlp_out"),
    ],
)
def test_a_halfs_output_may_be_what_it_adds(path, site):
    assert site_in_blocks(path) == canonical_site(path) == path, "one in GPT-2, two in Gemma 2: the model is asked"
    assert may_be_one_site(path, site) and not may_be_one_site(path, "blocks.4.hook_mlp_out")


@pytest.mark.parametrize(
    "path",
    [
        "transformer.h.3.mlp:in", "transformer.h.3.attn.c_proj", "transformer.h.3.ln_1", "model.embed_tokens",
        "transformer.h", "h.x", "blocks.3.hook_mlp_in", "", "something.h.3",
    ],
)  # fmt: skip
def test_what_has_no_such_name_stays_as_it_is(path):
    assert site_in_blocks(path) == path


@given(st.integers(0, 50), st.integers(0, 50))
def test_two_sites_are_one_place_only_if_they_are(a, b):
    places = ["hook_resid_pre", "hook_resid_mid", "hook_attn_out", "hook_mlp_out", "attn.hook_z", "mlp.hook_post"]
    for one in places:
        for other in places:
            same = canonical_site(f"blocks.{a}.{one}") == canonical_site(f"blocks.{b}.{other}")
            assert same == ((a, one) == (b, other))
    assert (canonical_site(f"blocks.{a}.hook_resid_post") == canonical_site(f"blocks.{b}.hook_resid_pre")) == (
        b == a + 1
    )


@given(st.sampled_from(ROOTS), st.integers(0, 99), st.sampled_from(["", ":in", ":out", ".mlp", ".attn", ".mlp:in"]))
def test_the_one_name_has_no_other(root, block, rest):
    site = f"{root}.{block}{rest}"
    assert site_in_blocks(site_in_blocks(site)) == site_in_blocks(site)
    assert canonical_site(canonical_site(site)) == canonical_site(site)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("gpt2-small", "gpt2"),
        ("gpt2", "gpt2"),
        ("gpt2-medium", "gpt2-medium"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("gemma-2-2b", "google/gemma-2-2b"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("checkpoints/mine", "checkpoints/mine"),
    ],
)
def test_a_short_name_of_a_model_is_what_the_hub_calls_it(short, full):
    assert hub_model(short) == full
    assert hub_model(full) == full
    assert canonical_model(short) == canonical_model(full)


def test_models_of_one_name_are_one_model_whoever_owns_the_copy():
    assert canonical_model("openai-community/gpt2") == canonical_model("gpt2-small") == canonical_model("GPT2")
    assert canonical_model("gpt2") != canonical_model("gpt2-medium")
    assert canonical_model("pythia-70m") != canonical_model("pythia-70m-deduped")
