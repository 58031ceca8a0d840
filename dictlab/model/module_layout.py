"""Where in a model is a site?

A language model is a list of blocks between an embedding and a final norm. Nothing more is assumed: what a block
returns, whether its two halves run one after the other, and what runs behind the last one is found out by a forward of
a token or a few.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dictlab.errors import DictlabError
from dictlab.model.hooks import HookPoint, hook, hook_resid_mid, replace_forward, return_zeros
from dictlab.site_names import MLP_PROJECTION, OUT_PROJECTION, site_in_blocks

ATTENTION = ("attn", "attention", "self_attn", "self_attention")
MLP = ("mlp", "feed_forward", "ffn")
HOOK = re.compile(
    r"blocks\.(\d+)\.(hook_resid_pre|hook_resid_mid|hook_resid_post|hook_attn_out|hook_mlp_out|attn\.hook_z|mlp\.hook_post)"
)
ATTENTION_PROJECTION = OUT_PROJECTION
# Norms that some models apply to what a half of a block adds.
ATTENTION_NORM, MLP_NORM = ("post_attention_layernorm",), ("post_feedforward_layernorm",)


class Layout:
    """A causal language model as blocks with sites in and between them.

    Args:
        model: Any causal language model of `transformers`.
        name: What messages call it.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.name = name
        self.blocks = _blocks(model)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def last_site(self) -> str:
        """The residual stream leaving the last block."""
        return f"blocks.{self.n_blocks - 1}.hook_resid_post"

    def locate(self, site: str) -> HookPoint:
        """Find a site in this model.

        Raises:
            DictlabError: There is none of that name; the message says what is possible.
        """
        match = HOOK.fullmatch(site)
        if match is None and self._path(site) is None:
            match = HOOK.fullmatch(site_in_blocks(site))  # a block's path as another model has it
        if match is None:
            return self._module(site)
        block, hook = int(match[1]), match[2]
        if block >= self.n_blocks:
            raise DictlabError(f"site {site}: {self.name} has blocks 0 to {self.n_blocks - 1}.")
        module = self.blocks[block]
        if hook in ("hook_resid_pre", "hook_resid_post"):
            side = "in" if hook == "hook_resid_pre" else "out"
            return HookPoint(block, hook.removeprefix("hook_"), module, side)
        if hook == "attn.hook_z":
            attention = child(module, ATTENTION)
            inner = find(attention, ATTENTION) or attention  # GPT-Neo's lies one deeper
            return HookPoint(block, "module", child(inner, ATTENTION_PROJECTION), "in")
        if hook == "mlp.hook_post":
            return HookPoint(block, "module", child(child(module, MLP), MLP_PROJECTION), "in")
        normed = find(module, MLP_NORM) is not None  # the norm of attention's output goes by this name only then
        if hook == "hook_attn_out":
            return HookPoint(block, "module", child(module, ATTENTION_NORM if normed else ATTENTION), "out")
        if hook == "hook_mlp_out":
            return HookPoint(block, "module", child(module, MLP_NORM if normed else MLP), "out")
        if not self._has_middle:
            raise DictlabError(
                f"site {site}: {self.name} has no residual stream between attention and MLP "
                "(they run in parallel, or add through a norm or a factor of their own)."
            )
        return HookPoint(block, "resid_mid", child(module, ATTENTION), "out")

    def block_input(self, site: str) -> str:
        """The residual stream entering the block of a site: what `resume` needs besides the activation.

        Raises:
            DictlabError: The site lies outside the blocks.
        """
        return f"blocks.{self.in_block(site)[0]}.hook_resid_pre"

    def parameters_after(self, site: str) -> int:
        """Parameters that a forward resumed from a site goes through: the blocks from the site's on, and what follows.

        The whole block of a site inside one is counted; embeddings are, where the unembedding is the same matrix.

        Raises:
            DictlabError: The site lies outside the blocks.
        """
        block, point = self.in_block(site)
        kept = [*self.blocks[block + (point.kind == "resid_post") :], *self._after_blocks]
        return sum({p.data_ptr(): p.numel() for module in kept for p in module.parameters()}.values())

    def later_sites(self, site: str) -> list[str]:
        """The residual stream entering each block after `site`: where e2e+downstream training compares activations."""
        block, point = self.in_block(site)
        # The stream entering block b + 1 is the site itself when the site is resid_post of block b.
        first = block + 1 + (point.kind == "resid_post")
        return [f"blocks.{block}.hook_resid_pre" for block in range(first, self.n_blocks)]

    def in_block(self, site: str) -> tuple[int, HookPoint]:
        """The block of a site, and its point.

        Raises:
            DictlabError: The site lies outside the blocks.
        """
        point = self.locate(site)
        if point.block is None:
            raise DictlabError(f"site {site}: it lies outside the blocks, so the forward cannot be resumed from it.")
        return point.block, point

    def follows(self, site: str, start: HookPoint) -> bool:
        """Whether a forward resumed from `start` computes a site (or has it as its input)."""
        point = self.locate(site)
        if point.block is None:
            return point.module in self._after_blocks
        if start.block is None or point.block != start.block:
            return start.block is None or point.block > start.block
        if start.kind != "resid_mid" or point.kind == "resid_mid":
            return start.kind != "resid_post"
        attention = child(self.blocks[point.block], ATTENTION)
        return point.kind != "resid_pre" and all(point.module is not m for m in attention.modules())

    def _probe(self, handles: Sequence[RemovableHandle]) -> None:
        """A forward of one token with some hooks in point, which are then removed."""
        try:
            with torch.no_grad():
                self.logits(torch.zeros(1, 1, dtype=torch.long))
        finally:
            for handle in handles:
                handle.remove()

    @cached_property
    def _after_blocks(self) -> set[nn.Module]:
        """Modules that first run when the last block is done, such as the final norm."""
        order: list[nn.Module] = []
        handles = [m.register_forward_pre_hook(lambda module, _: order.append(module)) for m in self.model.modules()]
        self._probe(handles)
        last = max(i for i, module in enumerate(order) if any(module is m for m in self.blocks[-1].modules()))
        return set(order[last + 1 :]) - set(order[: last + 1])

    @cached_property
    def _has_middle(self) -> bool:
        """Whether what enters a block plus what attention gives is all that its second half sees; tried on block 0."""
        block, attention = self.blocks[0], child(self.blocks[0], ATTENTION)
        tokens = torch.arange(4)[None]
        entering, leaving = HookPoint(0, "resid_pre", block, "in"), HookPoint(0, "resid_post", block, "out")
        middle: list[Tensor] = []
        left: list[Tensor] = []
        with torch.no_grad(), hook(leaving, left.append):
            with hook_resid_mid(block, attention, middle.append):
                self.logits(tokens)
            silent = return_zeros(self.tuple_lengths[attention], middle[0])
            with hook(entering, lambda _: middle[0]), replace_forward(attention, silent):
                self.logits(tokens)
        return torch.equal(left[0], left[-1])

    def _path(self, site: str) -> str | None:
        """The path of a site's module, which may be given from the base model's root."""
        path, base = site.partition(":")[0], getattr(self.model, "base_model_prefix", "")
        modules = dict(self.model.named_modules())
        return next((full for full in (path, f"{base}.{path}") if path and full in modules), None)

    def _module(self, site: str) -> HookPoint:
        path, side = self._path(site), site.partition(":")[2]
        modules = dict(self.model.named_modules())
        if path is None or side not in ("", "in", "out"):
            raise DictlabError(
                f"site {site!r} is not in {self.name}. Write blocks.I.hook_resid_pre, hook_resid_mid, hook_resid_post, "
                "hook_attn_out, hook_mlp_out, attn.hook_z or mlp.hook_post with I from 0 to "
                f"{self.n_blocks - 1}, or a module's path with :in or "
                f":out, such as {next(name for name, m in modules.items() if m is self.blocks[0])}:in."
            )
        module = modules[path]
        for index, block in enumerate(self.blocks):
            if module is block:
                return HookPoint(index, "resid_pre" if side == "in" else "resid_post", module, side or "out")
            if any(module is inner for inner in block.modules()):
                return HookPoint(index, "module", module, side or "out")
        return HookPoint(None, "module", module, side or "out")

    def logits(self, tokens: Tensor, cache: Any = None) -> Tensor:
        """The model's own forward; what earlier tokens left behind may be given as a cache of `transformers`."""
        given = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
        there = tokens.to(self.device, non_blocking=True)  # the host does not wait for what a GPU has to do before
        logits: Tensor = self.model(input_ids=there, **given).logits
        return logits

    @cached_property
    def tuple_lengths(self) -> dict[nn.Module, int]:
        """For each block, attention and MLP, the length of the tuple it returns; 0 where it returns a tensor."""
        inner = [m for block in self.blocks for names in (ATTENTION, MLP) if (m := find(block, names)) is not None]
        lengths: dict[nn.Module, int] = {}

        def note(module: nn.Module, _: Any, output: Any) -> None:
            lengths[module] = len(output) if isinstance(output, tuple) else 0

        handles = [module.register_forward_hook(note) for module in (*self.blocks, *inner)]
        self._probe(handles)
        return lengths


def _blocks(model: nn.Module) -> nn.ModuleList:
    """The model's list of blocks: the module list as long as the configuration says there are layers."""
    n_layers = getattr(model.config, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if not lists:
        raise DictlabError(
            f"{type(model).__name__}: no list of {n_layers} blocks found; is it a causal language model?"
        )
    return lists[0]


def child(block: nn.Module, names: Sequence[str]) -> nn.Module:
    """The part of a block that goes by one of these names.

    Raises:
        DictlabError: It has none.
    """
    child = find(block, names)
    if child is None:
        raise DictlabError(f"{type(block).__name__} has no module called {' or '.join(names)}; give the module's path.")
    return child


def find(block: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """The same, or None."""
    return next((getattr(block, name) for name in names if hasattr(block, name)), None)
