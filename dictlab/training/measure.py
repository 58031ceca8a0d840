"""How good is a dictionary at the end of training? Firing rates on training data, metrics on held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from dictlab.data import activations
from dictlab.data.activations import Activations
from dictlab.data.text import Text
from dictlab.dictionary import Dictionary
from dictlab.evaluation.evaluate import evaluate, firing_rates, site_of
from dictlab.evaluation.metrics import Evaluation
from dictlab.evaluation.reconstruction import evaluate_reconstruction
from dictlab.evaluation.recorded_selection import recorded_selection
from dictlab.model.language_model import LanguageModel


def measure(
    dictionaries: Sequence[Dictionary], model: LanguageModel, text: Text, *, context: int, tokens: int, contexts: int
) -> list[Dictionary]:
    """The same dictionaries with firing rates and metrics, on the tokens that they were trained on.

    Args:
        dictionaries: Each at the site in its metadata.
        model: The model they belong to.
        text: What they were trained on, either split.
        context: Tokens a context.
        tokens: Training tokens that firing rates are measured on.
        contexts: Held-out sequences that metrics are measured on.
    """
    train = text.as_split("train")
    found: dict[str, Tensor] = {}
    for site in dict.fromkeys(map(site_of, dictionaries)):
        here = [d for d in dictionaries if d.metadata.site == site]
        sample = activations.sample_site(
            model, train, site, context=context, tokens=tokens, selection=recorded_selection(dictionaries)
        )
        rates, seen = firing_rates(here, sample)
        found |= {d.name: rate for d, rate in zip(here, rates, strict=True)}
    evaluations = evaluate(dictionaries, model, text.as_split("heldout"), contexts=contexts, context=context)
    return [_with(d, found[d.name], seen, e) for d, e in zip(dictionaries, evaluations, strict=True)]


def measure_on(
    dictionaries: Sequence[Dictionary], train: Activations, heldout: Activations, *, firing_tokens: int, tokens: int
) -> list[Dictionary]:
    """The same where there are activations and no model: L0, MSE and explained variance.

    Args:
        dictionaries: Of the width of the activations.
        train: What firing rates are measured on.
        heldout: What metrics are measured on.
        firing_tokens: Activations for the firing rates.
        tokens: Activations for the metrics.
    """
    rates, seen = firing_rates(dictionaries, train.sample(firing_tokens))
    evaluations = evaluate_reconstruction(dictionaries, heldout, tokens=tokens)
    return [_with(d, rate, seen, e) for d, rate, e in zip(dictionaries, rates, evaluations, strict=True)]


def _with(dictionary: Dictionary, rate: Tensor, seen: int, evaluation: Evaluation) -> Dictionary:
    metrics = evaluation.record() | {"dead": int((rate == 0).sum()), "firing_tokens": seen}
    return replace(
        dictionary,
        firing_rate=rate.to(dictionary.W_dec.device),
        metadata=replace(dictionary.metadata, metrics=metrics),
    )
