"""How good is a dictionary at the end of training? Firing rates of training itself, metrics on held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dictlab.data.activations import sample_site
from dictlab.data.text import Text
from dictlab.dictionary import Dictionary
from dictlab.evaluation.evaluate import evaluate, firing_rates
from dictlab.evaluation.metrics import Evaluation
from dictlab.evaluation.recorded_selection import recorded_selection
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel


def measure(
    dictionaries: Sequence[Dictionary], model: LanguageModel, text: Text, *, context: int, tokens: int, contexts: int
) -> list[Dictionary]:
    """Measure dictionaries anew, whose weights were changed after training: firing rates and held-out metrics, both on
    the tokens that they were trained on.

    Args:
        dictionaries: Each at the site in its metadata.
        model: The model they belong to.
        text: What they were trained on, either split.
        context: Tokens a context.
        tokens: Training tokens that firing rates are measured on.
        contexts: Held-out sequences that metrics are measured on.
    """
    train, rated = text.as_split("train"), {}
    for site in dict.fromkeys(map(site_of, dictionaries)):
        at_site = [d for d in dictionaries if d.metadata.site == site]
        selection = recorded_selection(dictionaries)
        sample = sample_site(model, train, site, context=context, tokens=tokens, selection=selection)
        rates, seen = firing_rates(at_site, sample)
        for dictionary, rate in zip(at_site, rates, strict=True):
            rated[dictionary.name] = with_firing_tokens(replace(dictionary, firing_rate=rate), seen)
    evaluations = evaluate(dictionaries, model, text.as_split("heldout"), contexts=contexts, context=context)
    return [with_metrics(rated[d.name], e) for d, e in zip(dictionaries, evaluations, strict=True)]


def with_firing_tokens(dictionary: Dictionary, tokens: int) -> Dictionary:
    """Put into the metadata how many latents never fired, and on how many tokens its firing rates were counted."""
    assert dictionary.firing_rate is not None
    counts = {"dead": int((dictionary.firing_rate == 0).sum()), "firing_tokens": tokens}
    return replace(dictionary, metadata=replace(dictionary.metadata, metrics=dictionary.metadata.metrics | counts))


def with_metrics(dictionary: Dictionary, evaluation: Evaluation) -> Dictionary:
    """Put held-out metrics into the metadata."""
    metrics = dictionary.metadata.metrics | evaluation.record()
    return replace(dictionary, metadata=replace(dictionary.metadata, metrics=metrics))
