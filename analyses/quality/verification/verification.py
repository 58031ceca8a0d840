"""Is this file the dictionary that it claims to be?

What a careful person would look at before building on somebody's dictionary. From the weights: are all numbers finite,
do latents exist that can never fire or never write, are some of them the same, is the rule at run time fixed? On text,
where the model is at hand, or on plain activations: do the stated L0 and explained variance hold, and is the
reconstruction of the right size?
An encoder that was folded wrongly, a normalisation that was forgotten or a wrong site shows there first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from analyses.common.inputs import DataLike, open_activations
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, in_model, open_dictionary, open_model
from analyses.quality.verification.behaviour_checks import behaviour_checks, read_site_check
from analyses.quality.verification.checks import Check
from analyses.quality.verification.read_sites import SiteFit
from analyses.quality.verification.weight_checks import weight_checks
from dictlab.data.activations import ModelActivations
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.formats.loading import mapped
from dictlab.model.language_model import LanguageModel
from dictlab.reports.report import Report, Table


def verification(
    dictionary: DictionaryLike,
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    contexts: int = 64,
    format: str | None = None,
    scale: float | None = None,
    ignore: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """Check a dictionary's file as a careful person would: pass or fail, with figures.

    Args:
        dictionary: Of any library's.
        model: The language model; by default the one that the dictionaries name. Without one, weights alone
            are checked.
        text: Where tokens come from. Its held-out split is used.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE.
        contexts: Held-out sequences to measure on.
        format: The name of its format; recognised from the content by default.
        scale: What its inputs are multiplied by, where its configuration does not say.
        ignore: Fields of its configuration to pass over although they are unknown here.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        checks: check; result; found; expected
        [read_sites]: reads; writes; L0; explained variance; stated

    Example:
        dictlab verify mine.safetensors
        dictlab verify my_saelens_folder --model gpt2 --text my/texts
        dictlab verify mine.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed)
    check_at_least(2, contexts=contexts)
    if isinstance(dictionary, str | Path):
        opened = mapped(dictionary, format=format, scale=scale, ignore=ignore)
    else:
        opened = open_dictionary(dictionary)
    checks, sample, size, cautions = weight_checks(opened, seed=seed), {}, "", tuple[str, ...]()
    fits: list[SiteFit] = []
    if checks[0].result == "pass":
        (whole,) = with_selection([opened.to("cpu", torch.float32)], token_selection)
        found_model, reason = (model, "") if data is not None else _model(model, whole, device)
        if data is None and found_model is None:
            checks.append(Check("behaviour on text", "not done", reason, "a model, or data"))
        else:
            reading = open_activations([whole], model=found_model, text=text, data=data, device=device)
            held = reading.part("heldout")
            more, found = behaviour_checks(reading.dictionaries[0], held, contexts=contexts, seed=seed)
            # an L0 among the stated metrics has a check of its own, which says the same; one of the training has none
            cautions = reading.warnings if "l0" in whole.metadata.metrics else reading.cautions
            checks, sample, size = [*checks, *more], found.sample | held.record(), found.size
            if whole.transcodes and isinstance(held, ModelActivations):
                check, fits = read_site_check(reading.dictionaries[0], held, contexts=contexts, seed=seed)
                checks.append(check)
    failed = [check for check in checks if check.result == "fail"]
    return Report(
        title=f"Is {opened.name} the dictionary that it claims to be?",
        summary=_summary(checks, failed),
        tables={"checks": Table(pd.DataFrame(checks), _caption(size)), **_read_site_table(opened, fits)},
        settings={
            "contexts": contexts,
            "seed": seed,
            "format": format,
            "scale": scale,
            "ignore": list(ignore),
            **sample,
        },
        inputs=(opened,),
        warnings=(*(f"{check.check}: {check.found}; expected {check.expected}." for check in failed), *cautions),
        passed=not failed,
    )


def _model(given: ModelLike | None, dictionary: Dictionary, device: str) -> tuple[LanguageModel | None, str]:
    """The model to run it in; where none was asked for and none can be opened, why not."""
    if given is None and dictionary.metadata.site is None:
        return None, "the file names no site"
    if given is None and dictionary.transcodes and dictionary.metadata.writes is None:
        return None, "it is a transcoder, and the file does not name the site that it writes"
    try:
        model = open_model(given, [dictionary], device)
    except DictlabError as error:
        if given is not None:
            raise
        return None, str(error)
    try:
        in_model([dictionary], model)
    except DictlabError as error:  # activations of another world, and how they differ is not known
        return None, str(error)
    return model, ""


def _summary(checks: list[Check], failed: list[Check]) -> str:
    done = [check for check in checks if check.result != "not done"]
    skipped = len(checks) - len(done)
    outcome = "All passed" if not failed else f"{len(failed)} failed ({', '.join(check.check for check in failed)})"
    return f"{outcome}, of {len(done)} checks" + (f"; {skipped} could not be done." if skipped else ".")


def _caption(size: str) -> str:
    return f"Figures with 95 % bootstrap intervals over sequences, on {size}." if size else "From the weights alone."


def _read_site_table(dictionary: Dictionary, fits: Sequence[SiteFit]) -> dict[str, Table]:
    if not fits:
        return {}
    rows = [
        {
            "reads": fit.reads,
            "writes": dictionary.metadata.writes,
            "L0": fit.l0,
            "explained variance": fit.explained_variance,
            "stated": number == 0,
        }
        for number, fit in enumerate(fits)
    ]
    caption = (
        "The transcoder reading each of these sites, on the same tokens: active latents a token, and the share of the "
        "variance at the site that it writes which it explains. The file states the first."
    )
    return {"read_sites": Table(pd.DataFrame(rows), caption)}
