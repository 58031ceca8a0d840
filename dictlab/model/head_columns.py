"""Queries, keys, values and outputs of a block's attention, of all heads side by side or of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from dictlab.errors import DictlabError
from dictlab.model.block_parts import ATTENTION, attention_of, child, find
from dictlab.model.hooks import HookPoint
from dictlab.site_names import OUT_PROJECTION

PROJECTIONS = {letter: (f"{letter}_proj",) for letter in "qkv"}


def projection_of(index: int, block: nn.Module, letter: str, config: Any) -> HookPoint:
    """Where queries ("q"), keys ("k") or values ("v") leave their projection, before norms and rotary positions, or
    where the heads' outputs ("z") enter theirs.

    Raises:
        DictlabError: The attention has no such projection of its own, or it gives something else besides.
    """
    attention = attention_of(block)
    attention = find(attention, ATTENTION) or attention  # GPT-Neo's lies one deeper
    if letter == "z":
        return HookPoint(index, "module", child(attention, OUT_PROJECTION), "in")
    projection = find(attention, PROJECTIONS[letter])
    heads = n_heads(letter, config)
    if projection is None:
        return _fused(index, attention, letter, heads)
    d_head = getattr(attention, "head_dim", None) or getattr(config, "head_dim", None)
    width = getattr(projection, "out_features", None)
    if d_head is not None and width is not None and width != heads * d_head:
        raise DictlabError(
            f"site blocks.{index}.attn.hook_{letter}: {type(attention).__name__} computes {width} numbers there, not "
            f"{heads} heads of {d_head}; give the module's path."
        )
    return HookPoint(index, "module", projection, "out")


def _fused(index: int, attention: nn.Module, letter: str, heads: int) -> HookPoint:
    """The columns of queries, keys or values where one projection gives all three, for as many heads each.

    GPT-2's `c_attn` gives all queries, then all keys, then all values; `query_key_value` (GPT-NeoX, BLOOM) gives the
    query, key and value of the first head, then of the second.
    """
    third = "qkv".index(letter)
    projection = find(attention, ("c_attn", "query_key_value"))
    width = getattr(projection, "out_features", getattr(projection, "nf", None))
    width_in = getattr(projection, "in_features", getattr(projection, "nx", None))
    if projection is None or width is None or width != 3 * (width_in or 0) or width % (3 * heads):
        raise DictlabError(
            f"site blocks.{index}.attn.hook_{letter}: {type(attention).__name__} has no projection for it alone; give "
            "the path of the module that holds it."
        )
    d_head = width // (3 * heads)
    if hasattr(attention, "c_attn"):
        columns = list(range(third * width // 3, (third + 1) * width // 3))
    else:
        columns = [3 * d_head * head + third * d_head + i for head in range(heads) for i in range(d_head)]
    return HookPoint(index, "module", projection, "out", columns=tuple(columns))


def n_heads(letter: str, config: Any) -> int:
    """Heads of queries and outputs, or of keys and values."""
    heads = int(config.num_attention_heads)
    return int(getattr(config, "num_key_value_heads", None) or heads) if letter in "kv" else heads


def one_head(point: HookPoint, site: str, head: int, heads: int) -> HookPoint:
    """The columns of one head among all of them, which lie side by side.

    Raises:
        DictlabError: There is no such head, or the width is not a multiple of their number.
    """
    linear = point.module
    names = ("in_features", "nx") if point.side == "in" else ("out_features", "nf")
    width = next((w for name in names if (w := getattr(linear, name, None)) is not None), 0)
    columns = point.columns or tuple(range(width))
    if head >= heads:
        raise DictlabError(f"site {site}: there are heads 0 to {heads - 1}.")
    if not columns or len(columns) % heads:
        raise DictlabError(f"site {site}: {type(linear).__name__} of width {width} does not hold {heads} equal heads.")
    d_head = len(columns) // heads
    return replace(point, columns=columns[head * d_head : (head + 1) * d_head])
