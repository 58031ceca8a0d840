"""What do replacements of an activation do to the model's output, at the cost of the blocks behind it?

A `Scene` is a batch of sequences at one site, run once without any change. Replacements are carried from the site to
the end of the blocks, and compared with the clean output there, block by block of tokens. Those of a single late token
share what the tokens before it leave to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictlab.model.kv_cache import KVCache
from dictlab.model.language_model import LanguageModel
from dictlab.model.output_divergence import OutputDivergence, kl_and_ce, next_tokens

FORWARD_TOKENS = 4096  # tokens carried at once
PARTS = ("tokens", "x", "residual", "leaving", "after")  # one entry a token each
HELD = 1 << 25  # numbers of residual streams that wait for their comparison: 128 MiB in float32


@dataclass(frozen=True, eq=False)
class Scene:
    """Sequences at a site, without any change.

    Attributes:
        model: The language model.
        site: Where activations are replaced.
        tokens: Token ids.
        x: Activations there.
        residual: The stream entering the block of the site.
        leaving: The stream leaving the last block.
        after: The token that follows each, or -1.
        past: What earlier tokens, which are not part of the scene, leave to these.
        before: How many they are.
    """

    model: LanguageModel
    site: str
    tokens: Int[Tensor, "batch context"]
    x: Float[Tensor, "batch context d_in"]
    residual: Float[Tensor, "batch context d_model"]
    leaving: Float[Tensor, "batch context d_model"]
    after: Int[Tensor, "batch context"]
    past: KVCache | None = None
    before: int = 0

    def first(self, sequences: int) -> Scene:
        """The same with fewer sequences."""
        parts = {name: getattr(self, name)[:sequences] for name in PARTS}
        return replace(self, **parts)

    def tail(self, position: int, tokens: int) -> Scene:
        """Some tokens from a position on, with the past of the tokens before."""
        here = slice(position, position + tokens)
        parts = {name: getattr(self, name)[:, here] for name in PARTS}
        early = slice(position)
        past = self.model.kv_cache(
            self.x[:, early], self.site, residual=self.residual[:, early], tokens=self.tokens[:, early]
        )
        return replace(self, past=past, before=position, **parts)

    def carried(self, versions: Float[Tensor, "versions batch context d_in"]) -> Tensor:
        """The streams that leave the last block with each version in place of `x`."""
        batch, context = self.x.shape[:2]
        parts = []
        for some in versions.split(max(1, FORWARD_TOKENS // (batch * (context + self.before)))):
            residual = self.residual.repeat(len(some), 1, 1)
            new = some.flatten(0, 1).to(self.x.dtype)
            streams = self.model.final_residual(
                new, self.site, residual=residual, tokens=self.tokens.repeat(len(some), 1), kv_cache=self.past
            )
            parts.append(streams.unflatten(0, (len(some), batch)))
        return torch.cat(parts)

    def outputs(self, replacements: Iterable[Float[Tensor, "versions batch context d_in"]]) -> OutputDivergence:
        """What each version does: KL and CE as `[versions, batch, context]`, all replacements one after the other."""
        found: list[OutputDivergence] = []
        waiting: list[Tensor] = []

        def settle() -> None:
            altered = torch.cat(waiting)
            found.append(kl_and_ce(self.model, self.leaving.flatten(0, 1), altered.flatten(1, 2), self.after.flatten()))
            waiting.clear()

        for versions in replacements:
            for some in versions.split(max(1, HELD // self.leaving.numel())):
                streams = self.carried(some)
                if waiting and sum(map(torch.numel, waiting)) + streams.numel() > HELD:
                    settle()
                waiting.append(streams)
        settle()
        kl, ce = (torch.cat([getattr(f, name) for f in found]).unflatten(1, self.after.shape) for name in ("kl", "ce"))
        return OutputDivergence(kl, ce, *(t.unflatten(0, self.after.shape) for t in found[0][2:]))


@torch.no_grad()
def scenes(model: LanguageModel, tokens: Int[Tensor, "batch context"], sites: Sequence[str]) -> dict[str, Scene]:
    """One clean forward, seen from each of several sites."""
    starts = {site: model.block_input(site) for site in sites}
    clean = model.capture(tokens, list(dict.fromkeys([*sites, *starts.values(), model.last_site])))
    tokens = tokens.to(model.device)
    after = next_tokens(tokens)
    return {
        site: Scene(model, site, tokens, clean[site], clean[start], clean[model.last_site], after)
        for site, start in starts.items()
    }
