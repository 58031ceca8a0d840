"""What does a language model do, and what does it do when one of its activations is replaced?

`LanguageModel` wraps any Hugging Face causal language model. No model is re-implemented: activations are read and
written by hooks, and a forward from the middle is the model's own forward with its earlier blocks made to pass their
input on untouched. That is why `resume(capture(tokens, site), site)` gives the logits of the full forward, bit for bit.

Sites are written as the field writes them, and any module path works too:

    blocks.3.hook_resid_pre     the residual stream entering block 3
    blocks.3.hook_resid_mid     between attention and MLP (not where both read the same stream, as in Pythia)
    blocks.3.hook_resid_post    leaving block 3
    blocks.3.hook_attn_out      what attention adds            blocks.3.hook_mlp_out    what the MLP adds
    blocks.3.attn.hook_q        queries as they leave their projection, likewise hook_k and hook_v
    blocks.3.attn.hook_z        the heads' outputs side by side, before the output projection
    blocks.3.attn.hook_z.head.5 of one head (of queries, keys and values too)
    blocks.3.mlp.hook_post      the MLP's neurons, before their output projection
    blocks.3.ln1.hook_normalized  what attention reads, without the norm's gain and bias; ln2 for the MLP
    blocks.3.ln1.hook_out       the same with them
    hook_embed                  the token embedding, as it is added to the residual stream
    transformer.h.3.mlp:in      a module's input               transformer.h.3.mlp      (or :out) its output
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dictlab.errors import DictlabError
from dictlab.model.fingerprint import fingerprint_of, in_half_precision
from dictlab.model.hooks import hook
from dictlab.model.kv_cache import KVCache
from dictlab.model.loading import open_model
from dictlab.model.model_options import ModelDtype, ModelOptions
from dictlab.model.partial_forwards import PartialForwards, Reached
from dictlab.model.site_checks import SiteCheck, check_places, check_resuming

NAMED = ["hook_attn_out", "hook_mlp_out", "attn.hook_z", "mlp.hook_post", "attn.hook_q", "attn.hook_k", "attn.hook_v"]
NAMED += ["ln1.hook_out", "ln2.hook_out"]  # what a module's path may be another name of

Replacement = Tensor | Callable[[Tensor], Tensor]


class Forward(NamedTuple):
    """What a forward gave: logits `[batch, context, vocabulary]`, and the activations that were asked for, by site."""

    logits: Float[Tensor, "batch context vocabulary"]
    activations: dict[str, Float[Tensor, "batch context d_in"]]


class LanguageModel(PartialForwards):
    """A Hugging Face causal language model with three verbs: `capture`, `splice`, `resume`.

    Its weights are frozen and it is put in evaluation mode; gradients flow through to activations.

    Args:
        model: Any causal language model of `transformers`.
        tokenizer: Its tokenizer.
        name: What reports call it, and how it can be found again.
        blocks: Its blocks; found by the configuration of the model by default.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "model", blocks: nn.ModuleList | None = None) -> None:
        super().__init__(model.eval().requires_grad_(False), name, blocks)
        self.tokenizer = tokenizer
        self.allow_other_weights = False  # than those that dictionaries were trained on
        self._stored_fingerprint: Callable[[], str] | None = None
        self._passed: set[str] = set()
        self._checks: dict[str, SiteCheck] = {}

    @classmethod
    def load(
        cls,
        name: str | Path | ModelOptions,
        *,
        beside: Path | None = None,
        device: str = "cpu",
        dtype: ModelDtype | torch.dtype = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> LanguageModel:
        """Open a model from a folder, the Hugging Face Hub, a `.gguf` file or the folder of a PEFT adapter.

        Args:
            name: Which of them; or all of this as `ModelOptions`.
            beside: Where to look for a folder or file first: next to the dictionary that names it.
            device: "cpu", "cuda", ...
            dtype: Precision of the weights; by default float32 on a CPU, and on a GPU what the model is kept in.
            revision: Branch, tag or commit of a model on the Hub.
            trust_remote_code: Run code that comes with the model.

        Raises:
            DictlabError: It is in none of these places, or cannot be opened; the message says which were tried.
        """
        if not isinstance(name, ModelOptions):
            precision = str(dtype).removeprefix("torch.")
            name = ModelOptions(name, cast(ModelDtype, precision), revision, trust_remote_code)
        opened = open_model(name, beside=beside, device=device)
        model = cls(opened.model, opened.tokenizer, str(name.name))
        model.allow_other_weights = name.allow_other_weights
        model._stored_fingerprint = opened.stored_fingerprint
        return model

    @property
    def context(self) -> int:
        """The longest context it was built for, in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1024)

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

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal weights, in whatever precision a model is opened by name (see `fingerprint`)."""
        if self._stored_fingerprint is not None and in_half_precision(self.model):
            return self._stored_fingerprint()
        return fingerprint_of(self.model.state_dict().items())

    @torch.no_grad()
    def capture(
        self, tokens: Int[Tensor, "batch context"], sites: str | Sequence[str]
    ) -> dict[str, Float[Tensor, "batch context d_in"]]:
        """Activations at some sites. The forward is left as soon as the last of them is reached.

        Raises:
            DictlabError: A site is not one of this model's.
        """
        sites = [sites] if isinstance(sites, str) else list(sites)
        self._check_places(sites)
        captured: dict[str, Tensor] = {}
        with self.capturing(sites, captured, leave=True), suppress(Reached):
            self.logits(tokens)
        return captured

    def forward(self, tokens: Int[Tensor, "batch context"], sites: Sequence[str] = ()) -> Forward:
        """The whole forward: logits, and activations at some sites."""
        self._check_places(sites)
        captured: dict[str, Tensor] = {}
        with self.capturing(sites, captured):
            return Forward(self.logits(tokens), captured)

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
        self._check_places([site, *sites])
        point = self.locate(site)
        if point.block is not None:
            start, after = self.block_input(site), [other for other in sites if self.follows(other, point)]
            clean = self.capture(tokens, [start, site, *(other for other in sites if other not in after)])
            new = _applied(replacement, clean[site], site)
            out = self.resume(new, site, after, residual=clean[start], tokens=tokens)
            known = clean | {site: new} | out.activations
            return Forward(out.logits, {other: known[other] for other in sites})
        captured: dict[str, Tensor] = {}
        with self.capturing(sites, captured), hook(point, lambda x: _applied(replacement, x, site)):
            return Forward(self.logits(tokens), captured)

    def resume(
        self,
        activation: Float[Tensor, "batch context d_in"],
        site: str,
        sites: Sequence[str] = (),
        *,
        residual: Float[Tensor, "batch context d_model"] | None = None,
        tokens: Int[Tensor, "batch context"] | None = None,
    ) -> Forward:
        """The rest of the forward, from an activation at `site`: only the blocks from there on are computed.

        Args:
            activation: What stands at `site`. Gradients flow back to it.
            site: Where it stands.
            sites: Where to capture activations on the way.
            residual: The residual stream entering the block of `site` (`block_input`). Needed where the site is not the
                residual stream itself but something inside a block, such as `hook_mlp_out`.
            tokens: The token ids of the activation; needed by models that look tokens up again in each block.

        Raises:
            DictlabError: The site lies outside the blocks, or `residual` is needed and missing.
        """
        captured: dict[str, Tensor] = {}
        with self._resuming(activation, site, sites, residual, tokens) as ids, self.capturing(sites, captured):
            return Forward(self.logits(ids), captured)

    def final_residual(
        self,
        activation: Float[Tensor, "batch context d_in"],
        site: str,
        *,
        residual: Float[Tensor, "batch context d_model"] | None = None,
        tokens: Int[Tensor, "batch context"] | None = None,
        kv_cache: KVCache | None = None,
    ) -> Float[Tensor, "batch context d_model"]:
        """The residual stream leaving the last block, resumed from an activation at `site`: `resume` without logits.

        Args:
            activation: What stands at `site`.
            site: Where it stands.
            residual: As for `resume`.
            tokens: As for `resume`.
            kv_cache: Keys and values of the tokens before these. The batch must be a multiple of its batch: it is
                taken for so many versions of it, one after the other.

        Raises:
            DictlabError: As for `resume`.
        """
        last = self.last_site
        return self.resume_to(activation, site, [last], residual=residual, tokens=tokens, kv_cache=kv_cache)[last]

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
        """Activations at later sites, resumed from one at `site`. The forward is left as soon as the last is reached.

        Arguments and errors as for `final_residual`.
        """
        point = self.locate(site)
        captured = {other: activation for other in sites if self.locate(other) == point}
        later = [other for other in sites if other not in captured]
        if not later:
            return captured
        with (
            self._resuming(activation, site, later, residual, tokens) as ids,
            self.capturing(later, captured, leave=True),
            suppress(Reached),
        ):
            self.logits(ids, None if kv_cache is None else kv_cache.to_transformers(len(ids)))
        return captured

    def kv_cache(
        self,
        activation: Float[Tensor, "batch earlier d_in"],
        site: str,
        *,
        residual: Float[Tensor, "batch earlier d_model"] | None = None,
        tokens: Int[Tensor, "batch earlier"] | None = None,
    ) -> KVCache | None:
        """Keys and values that these tokens leave to later ones in the blocks from `site` on; None of no tokens.

        With it, `final_residual` of later tokens costs those tokens only. Arguments as for `resume`.
        """
        if activation.shape[1] == 0:
            return None
        with self._resuming(activation, site, (), residual, tokens) as ids:
            return KVCache.from_forward(lambda cache: self.logits(ids, cache), self.n_blocks)

    def unembed(self, residual: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens vocabulary"]:
        """Logits of residual streams leaving the last block: the model's own final norm, unembedding and logit caps.

        All of that acts on each token alone, so each is given as a sequence of its own.
        """
        return self.resume(residual[:, None], self.last_site).logits[:, 0]

    def check_site(self, site: str) -> None:
        """Try a site on a few tokens before anything is measured there (see `site_checks`); once a model and site.

        Raises:
            DictlabError: It is not one of this model's, or not what its name says, or a forward resumed from it is not
                the model's own.
        """
        self._check_places([site])
        if self.locate(site).block is not None:
            self._check_resuming(site)

    def same_site(self, one: str, other: str) -> bool:
        """Whether two names stand for one tensor of this model.

        Raises:
            DictlabError: One is not this model's.
        """
        return self.canonical_site(one) == self.canonical_site(other)

    def canonical_site(self, site: str) -> str:
        """The one name of a tensor of this model: `blocks.I.hook_...` where it has one, else the path as it is given.

        Raises:
            DictlabError: The site is not this model's.
        """
        point = self.locate(site)
        if point.kind == "resid_post" and point.block is not None and point.block + 1 < self.n_blocks:
            after = f"blocks.{point.block + 1}.hook_resid_pre"
            activations = self.capture(self.probe, [site, after])
            return after if torch.equal(activations[site], activations[after]) else site
        if point.kind in ("resid_pre", "resid_post"):
            return f"blocks.{point.block}.hook_{point.kind}"
        if point.block is None or site.startswith("blocks."):
            return site
        for hook_name in NAMED:
            name = f"blocks.{point.block}.{hook_name}"
            with suppress(DictlabError):  # a model without that place
                if self.locate(name) == point:
                    return name
        return site

    def _check_places(self, sites: Sequence[str]) -> None:
        fresh = [site for site in dict.fromkeys(sites) if site not in self._passed]
        if fresh:
            points = check_places(self, fresh)
            self._located.update(zip(fresh, points, strict=True))
            self._passed.update(fresh)

    def _check_resuming(self, site: str) -> SiteCheck:
        """What trying to resume from a site showed.

        Raises:
            DictlabError: The resumed forward is not the model's own.
        """
        if site not in self._checks:
            self._check_places([site, self.block_input(site)])
            self._checks[site] = check_resuming(self, site)
        check = self._checks[site]
        if check.refusal is not None:
            raise DictlabError(
                f"site {site}: a forward of {self.name} resumed there is not the model's own: {check.refusal}. "
                "Activations can be captured there, not replaced."
            )
        return check

    @contextmanager
    def _resuming(
        self, activation: Tensor, site: str, sites: Sequence[str], residual: Tensor | None, tokens: Tensor | None
    ) -> Iterator[Int[Tensor, "batch context"]]:
        """`resuming`, from a site that was tried."""
        self._check_places(sites)
        if self.in_block(site)[1].kind == "module" and residual is None:
            needs = f"the residual at {self.block_input(site)}"
            raise DictlabError(f"site {site} is not the whole residual stream: give resume {needs}.")
        if self._check_resuming(site).needs_tokens and tokens is None:
            raise DictlabError(f"site {site}: later blocks of {self.name} look tokens up again: give resume tokens.")
        with self.resuming(activation, site, sites, residual, tokens) as ids:
            yield ids


def _applied(replacement: Replacement, clean: Tensor, site: str) -> Tensor:
    new = replacement if isinstance(replacement, Tensor) else replacement(clean)
    if new.shape != clean.shape:
        raise DictlabError(f"site {site}: the activation is {list(clean.shape)}, its replacement {list(new.shape)}.")
    return new
