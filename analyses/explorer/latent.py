"""What is this latent? Where it is active, which tokens it makes likelier, and what lies near it.

One pass over a sample of text for one latent: what `explore` shows on a page of all of them, in the terminal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.common.inputs import ModelInputs, TokenSample, open_inputs
from analyses.common.neighbours import nearest
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, open_dictionaries
from analyses.common.token_texts import token_text
from analyses.composition.insertion.direct_logits import extremes, leaving, logit_effects, writes_to_stream
from analyses.composition.insertion.latent_cards import passage_around
from dictlab.data.activations import FORWARD_TOKENS
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.sites import site_of
from dictlab.reports.cards import Passage
from dictlab.reports.safe_text import safe
from dictlab.runtime.progress import track

NEAREST = 5  # latents of the own dictionary
TOKENS = 8  # promoted, and suppressed

LogitChange = tuple[str, float]  # a token, and its logit less the mean over the vocabulary


class Context(NamedTuple):
    """Text around a token on which the latent is active, and its activation there."""

    activation: float
    passage: Passage


@dataclass(frozen=True)
class LatentPortrait:
    """One latent.

    Attributes:
        dictionary: The name of its dictionary.
        latent: Its number there.
        n_latents: Latents of the dictionary.
        sample: What it was looked for in, in words.
        n_tokens: Tokens of the sample that count.
        firing_rate: Share of these on which it is active.
        recorded_firing_rate: The same at the end of training, from the dictionary's file; None if it says nothing.
        mean: Mean activation where it is active; NaN if it is not.
        contexts: Where it is most active, strongest first, each in another sequence.
        promoted: Tokens whose logits it raises most; None where its direction is none of the residual stream, or where
            it is never active.
        suppressed: Tokens whose logits it lowers most, likewise.
        neighbours: Latents of the same dictionary whose decoder directions are nearest, with their cosines.
        warnings: What must not be overlooked.
    """

    dictionary: str
    latent: int
    n_latents: int
    sample: str
    n_tokens: int
    firing_rate: float
    recorded_firing_rate: float | None
    mean: float
    contexts: tuple[Context, ...]
    promoted: tuple[LogitChange, ...] | None
    suppressed: tuple[LogitChange, ...] | None
    neighbours: tuple[tuple[int, float], ...]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The portrait for a terminal; the token of the strongest activation stands between « and »."""
        recorded = (
            "" if self.recorded_firing_rate is None else f"; at the end of training {self.recorded_firing_rate:.3%}"
        )
        rows = {"active on": f"{self.firing_rate:.3%} of {self.n_tokens:,} tokens{recorded}"}
        if self.contexts:
            rows["activation"] = f"{self.mean:.4g} on average where active, {self.contexts[0].activation:.4g} at most"
        if self.promoted is not None and self.suppressed is not None:
            rows |= {"promotes": _tokens(self.promoted), "suppresses": _tokens(self.suppressed)}
        rows["nearest latents"] = ", ".join(f"{i} (cosine {cosine:.2f})" for i, cosine in self.neighbours) or "none"
        lines = [f"Latent {self.latent} of {self.dictionary} ({self.n_latents} latents); {self.sample}"]
        lines += [f"  {name:16}{text}" for name, text in rows.items()]
        if self.contexts:
            lines += ["  most active at"] + [f"    {c.activation:8.4g}  {c.passage}" for c in self.contexts]
        else:
            lines.append("  It is active nowhere in this sample.")
        return safe("\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)]))


def latent(
    dictionary: DictionaryLike,
    latent: int,
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    tokens: int = 65_536,
    examples: int = 10,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> LatentPortrait:
    """What one latent is: firing rate, strongest contexts, tokens that it promotes, nearest latents of its dictionary.

    Args:
        dictionary: The dictionary.
        latent: Number of the latent, from 0.
        model: The language model; by default the one that the dictionary names.
        text: Where tokens come from; its training split is used.
        tokens: Tokens of the sample that the latent is looked for in.
        examples: Contexts shown.
        seed: Of the sample of text.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionary was trained on.

    Returns:
        The portrait; printed, it is what the command shows.

    Raises:
        DictlabError: There is no such latent, the dictionary does not belong to the model, or the text is too short.

    Example:
        dictlab latent checkpoints/local-topk16-512-s0.safetensors 17
        dictlab latent mine.safetensors 17 --model gpt2 --text my/texts --tokens 200000
    """
    check_at_least(0, seed=seed)
    check_at_least(1, examples=examples)
    (given,) = open_dictionaries(dictionary, analysis="latent", token_selection=token_selection)
    if not 0 <= latent < given.n_latents:
        raise DictlabError(f"latent is {latent}; {given.name} has the latents 0 to {given.n_latents - 1}.")
    inputs = open_inputs(given, model=model, text=text, device=device)
    check_at_least(inputs.context, tokens=tokens)
    sample = inputs.sample(tokens // inputs.context, "train", seed=seed)
    activity = _activity(inputs, sample.tokens, latent)
    active = activity.values != 0
    mean = float(activity.values[active].mean()) if active.any() else float("nan")
    promoted, suppressed = _logits(inputs, sample.tokens, latent, activity, seed) if active.any() else (None, None)
    rate = given.firing_rate
    return LatentPortrait(
        dictionary=given.name,
        latent=latent,
        n_latents=given.n_latents,
        sample=f"{sample.size} of {inputs.text.name}",
        n_tokens=activity.n_tokens,
        firing_rate=int(active.sum()) / max(1, activity.n_tokens),
        recorded_firing_rate=None if rate is None else float(rate[latent]),
        mean=mean,
        contexts=_contexts(inputs, sample, activity.values, examples),
        promoted=promoted,
        suppressed=suppressed,
        neighbours=_neighbours(given, latent),
        warnings=(*inputs.warnings, *sample.warnings, *_batchwise(given)),
    )


class _Activity(NamedTuple):
    """A latent's activation at each token, 0 at those that do not count; how many count; and what it adds on average.

    Attributes:
        values: Activations.
        n_tokens: Tokens that count.
        written: Mean, where it is active, of the multiple of its row of `W_dec` that is added to the reconstruction.
    """

    values: Float[Tensor, "sequences context"]
    n_tokens: int
    written: float


@torch.no_grad()
def _activity(inputs: ModelInputs, sequences: Int[Tensor, "sequences context"], latent: int) -> _Activity:
    (dictionary,), model = inputs.adapted, inputs.model
    site, parts, counted, written = site_of(dictionary), [], 0, 0.0
    for tokens in track(sequences.split(max(1, FORWARD_TOKENS // sequences.shape[1])), "contexts", unit="batches"):
        x = model.capture(tokens, site)[site]
        mask = inputs.selection.mask([x], tokens, model.tokenizer).flatten()
        codes = dictionary.encode(x)
        if not bool(torch.isfinite(codes.values).all()):
            raise DictlabError(f"{dictionary.name}: its codes are not all finite on the text; are its weights damaged?")
        own = (codes.indices == latent) & mask[codes.rows]
        values = torch.zeros(codes.n_tokens, device=codes.values.device)
        values[codes.rows[own]] = codes.values[own].float()
        written += float(dictionary.codes_in_input_units(codes, x).values[own].double().sum())
        parts.append(values.view(tokens.shape).cpu())
        counted += int(mask.sum())
    found = torch.cat(parts)
    return _Activity(found, counted, written / max(1, int((found != 0).sum())))


def _contexts(
    inputs: ModelInputs, sample: TokenSample, values: Float[Tensor, "sequences context"], examples: int
) -> tuple[Context, ...]:
    """The strongest tokens of the sequences in which the strongest is strongest."""
    strength, position = values.abs().max(dim=1)
    order = strength.argsort(descending=True, stable=True)[:examples].tolist()
    tokenizer, largest = inputs.model.tokenizer, float(strength.max())
    return tuple(
        Context(
            float(values[i, position[i]]),
            passage_around(tokenizer, sample.tokens[i], values[i].abs() / largest, int(position[i])),
        )
        for i in order
        if strength[i] > 0
    )


def _logits(
    inputs: ModelInputs, sequences: Tensor, latent: int, activity: _Activity, seed: int
) -> tuple[tuple[LogitChange, ...], tuple[LogitChange, ...]] | tuple[None, None]:
    """By the direct effect of its direction, at the length that it is added at on average."""
    (dictionary,), model = inputs.adapted, inputs.model
    site = site_of(dictionary)
    if not writes_to_stream(model, site):
        return None, None
    streams = leaving(model, sequences, seed=seed, site=site, selection=inputs.selection)
    (effect,) = logit_effects(model, dictionary.W_dec[[latent]], torch.tensor([activity.written]), streams)
    known = min(model.vocabulary, len(model.tokenizer))
    up, down = (
        tuple((token_text(model.tokenizer, i), float(effect[i])) for i in ids)
        for ids in extremes(effect, known, TOKENS)
    )
    return up, down


def _neighbours(dictionary: Dictionary, latent: int) -> tuple[tuple[int, float], ...]:
    if dictionary.n_latents == 1:
        return ()
    signs = dictionary.signed
    found = nearest(
        dictionary.W_dec[[latent]],
        dictionary.W_dec,
        top=min(NEAREST + 1, dictionary.n_latents),
        signed_a=signs[[latent]],
        signed_b=signs,
    )
    pairs = zip(found.rows[0].tolist(), found.cosine[0].tolist(), strict=True)
    return tuple((i, cosine) for i, cosine in pairs if i != latent)[:NEAREST]


def _batchwise(dictionary: Dictionary) -> tuple[str, ...]:
    if not dictionary.activation.batchwise:
        return ()
    return (f"{dictionary.name}: BatchTopK without a threshold; the codes of a token depend on those beside it.",)


def _tokens(changes: tuple[LogitChange, ...]) -> str:
    return "  ".join(f"“{token}” {change:+.2f}" for token, change in changes)
