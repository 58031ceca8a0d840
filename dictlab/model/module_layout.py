"""Where in a model is a site?

A language model is a list of blocks between an embedding and a final norm. Nothing more is assumed: what a block
returns, what its halves add, whether they run one after the other, and what runs behind the last one is found out by
forwards of a few tokens.
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
from dictlab.model import block_parts
from dictlab.model.block_parts import BlockTrace, Halves, attention_of, child, find, mlp_of
from dictlab.model.head_columns import n_heads, one_head, projection_of
from dictlab.model.hooks import Affine, HookPoint, hook, hook_resid_mid, replace_forward, return_zeros
from dictlab.site_names import MLP_PROJECTION, site_in_blocks

HOOK = re.compile(
    r"blocks\.(\d+)\.(?:(hook_resid_pre|hook_resid_mid|hook_resid_post|hook_attn_out|hook_mlp_out|mlp\.hook_post"
    r"|ln[12]\.hook_normalized|ln[12]\.hook_out)|attn\.hook_([qkvz])(?:\.head\.(\d+))?)"
)
PROBE = 8  # tokens of the forwards that find out how a model is built


class Layout:
    """A causal language model as blocks with sites in and between them.

    Args:
        model: Any causal language model of `transformers`.
        name: What messages call it.
        blocks: Its blocks; found by the configuration of the model by default.
    """

    def __init__(self, model: Any, name: str, blocks: nn.ModuleList | None = None) -> None:
        self.model = model
        self.name = name
        self.blocks = _blocks(model) if blocks is None else blocks
        self._located: dict[str, HookPoint] = {}
        self._traces: dict[int, BlockTrace] = {}
        self._halves: dict[int, Halves | None] = {}
        self._has_middle: dict[int, bool] = {}

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

    @property
    def vocabulary(self) -> int:
        """Entries of its output distribution."""
        return int(self.model.config.get_text_config().vocab_size)

    def locate(self, site: str) -> HookPoint:
        """Find a site in this model.

        Raises:
            DictlabError: There is none of that name; the message says what is possible.
        """
        if site not in self._located:
            self._located[site] = self._locate(site)
        return self._located[site]

    def _locate(self, site: str) -> HookPoint:
        if site == "hook_embed":
            return self._embedding()
        match = HOOK.fullmatch(site)
        if match is None and self._path(site) is None:
            match = HOOK.fullmatch(site_in_blocks(site))  # a block's path as another model has it
        if match is None:
            return self._module(site)
        index, hook_name, letter, head = int(match[1]), match[2], match[3], match[4]
        if index >= self.n_blocks:
            raise DictlabError(f"site {site}: {self.name} has blocks 0 to {self.n_blocks - 1}.")
        block = self.blocks[index]
        if letter is not None:
            config = self.model.config.get_text_config()
            point = projection_of(index, block, letter, config)
            return point if head is None else one_head(point, site, int(head), n_heads(letter, config))
        if hook_name in ("hook_resid_pre", "hook_resid_post"):
            side = "in" if hook_name == "hook_resid_pre" else "out"
            return HookPoint(index, hook_name.removeprefix("hook_"), block, side)
        if hook_name == "mlp.hook_post":
            return HookPoint(index, "module", child(find(block, block_parts.MLP) or block, MLP_PROJECTION), "in")
        if hook_name.startswith("ln"):
            return self._norm(site, index, attention_of(block) if hook_name[2] == "1" else mlp_of(block))
        return self._half(site, index, hook_name)

    def _half(self, site: str, index: int, hook_name: str) -> HookPoint:
        """What attention or the MLP adds to the residual stream, or the stream between the two."""
        block = self.blocks[index]
        attention_of(block), mlp_of(block)  # names what is missing
        if index not in self._halves:
            self._halves[index] = block_parts.halves(index, block, self._trace(index))
        parts = self._halves[index]
        if parts is None:
            raise DictlabError(
                f"site {site}: in block {index} of {self.name} no two tensors are what attention and the MLP add to "
                "the residual stream (resid_pre + attn_out + mlp_out = resid_post does not hold: the stream itself is "
                "normalised or scaled, or something else is added). Give a module's path, such as "
                f"{self._path_of(attention_of(block))}:out."
            )
        if hook_name == "hook_attn_out":
            return parts.attn_out
        if hook_name == "hook_mlp_out":
            return parts.mlp_out
        if not self._middle(index, parts.attn_out):
            raise DictlabError(
                f"site {site}: {self.name} has no residual stream between attention and MLP (they run in parallel)."
            )
        attn_out = parts.attn_out
        return HookPoint(index, "resid_mid", attn_out.module, "out", affine=attn_out.affine)

    def _norm(self, site: str, index: int, half: nn.Module) -> HookPoint:
        """The output of the norm that attention or the MLP reads, with or without its gain and bias."""
        traced = self._trace(index)
        call = traced.call_of(half)
        norm = None
        if call is not None and call.given is not None:
            matches = (c for c in traced.calls if c.returned is not None and c.returned.shape == call.given.shape)
            norm = next((c.module for c in matches if torch.equal(_tensor(c.returned), call.given)), None)
        if norm is None or norm is half or any(True for _ in norm.children()):
            raise DictlabError(f"site {site}: what {type(half).__name__} of {self.name} reads is no norm's output.")
        if site.endswith("ln2.hook_out") or site.endswith("ln2.hook_normalized"):
            first = traced.call_of(attention_of(self.blocks[index]))
            if first is not None and first.given is not None and torch.equal(first.given, _tensor(call and call.given)):
                raise DictlabError(f"site {site}: in {self.name} attention and MLP read one norm's output; it is ln1.")
        if site.endswith("hook_out"):
            return HookPoint(index, "module", norm, "out")
        reference = next(iter(norm.parameters()), next(self.model.parameters()))
        return block_parts.normalised(index, norm, traced.entering.shape[-1], reference)

    def _embedding(self) -> HookPoint:
        """What the token embedding adds to the residual stream that enters block 0, with the factor that is applied.

        Tested on two sequences: the stream differs by as much as the embeddings do, times that factor. What remains
        depends on positions alone.
        """
        plain = HookPoint(None, "module", self.model.get_input_embeddings(), "out")
        embedded: list[Tensor] = []
        streams: list[Tensor] = []
        entering = HookPoint(0, "resid_pre", self.blocks[0], "in")
        with (
            torch.no_grad(),
            hook(plain, lambda x: embedded.append(x.double().cpu())),
            hook(entering, lambda x: streams.append(x.double().cpu())),
        ):
            for tokens in (self.probe, self.probe.flip(1)):
                self.logits(tokens)
        x, y = ((pair[0] - pair[-1]).flatten() for pair in (embedded, streams))
        factor = float(x @ y / (x @ x)) if x.shape == y.shape else 0.0
        rounding = torch.finfo(self.model.dtype).eps
        if factor == 0 or float((factor * x - y).norm()) > block_parts.ROUNDING * rounding * float(streams[0].norm()):
            raise DictlabError(
                f"site hook_embed: in {self.name} the token embedding is normalised or projected before block 0, so it "
                "is no part of the residual stream. Give the module's path."
            )
        if abs(factor - 1) < 1e-2:
            return plain
        affine = Affine(torch.tensor(1 / factor), torch.zeros(()))
        return HookPoint(None, "module", plain.module, "out", affine=affine)

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
        """The block of a site, and where it is.

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
        attention = attention_of(self.blocks[point.block])
        return point.kind != "resid_pre" and all(point.module is not m for m in (*attention.modules(), start.module))

    @property
    def probe(self) -> Tensor:
        """A few tokens, `[1, 8]`, that differ from each other."""
        return torch.arange(1, PROBE + 1)[None] % self.vocabulary

    def _probe(self, handles: Sequence[RemovableHandle]) -> None:
        """A forward of one token with some hooks in place, which are then removed."""
        try:
            with torch.no_grad():
                self.logits(torch.zeros(1, 1, dtype=torch.long))
        finally:
            for handle in handles:
                handle.remove()

    def _trace(self, index: int) -> BlockTrace:
        if index not in self._traces:
            self._traces[index] = block_parts.trace(self.blocks[index], lambda: self.logits(self.probe))
        return self._traces[index]

    @cached_property
    def _after_blocks(self) -> set[nn.Module]:
        """Modules that first run when the last block is done, such as the final norm."""
        order: list[nn.Module] = []
        handles = [m.register_forward_pre_hook(lambda module, _: order.append(module)) for m in self.model.modules()]
        self._probe(handles)
        last = max(i for i, module in enumerate(order) if any(module is m for m in self.blocks[-1].modules()))
        return set(order[last + 1 :]) - set(order[: last + 1])

    def _middle(self, index: int, attn_out: HookPoint) -> bool:
        """Whether what enters a block plus what attention adds is all that its second half sees."""
        if index not in self._has_middle:
            block = self.blocks[index]
            entering, final = HookPoint(index, "resid_pre", block, "in"), HookPoint(index, "resid_post", block, "out")
            middle: list[Tensor] = []
            leaving: list[Tensor] = []
            with torch.no_grad(), hook(final, leaving.append):
                with hook_resid_mid(block, attn_out, middle.append):
                    self.logits(self.probe)
                silent = return_zeros(self.tuple_lengths[attn_out.module], middle[0])
                with hook(entering, lambda _: middle[0]), replace_forward(attn_out.module, silent):
                    self.logits(self.probe)
            tolerance = block_parts.ROUNDING * torch.finfo(leaving[0].dtype).eps * float(middle[0].abs().max())
            self._has_middle[index] = float((leaving[0] - leaving[-1]).abs().max()) <= tolerance
        return self._has_middle[index]

    def _path(self, site: str) -> str | None:
        """The path of a site's module, which may be given from the base model's root."""
        path, base = site.partition(":")[0], getattr(self.model, "base_model_prefix", "")
        modules = dict(self.model.named_modules())
        return next((full for full in (path, f"{base}.{path}") if path and full in modules), None)

    def _path_of(self, module: nn.Module) -> str:
        names: dict[nn.Module, str] = {other: name for name, other in self.model.named_modules()}
        return names[module]

    def _module(self, site: str) -> HookPoint:
        path, side = self._path(site), site.partition(":")[2]
        if path is None or side not in ("", "in", "out"):
            raise DictlabError(
                f"site {site!r} is not in {self.name}. Write blocks.I.hook_resid_pre, hook_resid_mid, hook_resid_post, "
                "hook_attn_out, hook_mlp_out, attn.hook_q, hook_k, hook_v or hook_z (or attn.hook_z.head.H), "
                "mlp.hook_post, ln1.hook_normalized, ln1.hook_out, ln2.hook_normalized or ln2.hook_out with I from 0 "
                f"to {self.n_blocks - 1}, or hook_embed, or a module's path with :in or :out, such as "
                f"{self._path_of(self.blocks[0])}:in."
            )
        module = self.model.get_submodule(path)
        for index, block in enumerate(self.blocks):
            if module is block:
                return HookPoint(index, "resid_pre" if side == "in" else "resid_post", module, side or "out")
            if any(module is inner for inner in block.modules()):
                return HookPoint(index, "module", module, side or "out")
        return HookPoint(None, "module", module, side or "out")

    def logits(self, tokens: Tensor, cache: Any = None) -> Tensor:
        """The model's own forward; what earlier tokens left behind may be given as a cache of `transformers`."""
        given = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
        on_device = tokens.to(self.device, non_blocking=True)  # the host does not wait for what a GPU has to do before
        logits: Tensor = self.model(input_ids=on_device, **given).logits
        return logits

    @cached_property
    def tuple_lengths(self) -> dict[nn.Module, int]:
        """For each block and each module inside, the length of the tuple it returns; 0 where it returns a tensor."""
        lengths: dict[nn.Module, int] = {}

        def note(module: nn.Module, _: Any, output: Any) -> None:
            length = block_parts.tuple_length(output)
            if length is not None:
                lengths[module] = length

        handles = [m.register_forward_hook(note) for block in self.blocks for m in block.modules()]
        self._probe(handles)
        return lengths


def _tensor(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _blocks(model: Any) -> nn.ModuleList:
    """The model's list of blocks: the module list as long as the configuration of its text part says."""
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    for part in (decoder, model):
        if isinstance(part, nn.Module):
            lists = [m for m in part.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
            if lists:
                return lists[0]
    raise DictlabError(f"{type(model).__name__}: no list of {n_layers} blocks found; is it a causal language model?")
