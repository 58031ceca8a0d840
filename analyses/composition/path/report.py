"""What the report of a path says: tables with their captions, plots, summary and warnings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from analyses.common import plotting
from analyses.composition.path.latent_graph import PercolationPoint
from analyses.composition.path.latent_graph_report import (
    component_table,
    percolation_plot,
    percolation_table,
    percolation_warnings,
)
from analyses.composition.path.path_error import Bias, PathTrace
from analyses.composition.path.path_phases import PathPhase
from analyses.composition.path.path_steps import PHASES, LatentMatching, StepSchedule
from analyses.pool.dictionary_chain import DictionaryChain
from dictlab.evaluation.metrics import METRICS, Evaluation
from dictlab.reports.report import Plot, Table

HELD_OUT = ("mse", "explained_variance", "ce_increase", "kl")  # metrics of the table of waypoints
SHADES = {"insert": "#56B4E9", "swap": "#E69F00", "drop": "#999999", "mixed": "#CC79A7"}
PANELS = {  # axis and title of each metric
    "mse": ("MSE (activation²)", "Does the error fall all the way?"),
    "l0": ("active latents a token (L0)", "How many latents are active?"),
    "ce_increase": ("CE increase (nats/token)", "CE increase when spliced in"),
}
LEGEND = {
    "insert": "insert novel latents",
    "swap": "swap components",
    "drop": "drop what is left",
    "mixed": "all of these, mixed",
}
VERBS = {
    "insert": "inserting",
    "swap": "swapping",
    "drop": "dropping what is left",
    "mixed": "all steps",
}


@dataclass(frozen=True, eq=False)
class PathResult:
    """Everything that was measured of a path.

    Attributes:
        chain: The dictionaries that it goes by, and the sample that it was traced on.
        threshold: Decoder cosine from which two latents are matched.
        bias: The output bias on the way.
        matchings: Of each dictionary with the next one.
        trace: Error and L0 at every point.
        random: The same in random orders.
        phases: What each phase does.
        mse_intervals: Of the MSE, at the trace's marks.
        waypoints: Points that were measured on held-out text.
        evaluations: What was measured there.
        percolation: Components over thresholds, by the name of the pair.
    """

    chain: DictionaryChain
    threshold: float
    bias: Bias
    matchings: Sequence[LatentMatching]
    trace: PathTrace
    random: Sequence[PathTrace]
    phases: Sequence[PathPhase]
    mse_intervals: Float[np.ndarray, "marks 2"]
    waypoints: NDArray[np.int64]
    evaluations: Sequence[Evaluation]
    percolation: Mapping[str, Sequence[PercolationPoint]]


def path_tables(result: PathResult, *, unit: str, counted: str) -> dict[str, Table]:
    """All tables.

    Args:
        result: What was measured.
        unit: What sequences of the training sample are called.
        counted: What its tokens are called.
    """
    tokens, sequences = result.chain.sample.n_tokens, result.chain.sample.n_tokens // result.chain.context
    heldout = result.evaluations[0]
    where = "Points put into the model" if heldout.has_model else "Points measured"
    return {
        "phases": Table(
            _phase_table(result),
            f"Phases of each stage on {sequences} training {unit} ({tokens} {counted}); MSE in activation², low and "
            "high: paired 95 % bootstrap interval of its change over sequences. Random order: mean of "
            f"{len(result.random)}. The end of a phase does not depend on the order in it.",
        ),
        "waypoints": Table(
            _waypoint_table(result),
            f"{where}: {heldout.size}, 95 % bootstrap intervals over sequences. MSE on the path is that on the "
            "training sample.",
        ),
        "components": Table(
            component_table(result.matchings), f"Components at a cosine of {result.threshold:g}, by pair."
        ),
        "percolation": Table(
            percolation_table(result.percolation), "The same over thresholds: the largest, and how many of each kind."
        ),
        "path": Table(_point_table(result), f"Every point, on {tokens} {counted}."),
    }


def path_summary(result: PathResult) -> str:
    """From where to where error and L0 go, whether the error falls all the way, and what each kind of phase does."""
    schedule, mse, l0 = result.trace.schedule, result.trace.mse(result.bias), result.trace.l0()
    latents, top = schedule.n_latents(), int(mse.argmax())
    rising = float((np.diff(mse) > 0).mean()) if schedule.steps else 0.0
    changes: dict[str, float] = {}
    for phase in result.phases:
        changes[phase.phase] = changes.get(phase.phase, 0.0) + phase.change
    parts = ", ".join(f"{VERBS[name]} {change:+.3g}" for name, change in changes.items() if abs(change) > 0)
    if rising == 0:
        how = "falls at every step"
    elif mse.max() > mse[0] * (1 + 1e-6):
        how = (
            f"does not fall all the way: {rising:.0%} of steps raise it, up to {mse[top]:.3g} at {latents[top]} latents"
        )
    else:
        how = f"never passes that of the start, though {rising:.0%} of steps raise it"
    return (
        f"In {schedule.steps} steps from {latents[0]} to {latents[-1]} latents the MSE goes from {mse[0]:.4g} to "
        f"{mse[-1]:.4g} and L0 from {l0[0]:.1f} to {l0[-1]:.1f} (at most {l0.max():.1f}). The MSE {how}. "
        f"Changes by phase: {parts}."
    )


def path_warnings(result: PathResult) -> tuple[str, ...]:
    """Too few sequences, and components that are giants."""
    return (*result.evaluations[0].cautions, *percolation_warnings(result.matchings))


def path_plots(result: PathResult) -> dict[str, Plot]:
    """All plots."""
    return {"path": path_plot(result), "percolation": percolation_plot(result.percolation, result.threshold)}


def _phase_table(result: PathResult) -> pd.DataFrame:
    """One row a phase of each stage: what it does to error and L0, and how evenly."""
    names = [dictionary.name for dictionary in result.chain.dictionaries]
    return pd.DataFrame(
        [
            {
                "stage": phase.stage,
                "from": names[phase.stage],
                "phase": phase.phase,
                "steps": phase.steps,
                "latents before": phase.latents[0],
                "latents after": phase.latents[1],
                "MSE before": phase.mse[0],
                "MSE after": phase.mse[1],
                "change": phase.change,
                "low": phase.change_interval[0],
                "high": phase.change_interval[1],
                "change a step": phase.change / phase.steps,
                "steps that raise it": phase.rising,
                "the same, random order": phase.rising_random,
                "highest MSE": phase.highest_mse,
                "L0 before": phase.l0[0],
                "L0 after": phase.l0[1],
            }
            for phase in result.phases
        ]
    )


def _waypoint_table(result: PathResult) -> pd.DataFrame:
    """One row a waypoint: held-out metrics with intervals, and which dictionary it is."""
    schedule, mse = result.trace.schedule, result.trace.mse(result.bias)
    latents, dictionaries = schedule.n_latents(), result.chain.dictionaries
    is_dictionary = {0: dictionaries[0].name}
    is_dictionary |= {int(end): d.name for end, d in zip(schedule.stage_ends(), dictionaries[1:], strict=True)}
    rows = []
    for point, evaluation in zip(result.waypoints.tolist(), result.evaluations, strict=True):
        phase = "start" if point == 0 else str(schedule.phase[point - 1])
        row: dict[str, Any] = {"point": point, "phase": phase, "is": is_dictionary.get(point, "")}
        row |= {"latents": int(latents[point]), "L0": evaluation.value("l0"), "MSE on the path": mse[point]}
        for key in evaluation.among(HELD_OUT):
            label, (low, high) = METRICS[key].label, evaluation.interval(key)
            row |= {label: evaluation.value(key), f"{label} low": low, f"{label} high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _point_table(result: PathResult) -> pd.DataFrame:
    """One row a point; intervals at the marks."""
    trace, schedule = result.trace, result.trace.schedule
    intervals = np.full((schedule.steps + 1, 2), np.nan)
    intervals[trace.marks] = result.mse_intervals
    return pd.DataFrame(
        {
            "point": np.arange(schedule.steps + 1),
            "stage": np.concatenate([[0], schedule.stage]),
            "phase": ["start", *schedule.phase.tolist()],
            "latents": schedule.n_latents(),
            "L0": trace.l0(),
            "MSE": trace.mse(result.bias),
            "low": intervals[:, 0],
            "high": intervals[:, 1],
        }
    )


@plotting.applied
def path_plot(result: PathResult) -> Plot:
    """MSE, L0 and, where there is a model, CE increase along a path."""
    trace, random, bias = result.trace, result.random, result.bias
    names = [dictionary.name for dictionary in result.chain.dictionaries]
    keys = result.evaluations[0].among(PANELS)
    figure, panels = plotting.axes(len(keys), width=4.8, height=4.0)
    left, middle = panels[:2]
    x = _abscissa(trace.schedule)
    for ax in panels:
        _phases(ax, trace.schedule, x, names)
    for ax, curve, others in (
        (left, trace.mse(bias), [other.mse(bias) for other in random]),
        (middle, trace.l0(), [other.l0() for other in random]),
    ):
        if others:
            band = np.stack(others)
            ax.fill_between(
                x, band.min(axis=0), band.max(axis=0), color="#444444", alpha=0.35, lw=0, label="random orders"
            )
        ax.plot(x, curve, color="black", lw=1.3, label="this order")
    left.fill_between(
        x[trace.marks], *result.mse_intervals.T, color=plotting.colour(0), alpha=0.25, lw=0, label="95 % interval"
    )
    for ax, key in zip(panels, keys, strict=True):
        _held_out(ax, x[result.waypoints], result.evaluations, key)
        label, title = PANELS[key]
        ax.set(ylabel=label, title=title)
        if key != "l0":
            ax.set_ylim(0, None)
    left.legend(loc="best")
    panels[-1].legend(handles=_legend(trace.schedule), loc="lower left")
    heldout = result.evaluations[0]
    return Plot(
        figure,
        f"Line: {trace.sample.n_tokens} training {heldout.counted}. Grey: smallest and largest of {len(random)} random "
        f"orders. Circles: {heldout.size}, bars 95 % bootstrap interval over sequences. Each stage is drawn equally "
        f"wide, steps evenly spaced. Output bias: {bias}.",
    )


def _abscissa(schedule: StepSchedule) -> NDArray[np.float64]:
    """Stages done at each point, by the share of steps."""
    x = np.zeros(schedule.steps + 1)
    for stage in range(int(schedule.stage.max(initial=-1)) + 1):
        steps = np.flatnonzero(schedule.stage == stage) + 1
        x[steps] = stage + np.arange(1, len(steps) + 1) / len(steps)
    return x


def _phases(ax: Axes, schedule: StepSchedule, x: NDArray[np.float64], names: Sequence[str]) -> None:
    ends = schedule.phase_ends()
    for a, b in itertools.pairwise(ends):
        ax.axvspan(x[a], x[b], color=SHADES[str(schedule.phase[b - 1])], alpha=0.22, lw=0)
    for stage in range(1, len(names) - 1):
        ax.axvline(stage, color="black", lw=0.6)
    ax.set_xticks(range(len(names)), plotting.short(names, 20), rotation=30, ha="right")
    ax.grid(False, axis="x")


def _held_out(ax: Axes, x: NDArray[np.float64], evaluations: Sequence[Evaluation], key: str) -> None:
    values = np.array([e.value(key) for e in evaluations])
    spans = np.array([e.interval(key) for e in evaluations]).T
    error = np.clip(np.abs(spans - values), 0, None)
    ax.errorbar(x, values, yerr=error, fmt="o", ms=4, color=plotting.colour(1), lw=1, label="held out")


def _legend(schedule: StepSchedule) -> list[Any]:
    there = [phase for phase in PHASES if phase in LEGEND and phase in schedule.phase]
    return [Patch(color=SHADES[phase], alpha=0.4, label=LEGEND[phase]) for phase in there]
