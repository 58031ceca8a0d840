"""What lies between a small dictionary and a large one?

SMALL becomes LARGE step by step: novel latents are inserted, components of related latents swapped, and what is left of
SMALL is dropped, see `route` (Leask et al. 2025, the interpolation between sizes); from LARGE it goes on to the next
larger dictionary. Every point of the path is a dictionary. Its error and L0 are followed exactly, see `walk`, in the
order asked for and in random ones, and some points are measured on held-out text, in the model where there is one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.common.inputs import DataLike, DictionaryLike, ModelLike, TextLike, open_activations
from analyses.composition.latent_graph import component_table, percolates, percolation, percolation_plot
from analyses.composition.path_error import Bias, Walk
from analyses.composition.path_plots import path_plot
from analyses.composition.path_steps import Kinship, Order
from analyses.composition.size_chain import Chain, followed, kinships, observed, open_chain, ordered
from dictlab.data.activations import Activations
from dictlab.dictionary import Dictionary
from dictlab.errors import check_at_least
from dictlab.evaluation.metrics import METRICS, Evaluation
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.reports.report import Report, Table
from dictlab.statistics import interval, intervals, mean_draws

MARKS = 96  # points of a path, beside the ends of its phases, that have intervals
MEASURED = ("mse", "explained_variance", "ce_increase", "kl")
SAID = {
    "insert": "inserting",
    "swap": "swapping",
    "drop": "dropping what is left",
    "silent": "the dead",
    "mixed": "all steps",
}


def path(
    small: DictionaryLike,
    larger: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    data: DataLike | None = None,
    threshold: float = 0.7,
    order: Order = "cosine",
    bias: Bias = "best",
    random_orders: int = 5,
    waypoints: int = 1,
    tokens: int = 65_536,
    contexts: int = 64,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """What happens to error, L0 and the model on the way from a small dictionary to larger ones, latent by latent?

    `dictlab stitch --at` and `--until` write the dictionary at a point of this path.

    Args:
        small: Where the path begins.
        larger: Dictionaries at the same site that it goes to, one after the other.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from: the training split to follow the path on, the held-out split for waypoints.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE and KL.
        threshold: Cosine from which two latents belong together.
        order: Of the steps within a phase: least similar first, most useful alone first, or random; or greedy: no
            phases, but of all steps left always the one after which the error is smallest (slow).
        bias: The output bias on the way: the best at each point in closed form, that of the dictionary that a stage
            starts from until its last step, or a blend of that and the next one's by the share of steps done.
        random_orders: Random orders that the path is also followed in, for a band.
        waypoints: Points of each phase, its end among them, that are measured on held-out text, in the model.
        tokens: Training tokens to follow the path on.
        contexts: Held-out sequences to measure waypoints on.
        seed: Of the samples of text, random orders and bootstrap.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Example:
        dictlab report path a-256.safetensors a-512.safetensors a-1024.safetensors
        dictlab report path small.safetensors large.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed, random_orders=random_orders, waypoints=waypoints)
    sizes = with_selection(open_chain(small, larger), token_selection)
    reading = open_activations(sizes, model=model, text=text, data=data, device=device)
    chain, (seen, heldout) = reading.dictionaries, reading.parts()
    row = observed(chain, seen.sample(tokens, seed=seed))
    kin = kinships(row, threshold)
    way = ordered(row, kin, order, seed)
    found = followed(row, way, np.union1d(way.ends(), np.linspace(0, way.steps, MARKS).astype(np.int64)))
    others = [followed(row, ordered(row, kin, "random", seed + i)) for i in range(random_orders)]
    points = _waypoints(found, waypoints)
    there = [_there(row, found, int(point), bias) for point in points]
    evaluations = evaluate_activations(there, heldout, contexts=contexts, seed=seed, partial=True)
    phases = _phases(chain, found, others, bias, seed)
    measured = _measured(row, found, points, evaluations, bias)
    curves = {f"{a.name} → {b.name}": percolation(k.graph) for k, a, b in zip(kin, chain, chain[1:], strict=False)}
    return Report(
        title=f"The path from {chain[0].name} to {chain[-1].name}",
        summary=_summary(found, phases, bias),
        tables={
            "phases": Table(phases, _phases_caption(row, seen, random_orders)),
            "waypoints": Table(measured, _waypoints_caption(evaluations[0])),
            "components": Table(_components(chain, kin), f"Components at a cosine of {threshold:g}, by pair."),
            "percolation": Table(_stacked(curves), "The same over thresholds: the largest, and how many of each kind."),
            "path": Table(_points(found, bias, seed), f"Every point, on {row.observations.n_tokens} {seen.counted}."),
        },
        plots={
            "path": path_plot(
                found, others, points, evaluations, [d.name for d in chain], bias, _spans(found, bias, seed)
            ),
            "percolation": percolation_plot(curves, threshold),
        },
        settings={
            "threshold": threshold,
            "order": order,
            "bias": bias,
            "random_orders": random_orders,
            "tokens": row.observations.n_tokens,
            "seed": seed,
        }
        | seen.record()
        | evaluations[0].sample,
        inputs=tuple(chain),
        warnings=(*evaluations[0].cautions, *percolation_warnings(chain, kin), *reading.cautions),
    )


def percolation_warnings(chain: Sequence[Dictionary], kin: Sequence[Kinship]) -> tuple[str, ...]:
    """What is said where one component is a giant."""
    said = []
    for pair, small, large in zip(kin, chain, chain[1:], strict=False):
        if percolates(pair.components):
            said.append(
                f"At a cosine of {pair.graph.threshold:g} one component holds {pair.components.largest} latents of "
                f"{small.name} and {large.name}: swapping it is no step but a jump. A higher threshold takes it apart."
            )
    return tuple(said)


def _waypoints(found: Walk, each: int) -> NDArray[np.int64]:
    """The start, the end of every stage, and so many points of each phase."""
    ends = found.route.ends()
    inside = [np.linspace(a, b, each + 1)[1:] for a, b in itertools.pairwise(ends)]
    stages = [np.flatnonzero(found.route.stage == stage)[-1:] + 1 for stage in range(len(found.own) - 1)]
    return np.unique(np.rint(np.concatenate([[0], *inside, *stages])).astype(np.int64))


def _there(chain: Chain, found: Walk, point: int, bias: Bias) -> Dictionary:
    return chain.part(found.route.chosen(point), found.bias(point, bias), f"point {point}")


def _place(found: Walk, point: int) -> str:
    """Where on the path a point is."""
    if point == 0:
        return "start"
    return str(found.route.phase[point - 1])


def _measured(
    chain: Chain, found: Walk, points: NDArray[np.int64], evaluations: Sequence[Evaluation], bias: Bias
) -> pd.DataFrame:
    """One row a waypoint, held-out metrics with intervals."""
    mse, latents = found.mse(bias), found.route.latents()
    names = chain.dictionaries[1:]
    ends = {int(np.flatnonzero(found.route.stage == s)[-1]) + 1: d.name for s, d in enumerate(names)}
    rows = []
    for point, evaluation in zip(points.tolist(), evaluations, strict=True):
        name = chain.dictionaries[0].name if point == 0 else ends.get(point, "")
        row = {"point": point, "phase": _place(found, point), "is": name, "latents": int(latents[point])}
        row |= {"L0": evaluation.value("l0"), "MSE on the path": mse[point]}
        for key in evaluation.among(MEASURED):
            label = METRICS[key].label
            low, high = evaluation.interval(key)
            row |= {label: evaluation.value(key), f"{label} low": low, f"{label} high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _phases(chain: Sequence[Dictionary], found: Walk, others: Sequence[Walk], bias: Bias, seed: int) -> pd.DataFrame:
    """One row a phase of each stage: what it does to error and L0, and how evenly."""
    mse, l0, latents, ends = found.mse(bias), found.l0(), found.route.latents(), found.route.ends()
    random = [other.mse(bias) for other in others]
    sums = found.sequences(bias)
    draws = mean_draws(sums, seed)
    at = {int(mark): i for i, mark in enumerate(found.marks)}
    rows = []
    for a, b in zip(ends.tolist(), ends[1:].tolist(), strict=False):
        steps = np.diff(mse[a : b + 1])
        low, high = interval(draws[:, at[b]] - draws[:, at[a]]) if len(sums) > 1 else (float("nan"),) * 2
        rising = [float((np.diff(other[a : b + 1]) > 0).mean()) for other in random]
        rows.append(
            {
                "stage": int(found.route.stage[b - 1]),
                "from": chain[int(found.route.stage[b - 1])].name,
                "phase": str(found.route.phase[b - 1]),
                "steps": b - a,
                "latents before": int(latents[a]),
                "latents after": int(latents[b]),
                "MSE before": mse[a],
                "MSE after": mse[b],
                "change": mse[b] - mse[a],
                "low": low,
                "high": high,
                "change a step": (mse[b] - mse[a]) / (b - a),
                "steps that raise it": float((steps > 0).mean()),
                "the same, random order": float(np.mean(rising)) if rising else float("nan"),
                "highest MSE": mse[a : b + 1].max(),
                "L0 before": l0[a],
                "L0 after": l0[b],
            }
        )
    return pd.DataFrame(rows)


def _spans(found: Walk, bias: Bias, seed: int) -> NDArray[np.float64]:
    """95 % bootstrap intervals of the MSE over sequences at each mark, `[marks, 2]`."""
    sums = found.sequences(bias)
    if len(sums) < 2:
        return np.full((len(found.marks), 2), np.nan)
    return np.stack(intervals(mean_draws(sums, seed)), axis=1)


def _points(found: Walk, bias: Bias, seed: int) -> pd.DataFrame:
    """One row a point; intervals where sequences were told apart."""
    route = found.route
    frame = pd.DataFrame(
        {
            "point": np.arange(route.steps + 1),
            "stage": np.concatenate([[0], route.stage]),
            "phase": ["start", *route.phase.tolist()],
            "latents": route.latents(),
            "L0": found.l0(),
            "MSE": found.mse(bias),
            "low": np.nan,
            "high": np.nan,
        }
    )
    frame.loc[found.marks, ["low", "high"]] = _spans(found, bias, seed)
    return frame


def _components(chain: Sequence[Dictionary], kin: Sequence[Kinship]) -> pd.DataFrame:
    return _stacked(
        {
            f"{a.name} → {b.name}": component_table(pair.components)
            for pair, a, b in zip(kin, chain, chain[1:], strict=False)
        }
    )


def _stacked(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of all pairs, one below the other, the pair in front."""
    together = pd.concat([frame.assign(pair=name) for name, frame in frames.items()], ignore_index=True)
    return together[["pair", *together.columns.drop("pair")]]


def _summary(found: Walk, phases: pd.DataFrame, bias: Bias) -> str:
    mse, l0, latents = found.mse(bias), found.l0(), found.route.latents()
    rising = float((np.diff(mse) > 0).mean()) if found.route.steps else 0.0
    top = int(mse.argmax())
    change = phases.groupby("phase", sort=False)["change"].sum()
    parts = ", ".join(f"{SAID[str(name)]} {value:+.3g}" for name, value in change.items() if abs(value) > 0)
    if rising == 0:
        how = "falls at every step"
    elif mse.max() > mse[0] * (1 + 1e-6):
        how = (
            f"does not fall all the way: {rising:.0%} of steps raise it, up to {mse[top]:.3g} at {latents[top]} latents"
        )
    else:
        how = f"never passes that of the start, though {rising:.0%} of steps raise it"
    return (
        f"In {found.route.steps} steps from {latents[0]} to {latents[-1]} latents the MSE goes from {mse[0]:.4g} to "
        f"{mse[-1]:.4g} and L0 from {l0[0]:.1f} to {l0[-1]:.1f} (at most {l0.max():.1f}). The MSE {how}. "
        f"Changes by phase: {parts}."
    )


def _phases_caption(chain: Chain, source: Activations, random_orders: int) -> str:
    tokens = chain.observations.n_tokens
    return (
        f"Phases of each stage on {tokens // chain.context} training {source.unit} ({tokens} {source.counted}); MSE in "
        "activation², low and high: paired 95 % bootstrap interval of its change over sequences. Random order: mean of "
        f"{random_orders}. The end of a phase does not depend on the order in it."
    )


def _waypoints_caption(evaluation: Evaluation) -> str:
    where = "Points put into the model" if evaluation.has_model else "Points measured"
    return (
        f"{where}: {evaluation.size}, 95 % bootstrap intervals over sequences. MSE on the path is that on the training "
        "sample."
    )
