"""What shows of a dictionary on activations: its stated figures, the size of its reconstruction, the right site.

    scale of the reconstruction = sum (x - b) . (x_hat - b) / sum |x_hat - b|^2,    b the mean activation

1 is the least-squares optimum; L1 training shrinks activations, so a little above 1 is usual. A transcoder is measured
against the site that it writes, and at neighbours of the one that it reads (`read_sites`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from analyses.quality.verification.checks import Check, outcome
from analyses.quality.verification.read_sites import CLEAR, SiteFit, candidates, site_fits
from dictlab.data.activations import Activations, ModelActivations
from dictlab.dictionary import Dictionary
from dictlab.evaluation.metrics import METRICS, Evaluation
from dictlab.evaluation.reconstruction import evaluate_activations

SLACK = 0.1  # relative, beyond the interval: the text is not the one that was trained on
SIZES = (0.8, 1.25)  # of the reconstruction's scale


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
    return Check("site that is read", outcome(passed), found, expected), fits


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
    return Check("explains more than the mean does", outcome(low > 0), figure, "explained variance above 0")


def _size(dictionary: Dictionary, x: Tensor) -> Check:
    centre = x.mean(dim=0)
    y = torch.cat([dictionary.reconstruct(block) for block in x.split(4096)]) - centre
    scale = float(((x - centre) * y).sum() / y.square().sum().clamp_min(1e-30))
    expected = f"{SIZES[0]} to {SIZES[1]}"
    return Check("scale of the reconstruction", outcome(SIZES[0] <= scale <= SIZES[1]), f"{scale:.3f}", expected)


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
    return Check(f"stated {label}", outcome(passed), figure, f"stated {stated:.4g}, within the interval and 10 %")
