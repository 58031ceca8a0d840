"""The same thing under two names: sites and models, as different libraries write them.

blocks.6.hook_resid_pre   =   blocks.5.hook_resid_post     what enters block 6 is what leaves block 5
h.5, transformer.h.5, model.layers.5, gpt_neox.layers.5    the output of block 5, as module paths have it
gpt2-small                =   gpt2, openai-community/gpt2
"""

from __future__ import annotations

import re

BLOCK_LIST = r"(?:(?:transformer|model|gpt_neox|decoder|language_model)\.)*(?:h|layers|blocks)"
ATTENTION = r"(?:attn|attention|self_attn|self_attention)"
MLP = r"(?:mlp|feed_forward|ffn)"
OUT_PROJECTION = ("c_proj", "o_proj", "out_proj", "dense")  # of attention
MLP_PROJECTION = ("c_proj", "down_proj", "dense_4h_to_h", "fc2", "fc_out")
MODULE_SITES = (
    (rf"{BLOCK_LIST}\.(\d+):in", "blocks.{}.hook_resid_pre"),
    (rf"{BLOCK_LIST}\.(\d+)(?::out)?", "blocks.{}.hook_resid_post"),
    (
        rf"{BLOCK_LIST}\.(\d+)\.{ATTENTION}(?:\.attention)?\.(?:{'|'.join(OUT_PROJECTION)}):in",
        "blocks.{}.attn.hook_z",
    ),
    (r"blocks\.(\d+)\.mlp\.hook_in", "blocks.{}.ln2.hook_out"),  # TransformerLens: what the MLP reads, gain included
    (rf"{BLOCK_LIST}\.(\d+)\.(?:{MLP}\.)?(?:{'|'.join(MLP_PROJECTION)}):in", "blocks.{}.mlp.hook_post"),
)
# What a module gives and what its half of the block adds are one in some models, and two where a norm, a factor or the
# residual stream comes between: the model has to be asked (`LanguageModel.same_site`).
HALVES = (
    (rf"{BLOCK_LIST}\.(\d+)\.{ATTENTION}(?::out)?", "blocks.{}.hook_attn_out"),
    (rf"{BLOCK_LIST}\.(\d+)\.{MLP}(?::out)?", "blocks.{}.hook_mlp_out"),
)
# Short names that TransformerLens gives to models of the Hub.
SHORT = {"gpt2-small": "gpt2", "distillgpt2": "distilgpt2", "bloom-560m": "bigscience/bloom-560m"}
OWNERS = (("pythia-", "EleutherAI"), ("gemma-", "google"), ("gpt-neo-", "EleutherAI"), ("opt-", "facebook"))


def site_in_blocks(site: str) -> str:
    """A site as `blocks.I.hook_...` where it can be written so, and as it is where not.

    Module paths that lie in a list of blocks are understood from the model's root or from its base model's.
    """
    return _renamed(site, MODULE_SITES)


def _renamed(site: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in rules:
        match = re.fullmatch(pattern, site)
        if match:
            return name.format(match[1])
    return site


def canonical_site(site: str) -> str:
    """The one name of a site, for comparing: sites of equal canonical names are one tensor, whatever the model is."""
    site = site_in_blocks(site)
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", site)
    return f"blocks.{int(match[1]) + 1}.hook_resid_pre" if match else site


def may_be_one_site(one: str, other: str) -> bool:
    """Whether two sites are one tensor in some models: a module's output, and what its half of the block adds."""
    a, b = (_renamed(canonical_site(site), HALVES) for site in (one, other))
    return a == b


def hub_model(name: str) -> str:
    """What a model is called on the Hub, where another library has a short name for it."""
    if name in SHORT:
        return SHORT[name]
    owner = next((owner for start, owner in OWNERS if name.startswith(start)), None)
    return f"{owner}/{name}" if owner else name


def canonical_model(name: str) -> str:
    """The one name of a model, for comparing: without the owner's name, in small letters."""
    return hub_model(name).rstrip("/").rsplit("/", 1)[-1].lower()
