"""Which dictionary gives more for its sparsity?

CE and KL increase, CE recovered, explained variance and MSE against L0 and against alive latents: each dictionary is
one point; each objective, activation function and width one curve (Braun et al. 2024, figures 1 and 4; Gao et al. 2024,
figure 2). Two curves are compared where they overlap:

    at matched CE increase    L0 (alive latents) of the one / that of the other
    at matched L0 (alive)     CE increase of the one / CE increase of the other

by interpolating linearly between neighbouring settings of a curve, in log L0, log alive latents and log CE increase, at
20 places of the overlap; the mean ratio is reported, with an interval from doing the same in every bootstrap resample.
No curve is extended beyond its points. Of plain activations the MSE stands in the place of the CE increase.
"""

from __future__ import annotations

from collections.abc import Sequence

from analyses.common.compatibility import check_same_place
from analyses.common.inputs import DataLike, open_activations
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, open_dictionaries
from analyses.quality.measured_points import Point
from analyses.quality.pareto.report import pareto_report
from dictlab.errors import check_at_least
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.reports.report import Report


def pareto(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """What does each dictionary give for its sparsity: does the model still work, is the activation reconstructed?

    CE increase, KL, CE recovered, explained variance and MSE against L0 and against alive latents, with the Pareto
    front, the ratios between objectives, and what training cost.

    Args:
        dictionaries: One or more at the same site.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its held-out split is used.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE and KL.
        contexts: Held-out sequences to measure on.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        points: dictionary; curve; alive; L0; CE increase; CE increase low; CE increase high; explained variance; front
        matched: what; of; over; ratio; low; high; resamples; from; to
        similar_ce: of; over; L0; L0 low; L0 high; CE; CE low; CE high; alive; alive low; alive high
        similar_l0: of; over; L0; L0 low; L0 high; CE; CE low; CE high; alive; alive low; alive high
        front_l0: dictionary; L0; CE increase; KL; CE recovered (zero); CE recovered (mean); explained variance; MSE
        front_alive: dictionary; alive latents; CE increase; KL; CE recovered (zero); CE recovered (mean); explained
            variance; MSE
        cost: curve; dictionaries; recorded; tokens; seconds; least; most; relative to; × tokens; × seconds
        measures: dictionary; L0; CE increase; KL; CE recovered (zero); CE recovered (mean); explained variance; MSE
        metrics: dictionary; metric; value; low; high; unit

    Example:
        dictlab report pareto runs/*/*.safetensors --contexts 128
        dictlab report pareto runs/*/*.safetensors --data activations.npy
    """  # noqa: RUF002
    check_at_least(0, seed=seed)
    opened = open_dictionaries(dictionaries, analysis="pareto", transcoders=True, token_selection=token_selection)
    check_same_place(opened, model)
    reading = open_activations(opened, model=model, text=text, data=data, device=device)
    source = reading.part("heldout")
    evaluations = evaluate_activations(reading.dictionaries, source, contexts=contexts, seed=seed, partial=True)
    points = [Point(d, e) for d, e in zip(opened, evaluations, strict=True)]
    return pareto_report(points, source.record() | {"seed": seed} | evaluations[0].sample, reading.cautions)
