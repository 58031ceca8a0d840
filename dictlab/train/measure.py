"""How good is a dictionary at the end of training? Firing rates on training text, metrics on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dictlab import activations
from dictlab.dictionary import Dictionary
from dictlab.evaluate import evaluate, firing_rates, site_of
from dictlab.lm import LanguageModel
from dictlab.text import Text


def measure(
    dictionaries: Sequence[Dictionary], model: LanguageModel, text: Text, *, context: int, tokens: int, contexts: int
) -> list[Dictionary]:
    """The same dictionaries with firing rates and metrics.

    Args:
        dictionaries: All at one site.
        model: The model they belong to.
        text: What they were trained on, either split.
        context: Tokens a context.
        tokens: Training tokens that firing rates are measured on.
        contexts: Held-out sequences that metrics are measured on.
    """
    train = text.as_split("train")
    batches = activations.sample(model, train, site_of(dictionaries[0]), context=context, tokens=tokens)
    rates, seen = firing_rates(dictionaries, batches)
    found = evaluate(dictionaries, model, text.as_split("heldout"), contexts=contexts, context=context)
    out = []
    for dictionary, rate, evaluation in zip(dictionaries, rates, found, strict=True):
        metrics = evaluation.record() | {"dead": int((rate == 0).sum()), "firing_tokens": seen}
        out.append(
            replace(
                dictionary,
                firing_rate=rate.to(dictionary.W_dec.device),
                metadata=replace(dictionary.metadata, metrics=metrics),
            )
        )
    return out
