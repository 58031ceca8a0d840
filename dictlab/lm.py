"""What does a language model do, and what does it do when one of its activations is replaced?

`LanguageModel` wraps any Hugging Face causal language model. No model is re-implemented: activations are read and
written by hooks, and a forward from the middle is the model's own forward with its earlier blocks made to pass their
input on untouched. That is why `resume(capture(tokens, site), site)` gives the logits of the full forward, bit for bit.

Sites are written as the field writes them, and any module path works too:

    blocks.3.hook_resid_pre     the residual stream entering block 3
    blocks.3.hook_resid_mid     between attention and MLP (not where both read the same stream, as in Pythia)
    blocks.3.hook_resid_post    leaving block 3
    blocks.3.hook_attn_out      what attention adds            blocks.3.hook_mlp_out    what the MLP adds
    blocks.3.attn.hook_z        the heads' outputs side by side, before the output projection
    blocks.3.mlp.hook_post      the MLP's neurons, likewise
    transformer.h.3.mlp:in      a module's input               transformer.h.3.mlp      (or :out) its output
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dictlab.errors import DictlabError
from dictlab.hooks import Place, adding_nothing, giving, passing_on, standing_in, visiting, visiting_sum
from dictlab.names import MLP_PROJECTION, OUT_PROJECTION, site_in_blocks
from dictlab.past import Past

ATTENTION = ("attn", "attention", "self_attn", "self_attention")
MLP = ("mlp", "feed_forward", "ffn")
HOOK = re.compile(
    r"blocks\.(\d+)\.(hook_resid_pre|hook_resid_mid|hook_resid_post|hook_attn_out|hook_mlp_out|attn\.hook_z|mlp\.hook_post)"
)
ATTENTION_PROJECTION = OUT_PROJECTION
# Norms that some models apply to what a half of a block adds.
ATTENTION_NORM, MLP_NORM = ("post_attention_layernorm",), ("post_feedforward_layernorm",)

Replacement = Tensor | Callable[[Tensor], Tensor]


class Forward(NamedTuple):
    """What a forward gave: logits `[batch, context, vocabulary]`, and the activations that were asked for, by site."""

    logits: Float[Tensor, "batch context vocabulary"]
    activations: dict[str, Float[Tensor, "batch context d_in"]]


class LanguageModel:
    """A Hugging Face causal language model with three verbs: `capture`, `splice`, `resume`.

    Its weights are frozen and it is put in evaluation mode; gradients flow through to activations.

    Args:
        model: Any causal language model of `transformers`.
        tokenizer: Its tokenizer.
        name: What reports call it, and how it can be found again.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "model") -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.blocks = _blocks(model)

    @classmethod
    def load(
        cls, name: str | Path, *, beside: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> LanguageModel:
        """Open a model from a folder or the Hugging Face Hub.

        Args:
            name: A folder, or a name on the Hub.
            beside: Where to look for the folder first: next to the dictionary that names it.
            device: "cpu", "cuda", ...
            dtype: Precision of the weights.

        Raises:
            DictlabError: It is in none of these places; the message says which were tried.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        check_device(device)
        folders = [Path(name)] if beside is None else [beside / name, Path(name)]
        found = next((folder for folder in folders if (folder / "config.json").exists()), None)
        source, tried = str(found or name), [f"the folder {folder}" for folder in folders]
        if found is None and not _may_be_on_hub(source):
            raise DictlabError(f"model {source!r} was not found. Tried: {'; '.join(tried)}.")
        try:
            with _quiet():
                model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, SafetensorError) as error:
            where = "; ".join(tried if found else [*tried, f"{source!r} on the Hugging Face Hub"])
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DictlabError(f"model {str(name)!r} could not be opened. Tried: {where} ({first}).") from error
        return cls(model.to(device), tokenizer, str(name))

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def context(self) -> int:
        """The longest context it was built for, in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 1024))

    def context_length(self, wanted: int | None = None) -> int:
        """Tokens a context: as many as are wanted, or as the model was built for, 1,024 at most.

        Raises:
            DictlabError: More are wanted than the model was built for, or fewer than two.
        """
        if wanted is None:
            return min(self.context, 1024)
        if not 2 <= wanted <= self.context:
            raise DictlabError(f"context is {wanted}; {self.name} takes 2 to {self.context} tokens.")
        return wanted

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def vocabulary(self) -> int:
        """Entries of its output distribution."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def last_site(self) -> str:
        """The residual stream leaving the last block."""
        return f"blocks.{self.n_blocks - 1}.hook_resid_post"

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal weights: SHA-256 over each parameter's name, shape and up to 1,024 of its values."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            flat = weight.detach().flatten()
            sample = flat[:: max(1, len(flat) // 1024)][:1024].float().cpu()
            digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def capture(
        self, tokens: Int[Tensor, "batch context"], sites: str | Sequence[str]
    ) -> dict[str, Float[Tensor, "batch context d_in"]]:
        """Activations at some sites. The forward is left as soon as the last of them is reached.

        Raises:
            DictlabError: A site is not one of this model's.
        """
        sites = [sites] if isinstance(sites, str) else list(sites)
        caught: dict[str, Tensor] = {}
        with self._catching(sites, caught, leave=True), suppress(_Reached):
            self._logits(tokens)
        return caught

    def forward(self, tokens: Int[Tensor, "batch context"], sites: Sequence[str] = ()) -> Forward:
        """The whole forward: logits, and activations at some sites."""
        caught: dict[str, Tensor] = {}
        with self._catching(sites, caught):
            return Forward(self._logits(tokens), caught)

    def splice(
        self, tokens: Int[Tensor, "batch context"], site: str, replacement: Replacement, sites: Sequence[str] = ()
    ) -> Forward:
        """The forward of `tokens` with the activation at `site` replaced.

        Args:
            tokens: Token ids.
            site: Where.
            replacement: A tensor, or a function of the clean activation.
            sites: Where to catch activations of the altered forward.

        Raises:
            DictlabError: The site is not one of this model's, or the replacement has another shape.
        """
        place = self.locate(site)
        if place.block is not None:
            start, after = self.start_of(site), [other for other in sites if self._follows(other, place)]
            clean = self.capture(tokens, [start, site, *(other for other in sites if other not in after)])
            new = _applied(replacement, clean[site], site)
            out = self.resume(new, site, after, residual=clean[start])
            known = clean | {site: new} | out.activations
            return Forward(out.logits, {other: known[other] for other in sites})
        caught: dict[str, Tensor] = {}
        with self._catching(sites, caught), visiting(place, lambda x: _applied(replacement, x, site)):
            return Forward(self._logits(tokens), caught)

    def resume(
        self,
        activation: Float[Tensor, "batch context d_in"],
        site: str,
        sites: Sequence[str] = (),
        *,
        residual: Float[Tensor, "batch context d_model"] | None = None,
    ) -> Forward:
        """The rest of the forward, from an activation at `site`: only the blocks from there on are computed.

        Args:
            activation: What stands at `site`. Gradients flow back to it.
            site: Where it stands.
            sites: Where to catch activations on the way.
            residual: The residual stream entering the block of `site`. Needed where the site is not the residual
                stream itself but something inside a block, such as `hook_mlp_out`.

        Raises:
            DictlabError: The site lies outside the blocks, or `residual` is needed and missing.
        """
        caught: dict[str, Tensor] = {}
        with self._resuming(activation, site, sites, residual) as tokens, self._catching(sites, caught):
            return Forward(self._logits(tokens), caught)

    def carry(
        self,
        activation: Float[Tensor, "batch context d_in"],
        site: str,
        *,
        residual: Float[Tensor, "batch context d_model"] | None = None,
        past: Past | None = None,
    ) -> Float[Tensor, "batch context d_model"]:
        """The residual stream leaving the last block, resumed from an activation at `site`: `resume` without logits.

        Args:
            activation: What stands at `site`.
            site: Where it stands.
            residual: As for `resume`.
            past: What the tokens before these left behind. The batch must be a multiple of theirs: it is taken for so
                many versions of it, one after the other.

        Raises:
            DictlabError: As for `resume`.
        """
        place = self.locate(site)
        if place.kind == "resid_post" and place.module is self.blocks[-1]:
            return activation
        caught: dict[str, Tensor] = {}
        with (
            self._resuming(activation, site, [self.last_site], residual) as tokens,
            self._catching([self.last_site], caught, leave=True),
            suppress(_Reached),
        ):
            self._logits(tokens, None if past is None else past.cache(len(tokens)))
        return caught[self.last_site]

    def past(
        self,
        activation: Float[Tensor, "batch past d_in"],
        site: str,
        *,
        residual: Float[Tensor, "batch past d_model"] | None = None,
    ) -> Past | None:
        """What these tokens leave to later ones in the blocks from `site` on; None of no tokens.

        With it, `carry` of later tokens costs those tokens only. Arguments as for `resume`.
        """
        if activation.shape[1] == 0:
            return None
        with self._resuming(activation, site, (), residual) as tokens:
            return Past.of(lambda cache: self._logits(tokens, cache), self.n_blocks)

    def unembed(self, residual: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens vocabulary"]:
        """Logits of residual streams leaving the last block: the model's own final norm, unembedding and logit caps.

        All of that acts on each token alone, so each is given as a sequence of its own.
        """
        return self.resume(residual[:, None], self.last_site).logits[:, 0]

    @contextmanager
    def _resuming(
        self, activation: Tensor, site: str, sites: Sequence[str], residual: Tensor | None
    ) -> Iterator[Int[Tensor, "batch context"]]:
        """Let a forward begin at `site`. Gives tokens to run it with; what they are does not matter."""
        (block, place), lengths = self._in_block(site), self._returns
        if place.kind == "module" and residual is None:
            start = self.start_of(site)
            raise DictlabError(f"site {site} is not the whole residual stream: give resume the residual at {start}.")
        for other in sites:
            if not self._follows(other, place):
                raise DictlabError(f"site {other} is not computed when the forward is resumed from {site}.")
        activation = activation.contiguous()  # some modules take no other
        first = block + (place.kind == "resid_post")
        entering = residual if place.kind == "module" else activation
        with ExitStack() as stack:
            for skipped in self.blocks[:first]:
                stack.enter_context(standing_in(skipped, passing_on(lengths[skipped])))
            stack.enter_context(self._entering(first, entering))
            if place.kind == "resid_mid":
                attention = _child(self.blocks[first], ATTENTION)
                stack.enter_context(standing_in(attention, adding_nothing(lengths[attention], activation)))
            if place.kind == "module" and place.side == "out" and place.module in lengths:
                stack.enter_context(standing_in(place.module, giving(lengths[place.module], activation)))
            elif place.kind == "module":
                stack.enter_context(visiting(place, lambda _: activation))
            yield torch.zeros(activation.shape[:2], dtype=torch.long, device=activation.device)

    def locate(self, site: str) -> Place:
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
            return Place(block, hook.removeprefix("hook_"), module, side)
        if hook == "attn.hook_z":
            attention = _child(module, ATTENTION)
            inner = _find(attention, ATTENTION) or attention  # GPT-Neo's lies one deeper
            return Place(block, "module", _child(inner, ATTENTION_PROJECTION), "in")
        if hook == "mlp.hook_post":
            return Place(block, "module", _child(_child(module, MLP), MLP_PROJECTION), "in")
        normed = _find(module, MLP_NORM) is not None  # the norm of attention's output goes by this name only then
        if hook == "hook_attn_out":
            return Place(block, "module", _child(module, ATTENTION_NORM if normed else ATTENTION), "out")
        if hook == "hook_mlp_out":
            return Place(block, "module", _child(module, MLP_NORM if normed else MLP), "out")
        if not self._has_middle:
            raise DictlabError(
                f"site {site}: {self.name} has no residual stream between attention and MLP "
                "(they run in parallel, or add through a norm or a factor of their own)."
            )
        return Place(block, "resid_mid", _child(module, ATTENTION), "out")

    def start_of(self, site: str) -> str:
        """The residual stream entering the block of a site: what `resume` needs besides the activation.

        Raises:
            DictlabError: The site lies outside the blocks.
        """
        return f"blocks.{self._in_block(site)[0]}.hook_resid_pre"

    def later_sites(self, site: str) -> list[str]:
        """The residual stream entering each block after `site`: where e2e+downstream training compares activations."""
        block, place = self._in_block(site)
        # The stream entering block b + 1 is the site itself when the site is resid_post of block b.
        first = block + 1 + (place.kind == "resid_post")
        return [f"blocks.{block}.hook_resid_pre" for block in range(first, self.n_blocks)]

    def _in_block(self, site: str) -> tuple[int, Place]:
        place = self.locate(site)
        if place.block is None:
            raise DictlabError(f"site {site}: it lies outside the blocks, so the forward cannot be resumed from it.")
        return place.block, place

    def _follows(self, site: str, start: Place) -> bool:
        """Whether a forward resumed from `start` computes a site (or has it as its input)."""
        place = self.locate(site)
        if place.block is None:
            return place.module in self._after_blocks
        if start.block is None or place.block != start.block:
            return start.block is None or place.block > start.block
        if start.kind != "resid_mid" or place.kind == "resid_mid":
            return start.kind != "resid_post"
        attention = _child(self.blocks[place.block], ATTENTION)
        return place.kind != "resid_pre" and all(place.module is not m for m in attention.modules())

    def _probe(self, handles: Sequence[RemovableHandle]) -> None:
        """A forward of one token with some hooks in place, which are then removed."""
        try:
            with torch.no_grad():
                self._logits(torch.zeros(1, 1, dtype=torch.long))
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
        block, attention = self.blocks[0], _child(self.blocks[0], ATTENTION)
        tokens = torch.arange(4)[None]
        entering, leaving = Place(0, "resid_pre", block, "in"), Place(0, "resid_post", block, "out")
        middle: list[Tensor] = []
        left: list[Tensor] = []
        with torch.no_grad(), visiting(leaving, left.append):
            with visiting_sum(block, attention, middle.append):
                self._logits(tokens)
            silent = adding_nothing(self._returns[attention], middle[0])
            with visiting(entering, lambda _: middle[0]), standing_in(attention, silent):
                self._logits(tokens)
        return torch.equal(left[0], left[-1])

    def _path(self, site: str) -> str | None:
        """The path of a site's module, which may be given from the base model's root."""
        path, base = site.partition(":")[0], getattr(self.model, "base_model_prefix", "")
        modules = dict(self.model.named_modules())
        return next((full for full in (path, f"{base}.{path}") if path and full in modules), None)

    def _module(self, site: str) -> Place:
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
                return Place(index, "resid_pre" if side == "in" else "resid_post", module, side or "out")
            if any(module is inner for inner in block.modules()):
                return Place(index, "module", module, side or "out")
        return Place(None, "module", module, side or "out")

    def _logits(self, tokens: Tensor, cache: Any = None) -> Tensor:
        given = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
        logits: Tensor = self.model(input_ids=tokens.to(self.device), **given).logits
        return logits

    @contextmanager
    def _catching(self, sites: Sequence[str], caught: dict[str, Tensor], leave: bool = False) -> Iterator[None]:
        """Put the activation at each site into `caught`; optionally leave the forward when all are there."""
        with ExitStack() as stack:
            for site in sites:
                place = self.locate(site)

                def catch(x: Tensor, site: str = site) -> None:
                    caught[site] = x
                    if leave and len(caught) == len(set(sites)):
                        raise _Reached

                if place.kind == "resid_mid":
                    stack.enter_context(visiting_sum(self.blocks[place.block or 0], place.module, catch))
                else:
                    stack.enter_context(visiting(place, catch))
            yield

    @contextmanager
    def _entering(self, block: int, activation: Tensor | None) -> Iterator[None]:
        """Replace what enters a block (or, after the last one, what leaves the blocks)."""
        if block < self.n_blocks:
            place = Place(block, "resid_pre", self.blocks[block], "in")
        else:
            place = Place(block, "resid_post", self.blocks[-1], "out")
        with visiting(place, lambda _: activation):
            yield

    @cached_property
    def _returns(self) -> dict[nn.Module, int]:
        """For each block, attention and MLP, the length of the tuple it returns; 0 where it returns a tensor."""
        inner = [m for block in self.blocks for names in (ATTENTION, MLP) if (m := _find(block, names)) is not None]
        lengths: dict[nn.Module, int] = {}

        def note(module: nn.Module, _: Any, output: Any) -> None:
            lengths[module] = len(output) if isinstance(output, tuple) else 0

        handles = [module.register_forward_hook(note) for module in (*self.blocks, *inner)]
        self._probe(handles)
        return lengths


class _Reached(Exception):
    """The last site of a capture was reached."""


def _may_be_on_hub(name: str) -> bool:
    """Whether a name can be one on the Hub (`gpt2`, `owner/name`), not a path. Asking in vain costs half a minute."""
    return name.count("/") <= 1 and name[0] not in "./~" and not ("/" in name and Path(name).parent.is_dir())


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for weights that load in a moment; the caller's setting is put back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_device(device: str) -> None:
    """Refuse a device that is not there, rather than quietly use another.

    Raises:
        DictlabError: CUDA was asked for and this machine, or this build of torch, has none.
    """
    try:
        torch.device(device)
    except RuntimeError as error:
        raise DictlabError(f"device {device!r} is unknown; write cpu, cuda, or cuda:1.") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DictlabError(f"device {device!r}: no CUDA device is available to torch {torch.__version__}; use cpu.")


def _blocks(model: nn.Module) -> nn.ModuleList:
    """The model's list of blocks: the module list as long as the configuration says there are layers."""
    n_layers = getattr(model.config, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if not lists:
        raise DictlabError(
            f"{type(model).__name__}: no list of {n_layers} blocks found; is it a causal language model?"
        )
    return lists[0]


def _child(block: nn.Module, names: Sequence[str]) -> nn.Module:
    child = _find(block, names)
    if child is None:
        raise DictlabError(f"{type(block).__name__} has no module called {' or '.join(names)}; give the module's path.")
    return child


def _find(block: nn.Module, names: Sequence[str]) -> nn.Module | None:
    return next((getattr(block, name) for name in names if hasattr(block, name)), None)


def _applied(replacement: Replacement, clean: Tensor, site: str) -> Tensor:
    new = replacement if isinstance(replacement, Tensor) else replacement(clean)
    if new.shape != clean.shape:
        raise DictlabError(f"site {site}: the activation is {list(clean.shape)}, its replacement {list(new.shape)}.")
    return new
