"""Does a dictionary have the L0 that its file states?

A threshold in other units than the weights, a norm that was folded twice or not at all, or a default that another
version of a library meant show in L0 first, and in no error. Whatever analysis is given activations, a file's own
figure is set beside L0 on a few of them. Releases known to have such a fault:

    Llama Scope (fnlp/Llama3_1-8B-Base-LX*)    `jump_relu_threshold` is in the units of raw activations, the weights are
                                               for activations of a mean norm of sqrt(d_in); SAELens read it unscaled
                                               until May 2025 (its pull request 483). Scaled here when it is read.
    SAEBench's TopK of July 2024               SAELens gave them as ReLU, with L0 about 600 for 80, until September 2024
    (canrager/lm_sae)                          (its pull request 308); their own files, `ae.pt`, are right.

No other was found with evidence, so the measurement is what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictlab.data.text import Text
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import JumpReLU
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.token_selection import ALL, TokenSelection

PROBE_CONTEXTS = 16  # of a text, on which L0 is measured to be held against a file's
FACTOR = 1.5  # between L0 as stated and as measured, in either direction; other text changes L0 by less


def stated_l0(dictionary: Dictionary) -> float | None:
    """Active latents a token, as the file, its configuration or its folder's name has it; None where none does.

    Of a dictionary trained by a number of latents (BatchTopK) that has a threshold in its place, this number.
    """
    about = dictionary.metadata
    l0: Any = about.metrics.get("l0")
    if l0 is None and isinstance(dictionary.activation, JumpReLU):
        l0 = about.training.get("k")
    return float(l0) if isinstance(l0, int | float) and not isinstance(l0, bool) and l0 > 0 else None


def stated_l0_warnings(name: str, stated: float | None, measured: float) -> tuple[str, ...]:
    """One sentence where a measured L0 is another than the stated one, by more than `FACTOR`; else nothing.

    Args:
        name: The dictionary's.
        stated: Its L0 as the file states it; None where it does not.
        measured: Active latents a token, on a sample.
    """
    if stated is None or stated / FACTOR <= measured <= stated * FACTOR:
        return ()
    return (
        f"{name}: its file states L0 {stated:g}, and {measured:.4g} was measured here, more than {FACTOR:g} times off. "
        "Are these the tokens, the site and the model it was trained on? If so, its thresholds or its input scale are "
        "in other units than its weights, and it computes something else than what was trained.",
    )


@torch.no_grad()
def l0_notes_on_rows(dictionaries: Sequence[Dictionary], x: Float[Tensor, "*tokens d_in"]) -> tuple[str, ...]:
    """`stated_l0_warnings` of dictionaries of one place, on a sample of its activations."""
    notes = list[str]()
    for dictionary in dictionaries:
        if (stated := stated_l0(dictionary)) is not None:
            measured = float(dictionary.encode(x.float()).l0().double().mean())
            notes += stated_l0_warnings(dictionary.name, stated, measured)
    return tuple(notes)


@torch.no_grad()
def l0_notes_in_model(
    dictionaries: Sequence[Dictionary],
    model: LanguageModel,
    text: Text,
    *,
    context: int,
    selection: TokenSelection = ALL,
) -> tuple[str, ...]:
    """`stated_l0_warnings` of dictionaries on a few contexts of a text.

    Args:
        dictionaries: On the model's device, and reading its activations.
        model: The language model; not run where no file states its L0.
        text: Where tokens come from.
        context: Tokens of a sequence.
        selection: The tokens that count.
    """
    stating = [dictionary for dictionary in dictionaries if stated_l0(dictionary) is not None]
    if not stating:
        return ()
    tokens = torch.stack(list(islice(text.contexts(model.tokenizer, context), PROBE_CONTEXTS)))
    captured = model.capture(tokens, list(dict.fromkeys(site_of(dictionary) for dictionary in stating)))
    counted = selection.mask(captured.values(), tokens, model.tokenizer)
    if not counted.any():
        return ()
    return tuple(note for d in stating for note in l0_notes_on_rows([d], captured[site_of(d)][counted]))
