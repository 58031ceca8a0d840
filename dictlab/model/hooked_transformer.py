"""A `HookedTransformer` of TransformerLens with the same three verbs as a model of Hugging Face.

TransformerLens is not imported: what is asked of the object is its blocks, its configuration and a forward that takes
token ids. Sites are its own hook points. Its weights are kept in a form of their own, and perhaps processed, so they
cannot be compared with those that a dictionary was trained on; names of models can. Its cache of keys and values is
not used: later tokens are computed together with the earlier ones, which is exact, and slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dictlab.errors import DictlabError
from dictlab.model.hooks import HookPoint
from dictlab.model.kv_cache import KVCache
from dictlab.model.language_model import LanguageModel
from dictlab.model.module_layout import HOOK

HOOK_POINTS = ("hook_attn_out", "hook_mlp_out", "mlp.hook_post")  # read at the output of the hook point itself
CENTRED_BELOW = 1e-4  # mean over coordinates, as a share of their standard deviation
LAYER_NORMS = ("LN", "LNPre")


def is_hooked_transformer(model: object) -> bool:
    """Whether an object has what a `HookedTransformer` has, and this module needs."""
    return all(hasattr(model, name) for name in ("cfg", "blocks", "unembed", "run_with_cache")) and not hasattr(
        model, "original_model"
    )


class _Earlier(NamedTuple):
    """Tokens before those that a forward is resumed at, in place of their keys and values."""

    activation: Float[Tensor, "batch earlier d_in"]
    residual: Float[Tensor, "batch earlier d_model"] | None
    tokens: Int[Tensor, "batch earlier"] | None


class HookedTransformerModel(LanguageModel):
    """A `HookedTransformer`. Its weights are frozen and it is put in evaluation mode.

    Args:
        model: The `HookedTransformer`.
        tokenizer: Another tokenizer than its own.
    """

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        name = str(getattr(model.cfg, "model_name", None) or "HookedTransformer")
        super().__init__(model, tokenizer if tokenizer is not None else model.tokenizer, name, blocks=model.blocks)
        if self.tokenizer is None:
            raise DictlabError(f"model {self.name}: has no tokenizer; give model=(model, tokenizer).")

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @property
    def context(self) -> int:
        """The longest context it was built for, in tokens."""
        return int(self.model.cfg.n_ctx)

    @property
    def vocabulary(self) -> int:
        """Entries of its output distribution."""
        return int(getattr(self.model.cfg, "d_vocab_out", 0) or self.model.cfg.d_vocab)

    @property
    def layer_norm(self) -> bool:
        """Whether it reads its residual stream through a layer norm, which takes means away."""
        return getattr(self.model.cfg, "normalization_type", None) in LAYER_NORMS

    @cached_property
    def centred(self) -> bool:
        """Whether its residual stream has the mean 0 over coordinates: the processing that TransformerLens does."""
        if not self.layer_norm:
            return False  # where norms take no means away, nothing is centred
        tokens = torch.arange(min(4, self.context))[None] % self.vocabulary
        x = self.capture(tokens, "blocks.0.hook_resid_pre")["blocks.0.hook_resid_pre"].double()
        return bool((x.mean(dim=-1).abs() <= CENTRED_BELOW * x.std(dim=-1)).all())

    def locate(self, site: str) -> HookPoint:
        """Find a site in this model.

        Raises:
            DictlabError: There is none of that name, or the heads' outputs are asked for.
        """
        match = HOOK.fullmatch(site)
        if match is None or match[2] in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post"):
            return super().locate(site)
        block, name = int(match[1]), match[2]
        if block >= self.n_blocks:
            raise DictlabError(f"site {site}: {self.name} has blocks 0 to {self.n_blocks - 1}.")
        if name not in HOOK_POINTS:
            raise DictlabError(
                f"site {site}: norms and heads of a HookedTransformer cannot be replaced here; give the model of "
                "Hugging Face, as model=(model, tokenizer) or by its name."
            )
        module: nn.Module = self.blocks[block].get_submodule(name)
        return HookPoint(block, "module", module, "out")

    def logits(self, tokens: Tensor, cache: Any = None) -> Tensor:
        """The model's own forward."""
        left = getattr(self.model.tokenizer, "padding_side", "right") == "left"  # then it masks what looks like padding
        given = {"padding_side": "right"} if left else {}
        logits: Tensor = self.model(tokens.to(self.device), return_type="logits", **given)
        return logits

    def kv_cache(
        self,
        activation: Float[Tensor, "batch earlier d_in"],
        site: str,
        *,
        residual: Float[Tensor, "batch earlier d_model"] | None = None,
        tokens: Int[Tensor, "batch earlier"] | None = None,
    ) -> KVCache | None:
        """The earlier tokens themselves, which are computed again each time."""
        if activation.shape[1] == 0:
            return None
        return _Earlier(activation, residual, tokens)  # type: ignore[return-value]  # given back to `resume_to` alone

    def resume_to(
        self,
        activation: Float[Tensor, "batch context d_in"],
        site: str,
        sites: Sequence[str],
        *,
        residual: Float[Tensor, "batch context d_model"] | None = None,
        tokens: Int[Tensor, "batch context"] | None = None,
        kv_cache: KVCache | None = None,
    ) -> dict[str, Float[Tensor, "batch context d"]]:
        """Activations at later sites, resumed from one at `site`. Arguments and errors as for `LanguageModel`."""
        if not isinstance(kv_cache, _Earlier):
            return super().resume_to(activation, site, sites, residual=residual, tokens=tokens)
        whole = super().resume_to(
            _behind(kv_cache.activation, activation),
            site,
            sites,
            residual=None if residual is None else _behind(kv_cache.residual, residual),
            tokens=None if tokens is None else _behind(kv_cache.tokens, tokens),
        )
        return {name: x[:, -activation.shape[1] :] for name, x in whole.items()}


def _behind(earlier: Tensor | None, later: Tensor) -> Tensor:
    """Later tokens behind the earlier ones, which are repeated for each version of the later."""
    if earlier is None:
        raise DictlabError("the earlier tokens were kept without what the later ones come with.")
    versions = earlier[None].expand(len(later) // len(earlier), *earlier.shape).flatten(0, 1)
    return torch.cat([versions, later], dim=1)
