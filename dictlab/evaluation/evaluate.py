"""How well does a dictionary reconstruct, and does the model still work with it spliced in?

One clean forward of each batch of contexts serves all dictionaries; `metrics` says what is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictlab.data.text import Text
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.union import emitting
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.metrics import Evaluation
from dictlab.evaluation.recorded_selection import recorded_selection
from dictlab.evaluation.sites import SitePair, site_pair
from dictlab.evaluation.transformer_lens import adapted
from dictlab.model.language_model import LanguageModel
from dictlab.model.output_divergence import kl_and_ce, next_tokens
from dictlab.runtime.interruption import Completion
from dictlab.runtime.progress import Phase
from dictlab.token_selection import ALL, TokenSelection, outliers

BATCH_TOKENS = 2048  # activations of so many tokens are held for each dictionary; logits of a block of them


@torch.no_grad()
def evaluate(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    text: Text,
    *,
    contexts: int = 64,
    context: int | None = None,
    seed: int = 0,
    partial: bool = False,
    selection: TokenSelection | None = None,
) -> list[Evaluation]:
    """Measure dictionaries on contexts drawn from all over a text. After a pass for the mean activations, one clean
    forward of each batch serves them all.

    Args:
        dictionaries: Each at the site in its metadata. A transcoder's prediction is compared with the activation at the
            site that it writes, and put in the place of it.
        model: The model they belong to.
        text: What to run it on; the held-out split, if it is to mean anything.
        contexts: Sequences to measure; fewer where the text ends before.
        context: Tokens a sequence; the model's own by default, 1,024 at most.
        seed: Of the sample and the bootstrap.
        partial: On Ctrl-C, return what is complete, if that is two sequences or more.
        selection: Which tokens count, by default those that the dictionaries were trained on (at a transcoder's two
            sites alike). All metrics are over these; reconstructions, zeros and means are spliced in for them alone,
            and leave the others as they are.

    Raises:
        DictlabError: The dictionaries were trained on different tokens and none are said; a dictionary names no site,
            or one that is not the model's, or has another width than the site; or a reconstruction is not finite.
    """
    selection = recorded_selection(dictionaries) if selection is None else selection
    dictionaries = [adapted(dictionary, model) for dictionary in dictionaries]
    pairs = [site_pair(dictionary) for dictionary in dictionaries]
    check_at_least(1, contexts=contexts)
    length = model.context_length(context)
    sampled = text.sample(model.tokenizer, length, contexts, seed=seed)
    batches = sampled.split(max(1, BATCH_TOKENS // length))
    means = _means(model, list(dict.fromkeys(pairs)), batches, selection)
    rows: list[list[dict[str, Tensor]]] = [[] for _ in dictionaries]
    active: list[list[Tensor]] = [[] for _ in dictionaries]
    with (
        Completion(len(sampled), least=2 if partial else None) as completion,
        Phase("evaluate", sampled.numel(), unit="tokens") as phase,
    ):
        for tokens in batches:
            for index, (row, fired) in enumerate(list(_measure(dictionaries, pairs, means, model, tokens, selection))):
                rows[index].append(row)
                active[index].append(fired)
            completion.add(len(tokens))
            phase.advance(tokens.numel())
    measured_on = sampled.numpy().tobytes() + (b"" if selection == ALL else str(selection).encode())
    return [
        Evaluation(
            dictionary.name,
            {key: torch.cat([row[key] for row in measured]).double().cpu().numpy() for key in measured[0]},
            torch.cat(fired).cpu()[:, emitting(dictionary.activation, dictionary.n_latents)],
            seed,
            hashlib.sha256(measured_on).hexdigest()[:16],
            len(sampled),
            selection=selection,
        )
        for dictionary, measured, fired in zip(dictionaries, rows, active, strict=True)
    ]


def _means(
    model: LanguageModel,
    pairs: Sequence[SitePair],
    batches: Sequence[Int[Tensor, "batch context"]],
    selection: TokenSelection,
) -> dict[SitePair, Float[Tensor, " d_out"]]:
    """The mean activation at each written site, of the tokens that count there and where is read; the model is run once
    for all sites.

    Raises:
        DictlabError: At some site none of them does.
    """
    counts = dict.fromkeys(pairs, 0)
    sums: dict[SitePair, Tensor] = {}
    with Phase("evaluate: mean activations", sum(map(torch.numel, batches)), unit="tokens") as phase:
        for tokens in batches:
            clean = model.capture(tokens, list(dict.fromkeys(site for pair in pairs for site in pair)))
            for pair in pairs:
                rows = clean[pair.writes][_counted(clean, pair, selection, tokens, model)].double()
                counts[pair] += len(rows)
                sums[pair] = sums.get(pair, rows.new_zeros(rows.shape[1])) + rows.sum(dim=0)
            phase.advance(tokens.numel())
    for pair in pairs:
        if not counts[pair]:
            at = " and ".join(dict.fromkeys(pair))
            raise DictlabError(f"token selection {selection}: no token of the sample counts at {at}.")
    return {pair: (sums[pair] / counts[pair]).float() for pair in pairs}


def _counted(
    clean: Mapping[str, Tensor],
    pair: SitePair,
    selection: TokenSelection,
    tokens: Int[Tensor, "batch context"],
    model: LanguageModel,
) -> Bool[Tensor, "batch context"]:
    """Which tokens count at both sites of a pair."""
    return selection.mask([clean[site] for site in dict.fromkeys(pair)], tokens, model.tokenizer)


@torch.no_grad()
def firing_rates(
    dictionaries: Sequence[Dictionary], batches: Iterable[Float[Tensor, "*tokens d_in"]]
) -> tuple[list[Float[Tensor, " n_latents"]], int]:
    """Share of tokens at which each latent of each dictionary is active, in one pass; and the number of tokens."""
    seen = 0
    fired = [torch.zeros(d.n_latents, dtype=torch.long) for d in dictionaries]
    for x in batches:
        seen += x.numel() // x.shape[-1]
        for count, dictionary in zip(fired, dictionaries, strict=True):
            count += dictionary.encode(x).active_counts().cpu()
    return [(count / max(1, seen)).float() for count in fired], seen


def check_finite(dictionary: Dictionary, x_hat: Float[Tensor, "*tokens d_in"]) -> None:
    """Refuse a reconstruction that is not made of numbers.

    Raises:
        DictlabError: Some of it is NaN or infinite.
    """
    bad = int((~torch.isfinite(x_hat)).any(dim=-1).sum())
    if bad:
        raise DictlabError(
            f"{dictionary.name}: its reconstruction of {bad} of {x_hat[..., 0].numel()} tokens is not finite. "
            "Are its weights damaged, or is it a dictionary of another model or site?"
        )


def reconstruct_selected(
    dictionary: Dictionary,
    x: Float[Tensor, "batch context d_in"],
    counted: Bool[Tensor, "batch context"],
    target: Float[Tensor, "batch context d_out"] | None = None,
) -> tuple[Codes, Float[Tensor, "batch context d_out"]]:
    """Codes of the tokens that count, and the activations with these tokens reconstructed and the others as they are.

    Args:
        dictionary: The dictionary.
        x: What it reads.
        counted: The tokens that count.
        target: What a transcoder predicts, the activations at the site that it writes; `x` of all others.

    Raises:
        DictlabError: A reconstruction is not finite, or of another width than the target.
    """
    target = x if target is None else target
    if target.shape[-1] != dictionary.d_out:
        raise DictlabError(
            f"{dictionary.name} writes activations of width {dictionary.d_out}, and those there have "
            f"{target.shape[-1]}: is it a dictionary of another model or site?"
        )
    codes, rows = dictionary(x[counted].float())
    check_finite(dictionary, rows)
    x_hat = target.float().clone()
    x_hat[counted] = rows.to(x_hat.dtype)
    return codes, x_hat


def sums_by_sequence(
    x: Float[Tensor, "batch context d_in"],
    x_hat: Float[Tensor, "batch context d_in"],
    codes: Codes,
    counted: Bool[Tensor, "batch context"],
    mean: Float[Tensor, " d_in"],
) -> dict[str, Float[Tensor, " batch"]]:
    """Sums over the tokens of each sequence that count, from which L0, MSE and explained variance follow."""
    n_tokens = counted.sum(dim=1)
    l0 = torch.zeros(counted.shape, dtype=torch.double, device=x.device)
    l0[counted] = codes.l0().to(l0)
    errors = (x - x_hat).double().square().sum(dim=-1)
    variance = (x - mean.to(x)).double().square().sum(dim=-1)
    return {
        "tokens": n_tokens.double(),
        "coordinates": (n_tokens * x.shape[-1]).double(),
        "l0": l0.sum(dim=1),
        "squared_error": (errors * counted).sum(dim=1),
        "variance": (variance * counted).sum(dim=1),
        "sink_variance": (variance * (outliers(x) & counted)).sum(dim=1),
    }


def active_by_sequence(codes: Codes, counted: Bool[Tensor, "batch context"]) -> Float[Tensor, "batch n_latents"]:
    """Whether each latent was active at some token of each sequence that counts: 0 or 1."""
    sequence = counted.nonzero()[:, 0]
    active = torch.zeros(len(counted), codes.n_latents)
    on = codes.values != 0
    active[sequence[codes.rows[on]].cpu(), codes.indices[on].cpu()] = 1.0
    return active


def _measure(
    dictionaries: Sequence[Dictionary],
    pairs: Sequence[SitePair],
    means: Mapping[SitePair, Tensor],
    model: LanguageModel,
    tokens: Int[Tensor, "batch context"],
    selection: TokenSelection,
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """For each dictionary, sums over the tokens of each sequence, and which latents were active in it."""
    starts = {pair.writes: model.block_input(pair.writes) for pair in pairs}
    sites = [site for pair in pairs for site in pair]
    clean = model.capture(tokens, list(dict.fromkeys([*sites, *starts.values(), model.last_site])))
    tokens = tokens.to(model.device)
    counted = {pair: _counted(clean, pair, selection, tokens, model) for pair in means}

    def spliced(pair: SitePair, x: Tensor) -> Tensor:
        site = pair.writes
        version = torch.where(counted[pair][..., None], x.to(clean[site].dtype), clean[site])
        return model.final_residual(version, site, residual=clean[starts[site]], tokens=tokens).flatten(0, 1)

    known = [
        reconstruct_selected(d, clean[pair.reads], counted[pair], clean[pair.writes])
        for d, pair in zip(dictionaries, pairs, strict=True)
    ]
    altered = [spliced(pair, x_hat) for pair, (_, x_hat) in zip(pairs, known, strict=True)]
    for pair, mean in means.items():
        altered += [spliced(pair, x.expand_as(clean[pair.writes])) for x in (torch.zeros_like(mean), mean)]
    out = kl_and_ce(model, clean[model.last_site].flatten(0, 1), torch.stack(altered), next_tokens(tokens).flatten())
    kl, ce, ce_clean = (values.unflatten(-1, tokens.shape).double() for values in (out.kl, out.ce, out.ce_clean))
    ablated = {pair: ce[len(pairs) + 2 * i :][:2] for i, pair in enumerate(means)}
    for index, (pair, (codes, x_hat)) in enumerate(zip(pairs, known, strict=True)):
        predicting = counted[pair][:, :-1]  # the last token has none after it

        def sum_of(values: Tensor, predicting: Tensor = predicting) -> Tensor:
            return (values[:, :-1] * predicting).sum(dim=1)

        row = sums_by_sequence(clean[pair.writes].float(), x_hat, codes, counted[pair], means[pair]) | {
            "predicted": predicting.sum(dim=1).double(),
            "ce_clean": sum_of(ce_clean),
            "ce": sum_of(ce[index]),
            "kl": (kl[index] * counted[pair]).sum(dim=1),
            "ce_zero": sum_of(ablated[pair][0]),
            "ce_mean": sum_of(ablated[pair][1]),
        }
        yield row, active_by_sequence(codes, counted[pair])
