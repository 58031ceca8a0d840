"""What do replacements of an activation do to the model's output, at the cost of the blocks behind it?

A `CleanRun` is a batch of sequences, run once without any change. Replacements are carried from the site to the end of
the blocks, and compared with the clean output there, block by block of tokens. Tokens that do not count (by the token
selection) keep their activations, whatever a replacement holds for them. Replacements of a single late token share the
keys and values of the tokens before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictlab.errors import DictlabError
from dictlab.model.kv_cache import KVCache
from dictlab.model.language_model import LanguageModel
from dictlab.model.output_divergence import OutputDivergence, kl_and_ce, next_tokens
from dictlab.token_selection import ALL, TokenSelection

FORWARD_TOKENS = 4096  # tokens carried at once
PARTS = ("tokens", "x", "residual", "final_residual", "next_tokens", "counted")  # one entry a token each
HELD = 1 << 25  # numbers of residual streams that wait for their comparison: 128 MiB in float32


@dataclass(frozen=True, eq=False)
class CleanRun:
    """A batch of sequences run through the model without any change.

    Attributes:
        model: The language model.
        site: Where activations are replaced.
        tokens: Token ids.
        x: Activations at the site.
        residual: The residual stream that enters the block of the site.
        final_residual: The residual stream that leaves the last block.
        next_tokens: The token that follows each, or -1.
        counted: Tokens that count; the others are not replaced.
        kv_cache: Keys and values of earlier tokens, which are not part of `tokens`; None where there are none.
        n_past: How many earlier tokens these are.
    """

    model: LanguageModel
    site: str
    tokens: Int[Tensor, "batch context"]
    x: Float[Tensor, "batch context d_in"]
    residual: Float[Tensor, "batch context d_model"]
    final_residual: Float[Tensor, "batch context d_model"]
    next_tokens: Int[Tensor, "batch context"]
    counted: Bool[Tensor, "batch context"]
    kv_cache: KVCache | None = None
    n_past: int = 0

    @property
    def predicting(self) -> Bool[Tensor, "batch context"]:
        """Tokens that count and whose next token is known."""
        return self.counted & (self.next_tokens >= 0)

    def first(self, sequences: int) -> CleanRun:
        """Its first sequences."""
        parts = {name: getattr(self, name)[:sequences] for name in PARTS}
        return replace(self, **parts)

    def tail(self, position: int, tokens: int) -> CleanRun:
        """Some tokens from a position on, with keys and values of the tokens before."""
        here = slice(position, position + tokens)
        parts = {name: getattr(self, name)[:, here] for name in PARTS}
        early = slice(position)
        kv_cache = self.model.kv_cache(
            self.x[:, early], self.site, residual=self.residual[:, early], tokens=self.tokens[:, early]
        )
        return replace(self, kv_cache=kv_cache, n_past=position, **parts)

    def final_residuals(self, versions: Float[Tensor, "versions batch context d_in"]) -> Tensor:
        """The residual streams that leave the last block with each version in place of `x` at the tokens that count."""
        batch, context = self.x.shape[:2]
        parts = []
        for some in versions.split(max(1, FORWARD_TOKENS // (batch * (context + self.n_past)))):
            residual = self.residual.repeat(len(some), 1, 1)
            new = torch.where(self.counted[..., None], some.to(self.x.dtype), self.x).flatten(0, 1)
            streams = self.model.final_residual(
                new, self.site, residual=residual, tokens=self.tokens.repeat(len(some), 1), kv_cache=self.kv_cache
            )
            parts.append(streams.unflatten(0, (len(some), batch)))
        return torch.cat(parts)

    def outputs(self, replacements: Iterable[Float[Tensor, "versions batch context d_in"]]) -> OutputDivergence:
        """KL from the clean output, and CE, of each version: `[versions, batch, context]`, in nats.

        Args:
            replacements: Versions of `x`, one group after the other; all groups are joined.
        """
        compared: list[OutputDivergence] = []
        waiting: list[Tensor] = []

        def compare_waiting() -> None:
            altered = torch.cat(waiting).flatten(1, 2)
            compared.append(
                kl_and_ce(self.model, self.final_residual.flatten(0, 1), altered, self.next_tokens.flatten())
            )
            waiting.clear()

        for versions in replacements:
            for some in versions.split(max(1, HELD // self.final_residual.numel())):
                streams = self.final_residuals(some)
                if waiting and sum(map(torch.numel, waiting)) + streams.numel() > HELD:
                    compare_waiting()
                waiting.append(streams)
        compare_waiting()
        shape = self.next_tokens.shape
        kl, ce = (torch.cat([getattr(c, name) for c in compared]).unflatten(1, shape) for name in ("kl", "ce"))
        return OutputDivergence(kl, ce, *(t.unflatten(0, shape) for t in compared[0][2:]))


@torch.no_grad()
def clean_runs(
    model: LanguageModel,
    tokens: Int[Tensor, "batch context"],
    sites: Sequence[str],
    selection: TokenSelection = ALL,
) -> dict[str, CleanRun]:
    """One clean forward, by each of several sites. Which tokens count is decided at each site by itself."""
    starts = {site: model.block_input(site) for site in sites}
    clean = model.capture(tokens, list(dict.fromkeys([*sites, *starts.values(), model.last_site])))
    tokens = tokens.to(model.device)
    after = next_tokens(tokens)
    return {
        site: CleanRun(
            model,
            site,
            tokens,
            clean[site],
            clean[start],
            clean[model.last_site],
            after,
            selection.mask([clean[site]], tokens, model.tokenizer),
        )
        for site, start in starts.items()
    }


@torch.no_grad()
def counted_mask(
    model: LanguageModel,
    tokens: Int[Tensor, "contexts context"],
    sites: Sequence[str],
    selection: TokenSelection,
) -> Bool[Tensor, "contexts context"]:
    """Which tokens of some contexts count, at all of several sites alike; on the CPU.

    The model is run only where the selection asks for norms.

    Raises:
        DictlabError: None of them does.
    """
    counted = selected_mask(model, tokens, sites, selection)
    check_some_count(int(counted.sum()), selection)
    return counted


def selected_mask(
    model: LanguageModel,
    tokens: Int[Tensor, "contexts context"],
    sites: Sequence[str],
    selection: TokenSelection,
) -> Bool[Tensor, "contexts context"]:
    """`counted_mask` of contexts of which none need count."""
    if selection.norm_multiple is None:
        return selection.mask([torch.zeros(*tokens.shape, 1)], tokens.cpu(), model.tokenizer)
    batches = tokens.split(max(1, FORWARD_TOKENS // tokens.shape[1]))
    masks = [selection.mask(model.capture(b, list(sites)).values(), b, model.tokenizer).cpu() for b in batches]
    return torch.cat(masks)


def check_some_count(counted: int, selection: TokenSelection) -> None:
    """Refuse a sample of which nothing counts.

    Raises:
        DictlabError: `counted`, the tokens of the sample that count, is 0.
    """
    if counted == 0:
        raise DictlabError(
            f"token selection {selection}: no token of the sample counts. Give more text, or another "
            f"`token_selection=...`."
        )
