"""Does a dictionary have the L0 that its file states?

A threshold in other units than the weights, a norm that was folded twice or not at all, or a default that another
version of a library meant show in L0 first, and in no error. Wherever L0 is measured, a file's own figure is set beside
it. Releases known to have such a fault:

    Llama Scope (fnlp/Llama3_1-8B-Base-LX*)    `jump_relu_threshold` is in the units of raw activations, the weights are
                                               for activations of a mean norm of sqrt(d_in); SAELens read it unscaled
                                               until May 2025 (its pull request 483). Scaled here when it is read.
    SAEBench's TopK of July 2024               SAELens gave them as ReLU, with L0 about 600 for 80, until September 2024
    (canrager/lm_sae)                          (its pull request 308); their own files, `ae.pt`, are right.

No other was found with evidence, so the measurement is what there is.
"""

from __future__ import annotations

from typing import Any

from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import JumpReLU

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
