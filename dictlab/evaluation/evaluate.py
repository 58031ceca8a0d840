"""How well does a dictionary reconstruct, and does the model still work with it spliced in?

One clean forward of each batch of contexts serves all dictionaries; `metrics` says what is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from dictlab.data.activations import moments
from dictlab.data.text import Text
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import emitting
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.metrics import Evaluation
from dictlab.evaluation.transformer_lens import adapted
from dictlab.interruption import Completion
from dictlab.model.language_model import LanguageModel
from dictlab.model.output_divergence import kl_and_ce, next_tokens

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
) -> list[Evaluation]:
    """Measure dictionaries on contexts drawn from all over a text. After a pass for the mean activations, one clean
    forward of each batch serves them all.

    Args:
        dictionaries: Each at the site in its metadata.
        model: The model they belong to.
        text: What to run it on; the held-out split, if it is to mean anything.
        contexts: Sequences to measure; fewer where the text ends before.
        context: Tokens a sequence; the model's own by default, 1,024 at most.
        seed: Of the sample and the bootstrap.
        partial: On Ctrl-C, return what is complete, if that is two sequences or more.

    Raises:
        DictlabError: A dictionary names no site, or one that is not the model's, or has another width than the site,
            or a reconstruction is not finite.
    """
    dictionaries = [adapted(dictionary, model) for dictionary in dictionaries]
    sites = [site_of(dictionary) for dictionary in dictionaries]
    check_at_least(1, contexts=contexts)
    length = model.context_length(context)
    sampled = text.sample(model.tokenizer, length, contexts, seed=seed)
    fingerprint = hashlib.sha256(sampled.numpy().tobytes()).hexdigest()[:16]
    batches = sampled.split(max(1, BATCH_TOKENS // length))
    means = {
        site: moments(model.capture(tokens, site)[site] for tokens in batches).mean for site in dict.fromkeys(sites)
    }
    rows: list[list[dict[str, Tensor]]] = [[] for _ in dictionaries]
    fired: list[list[Tensor]] = [[] for _ in dictionaries]
    with Completion(len(sampled), least=2 if partial else None) as completion:
        for tokens in tqdm(batches, desc="evaluate", leave=False):
            for index, (row, active) in enumerate(list(_measure(dictionaries, sites, means, model, tokens))):
                rows[index].append(row)
                fired[index].append(active)
            completion.add(len(tokens))
    return [
        Evaluation(
            dictionary.name,
            {key: torch.cat([row[key] for row in own]).double().cpu().numpy() for key in own[0]},
            torch.cat(active).cpu()[:, emitting(dictionary.activation, dictionary.n_latents)],
            seed,
            fingerprint,
            len(sampled),
        )
        for dictionary, own, active in zip(dictionaries, rows, fired, strict=True)
    ]


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


def site_of(dictionary: Dictionary) -> str:
    """The site in a dictionary's metadata.

    Raises:
        DictlabError: It names none.
    """
    if dictionary.metadata.site is None:
        raise DictlabError(f"{dictionary.name}: its file does not say at which site of the model it belongs.")
    return dictionary.metadata.site


def _measure(
    dictionaries: Sequence[Dictionary],
    sites: Sequence[str],
    means: Mapping[str, Tensor],
    model: LanguageModel,
    tokens: Int[Tensor, "batch context"],
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """For each dictionary, sums over the tokens of each sequence, and which latents were active in it."""
    starts = {site: model.block_input(site) for site in sites}
    clean = model.capture(tokens, list(dict.fromkeys([*sites, *starts.values(), model.last_site])))
    tokens = tokens.to(model.device)

    def spliced(site: str, x: Tensor) -> Tensor:
        return model.final_residual(x.to(clean[site].dtype), site, residual=clean[starts[site]], tokens=tokens).flatten(
            0, 1
        )

    known = [dictionary(clean[site].float()) for dictionary, site in zip(dictionaries, sites, strict=True)]
    for dictionary, (_, x_hat) in zip(dictionaries, known, strict=True):
        check_finite(dictionary, x_hat)
    altered = [spliced(site, x_hat) for site, (_, x_hat) in zip(sites, known, strict=True)]
    for site, mean in means.items():
        altered += [spliced(site, x.expand_as(clean[site])) for x in (torch.zeros_like(mean), mean)]
    out = kl_and_ce(model, clean[model.last_site].flatten(0, 1), torch.stack(altered), next_tokens(tokens).flatten())
    kl, ce, ce_clean = (values.unflatten(-1, tokens.shape).double() for values in (out.kl, out.ce, out.ce_clean))
    kl, ce, ce_clean = kl.sum(-1), ce[..., :-1].sum(-1), ce_clean[..., :-1].sum(-1)  # the last token has none after it
    ablated = {site: ce[len(sites) + 2 * i :][:2] for i, site in enumerate(means)}
    batch, length = tokens.shape
    for index, (dictionary, site) in enumerate(zip(dictionaries, sites, strict=True)):
        x, (codes, x_hat) = clean[site], known[index]
        row = {
            "tokens": torch.full((batch,), float(length)),
            "predicted": torch.full((batch,), float(length - 1)),
            "coordinates": torch.full((batch,), float(length * x.shape[-1])),
            "l0": codes.l0().reshape(batch, length).sum(dim=1),
            "squared_error": (x - x_hat).double().square().sum(dim=(1, 2)),
            "variance": (x - means[site].to(x)).double().square().sum(dim=(1, 2)),
            "ce_clean": ce_clean,
            "ce": ce[index],
            "kl": kl[index],
            "ce_zero": ablated[site][0],
            "ce_mean": ablated[site][1],
        }
        active = torch.zeros(batch, dictionary.n_latents)
        on = codes.values != 0
        active[(codes.rows[on] // length).cpu(), codes.indices[on].cpu()] = 1.0
        yield row, active
