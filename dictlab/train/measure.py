"""How good is a dictionary at the end of training? Firing rates on training text, metrics on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from dictlab import activations
from dictlab.dictionary import Dictionary
from dictlab.evaluate import evaluate, site_of
from dictlab.lm import LanguageModel
from dictlab.text import Text


@torch.no_grad()
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
    seen = 0
    fired = [torch.zeros(d.n_latents, dtype=torch.long) for d in dictionaries]
    site = site_of(dictionaries[0])
    for x in activations.sample(model, text.as_split("train"), site, context=context, tokens=tokens):
        seen += x.shape[0] * x.shape[1]
        for count, dictionary in zip(fired, dictionaries, strict=True):
            count += dictionary.encode(x).firings().cpu()
    found = evaluate(dictionaries, model, text.as_split("heldout"), contexts=contexts, context=context)
    out = []
    for dictionary, count, evaluation in zip(dictionaries, fired, found, strict=True):
        metrics = evaluation.record() | {"dead": int((count == 0).sum()), "firing_tokens": seen}
        metadata = replace(dictionary.metadata, metrics=metrics)
        out.append(replace(dictionary, firing_rate=(count / seen).float(), metadata=metadata))
    return out
