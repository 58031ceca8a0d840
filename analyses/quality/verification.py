"""Is this file the dictionary that it claims to be?

What a careful person would look at before building on somebody's dictionary. From the weights: are all numbers finite,
do latents exist that can never fire or never write, are some of them the same, is the rule at run time fixed? On text,
where the model is at hand, or on plain activations: do the stated L0 and explained variance hold, and is the
reconstruction of the right size?
An encoder that was folded wrongly, a normalisation that was forgotten or a wrong site shows there first.

    scale of the reconstruction = sum (x - b) . (x_hat - b) / sum |x_hat - b|^2,    b the mean activation

1 is the least-squares optimum; L1 training shrinks activations, so a little above 1 is usual. A transcoder is measured
against the site that it writes, and at neighbours of the one that it reads (`read_sites`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from analyses.common.inputs import DataLike, open_activations
from analyses.common.neighbours import nearest
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, in_model, open_dictionary, open_model
from analyses.quality.read_sites import CLEAR, SiteFit, candidates, site_fits
from dictlab.data.activations import Activations, ModelActivations
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import Gated, JumpReLU
from dictlab.dictionary.union import emitting
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.metrics import METRICS, Evaluation
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.formats.loading import mapped
from dictlab.model.language_model import LanguageModel
from dictlab.numerics import seeds
from dictlab.reports.report import Report, Table

SAME = 0.99  # cosine of decoder directions, and of encoder directions, above which two latents are one
SEARCHED = 8192  # latents whose double is looked for; the others are candidates all the same
SLACK = 0.1  # relative, beyond the interval: the text is not the one that was trained on
SIZES = (0.8, 1.25)  # of the reconstruction's scale


class Check(NamedTuple):
    """One thing looked at.

    Attributes:
        check: What.
        result: "pass", "fail", or "not done".
        found: The figure.
        expected: What passes.
    """

    check: str
    result: str
    found: str
    expected: str


def weight_checks(dictionary: Dictionary, *, seed: int = 0) -> list[Check]:
    """What can be told from the weights alone."""
    finite = _finite(dictionary)
    if finite.result == "fail":
        return [finite]
    whole = dictionary.to("cpu", torch.float32)
    return [finite, _decoder(whole), _encoder(whole), _biases(whole), _doubles(whole, seed), _rule(whole)]


def _outcome(passed: bool) -> str:
    return "pass" if passed else "fail"


def _finite(dictionary: Dictionary) -> Check:
    tensors = {**dict(dictionary._weights()), **dictionary.activation.tensors()}
    bad = {name: int((~torch.isfinite(t.float())).sum()) for name, t in tensors.items()}
    found = ", ".join(f"{count} in {name}" for name, count in bad.items() if count)
    return Check("numbers are finite", _outcome(not found), found or "all finite", "no NaN, no infinity")


def _decoder(dictionary: Dictionary) -> Check:
    norms = dictionary.W_dec.norm(dim=1)[emitting(dictionary.activation, dictionary.n_latents)]
    low, middle, high = (float(q) for q in norms.quantile(torch.tensor([0.0, 0.5, 1.0])))
    zero = int((norms == 0).sum())
    found = f"{zero} zero rows; norms {low:.3g} to {high:.3g}, median {middle:.3g}"
    return Check("decoder directions", _outcome(zero == 0), found, "no zero row")


def _encoder(dictionary: Dictionary) -> Check:
    """A latent whose encoder is zero emits the same for every input."""
    zero = ~dictionary.W_enc.any(dim=0) & emitting(dictionary.activation, dictionary.n_latents)
    return Check("encoder directions", _outcome(not zero.any()), f"{int(zero.sum())} zero columns", "none")


def _biases(dictionary: Dictionary) -> Check:
    """A bias far larger than all else is mostly a factor that was folded twice, or not at all."""
    reach = float(dictionary.W_enc.norm(dim=0).median())
    sizes = {
        "|b_pre|": float(dictionary.b_pre.norm()),
        "|b_out|": float(dictionary.b_out.norm()),
        "median |b_enc| / |encoder|": float(dictionary.b_enc.abs().median()) / max(reach, 1e-12),
    }
    biases = [size for name, size in sizes.items() if name.startswith("|") and size > 0]
    found = ", ".join(f"{name} {size:.3g}" for name, size in sizes.items())
    if dictionary.transcodes:  # they are of two sites
        return Check("bias sizes", "not done", found, "one site, whose biases can be compared")
    ratio = max(biases) / min(biases) if len(biases) == 2 else 1.0
    return Check("bias sizes", _outcome(ratio <= 10), found, "b_pre and b_out within a factor of 10, or one zero")


def _doubles(dictionary: Dictionary, seed: int) -> Check:
    """Latents with the same direction in decoder and encoder."""
    alive = dictionary.alive.nonzero().squeeze(1)
    order = torch.randperm(len(alive), generator=seeds.generator(seed, "doubles"))[:SEARCHED]
    rows = dictionary.W_dec[alive]
    encoders = torch.nn.functional.normalize(dictionary.W_enc.T[alive], dim=1)
    if len(alive) < 2:
        return Check("duplicated latents", "not done", f"{len(alive)} latents alive", "two or more")
    signed = dictionary.signed[alive]
    found = nearest(rows[order], rows, top=2, signed_a=signed[order], signed_b=signed)
    # The nearest row is itself, or its double.
    other = torch.where(found.rows[:, 0] == order, found.rows[:, 1], found.rows[:, 0])
    encoder_cosine = (encoders[order] * encoders[other]).sum(dim=1)
    encoder_cosine = torch.where(signed[order], encoder_cosine.abs(), encoder_cosine)
    alike = (found.cosine[:, 1] > SAME) & (encoder_cosine > SAME)
    count = int(alike.sum())
    searched = "" if len(order) == len(alive) else f" of {len(order):,} looked at"
    return Check(
        "duplicated latents", _outcome(count == 0), f"{count}{searched}", f"none with cosines above {SAME} in both"
    )


def _rule(dictionary: Dictionary) -> Check:
    activation, found = dictionary.activation, dictionary.activation.kind
    if activation.batchwise:
        return Check("rule at run time", "fail", f"{found}: codes depend on the batch", "codes of a token by itself")
    if isinstance(activation, JumpReLU):
        negative = int((activation.threshold < 0).sum())
        found += f", {negative} negative thresholds"
        return Check("rule at run time", _outcome(negative == 0), found, "thresholds of 0 or more")
    if isinstance(activation, Gated):
        found += f", magnitudes times {float(activation.r_mag.exp().median()):.3g} (median)"
    return Check("rule at run time", "pass", found, "codes of a token by itself")


@torch.no_grad()
def behaviour_checks(
    placed: Dictionary, source: Activations, *, contexts: int = 64, seed: int = 0
) -> tuple[list[Check], Evaluation]:
    """What shows on activations: the stated figures, and the size of the reconstruction.

    Args:
        placed: The dictionary, as it reads these activations.
        source: Where they come from.
        contexts: Sequences to measure on.
        seed: Of the sample and the bootstrap.
    """
    (found,) = evaluate_activations([placed], source, contexts=contexts, seed=seed)
    stated = [_stated(found, placed, metric) for metric in found.among(("l0", "explained_variance", "ce_increase"))]
    if placed.transcodes:
        return [_explains(found), *stated], found
    x = torch.cat([x.flatten(0, 1).float() for x in source.sample(contexts * source.context, seed=seed)])
    return [*_reconstructs(placed, found, x), *stated], found


def read_site_check(
    placed: Dictionary, source: ModelActivations, *, contexts: int = 64, seed: int = 0
) -> tuple[Check, list[SiteFit]]:
    """Whether a transcoder explains most of what it writes where it reads the site that its file names.

    Args:
        placed: The transcoder, as it reads this model's activations.
        source: Activations of the model, whose tokens it is measured on.
        contexts: Sequences to measure on.
        seed: Of the sample.
    """
    model = source.model
    tokens = source.text.sample(model.tokenizer, source.context, contexts, seed=seed)
    fits = site_fits(placed, model, candidates(model, placed), tokens, source.selection)
    stated, best = fits[0], max(fits, key=lambda fit: fit.explained_variance)
    found = ", ".join(
        f"{fit.reads}: {fit.explained_variance:.3g} (L0 {fit.l0:.4g})" for fit in dict.fromkeys((stated, best))
    )
    if len(fits) < 2:
        return Check("site that is read", "not done", found, "another site of its block to compare with"), fits
    passed = stated.explained_variance >= best.explained_variance - CLEAR
    expected = f"most variance explained at {stated.reads}, of {len(fits)} sites tried"
    return Check("site that is read", _outcome(passed), found, expected), fits


def _reconstructs(dictionary: Dictionary, found: Evaluation, x: Tensor) -> list[Check]:
    if (dictionary.metadata.objective or "").startswith("e2e"):
        value = f"explained variance {found.value('explained_variance'):.3f}"
        return [Check("reconstruction", "not done", value, "a dictionary that was trained to reconstruct")]
    return [_explains(found), _size(dictionary, x)]


def _explains(found: Evaluation) -> Check:
    value, (low, _) = found.value("explained_variance"), found.interval("explained_variance")
    if found.n_sequences < 2:
        return Check("explains more than the mean does", "not done", f"{value:.3f}", "two sequences, for an interval")
    figure = f"{value:.3f} (lower end of the interval {low:.3f})"
    return Check("explains more than the mean does", _outcome(low > 0), figure, "explained variance above 0")


def _size(dictionary: Dictionary, x: Tensor) -> Check:
    centre = x.mean(dim=0)
    y = torch.cat([dictionary.reconstruct(block) for block in x.split(4096)]) - centre
    scale = float(((x - centre) * y).sum() / y.square().sum().clamp_min(1e-30))
    expected = f"{SIZES[0]} to {SIZES[1]}"
    return Check("scale of the reconstruction", _outcome(SIZES[0] <= scale <= SIZES[1]), f"{scale:.3f}", expected)


def _stated(found: Evaluation, dictionary: Dictionary, metric: str) -> Check:
    """What the file states, against what is measured here."""
    label, stated = METRICS[metric].label, dictionary.metadata.metrics.get(metric)
    value, (low, high) = found.value(metric), found.interval(metric)
    figure = f"{value:.4g} [{low:.4g}, {high:.4g}]"
    if found.n_sequences < 2:
        return Check(f"stated {label}", "not done", f"{value:.4g}", "two sequences, for an interval")
    if not isinstance(stated, int | float) or isinstance(stated, bool):
        return Check(f"stated {label}", "not done", figure, "the file states none")
    slack = SLACK * abs(stated)
    passed = low - slack <= stated <= high + slack
    return Check(f"stated {label}", _outcome(passed), figure, f"stated {stated:.4g}, within the interval and 10 %")


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
