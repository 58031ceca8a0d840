"""What lies between a small dictionary and a large one?

SMALL becomes LARGE step by step: novel latents are inserted, components of matched latents swapped, and what is left of
SMALL is dropped, see `path_steps` (Leask et al. 2025, the interpolation between sizes); from LARGE it goes on to the
next larger dictionary. Every point of the path is a dictionary. Its error and L0 are traced exactly, see `path_error`,
in the order asked for and in random ones, and some points are measured on held-out text, in the model where there is
one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analyses.common.chance import sign_notes
from analyses.common.inputs import DataLike, open_activations
from analyses.common.opening import DictionaryLike, ModelLike, TextLike
from analyses.composition.path.latent_graph import percolation
from analyses.composition.path.path_error import Bias, PathTrace
from analyses.composition.path.path_phases import measure_phases, mse_intervals
from analyses.composition.path.path_steps import Order
from analyses.composition.path.report import PathResult, path_plots, path_summary, path_tables, path_warnings
from analyses.composition.path.size_path import match_latents, order_steps, trace_path
from analyses.pool.dictionary_chain import check_active, encode_chain, open_chain
from dictlab.errors import check_at_least, check_choice
from dictlab.evaluation.reconstruction import evaluate_activations
from dictlab.evaluation.recorded_selection import with_selection
from dictlab.reports.report import Report

MARKS = 96  # points of a path, beside the ends of its phases, that have intervals


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

    `dictlab stitch --until` writes the dictionary at a point of this path.

    Args:
        small: The smaller dictionary. The path begins with it.
        larger: Larger dictionaries at the same site, in turn.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its training split to trace the path on, its held-out split to measure on.
        data: Activations in place of model and text: an array, or a .npy or .safetensors file. No CE and KL.
        threshold: Cosine of decoder directions from which two latents count as the same.
        order: Of the steps within a phase of the path: least similar first (cosine), most useful alone first (effect),
            in random order; or without phases, of all steps left the one with the smallest error (greedy, slow).
        bias: The output bias on the way: the best at each point in closed form, that of the dictionary that a stage
            starts from until its last step, or a blend of that and the next one's by the share of steps done.
        random_orders: Random orders that the path is also traced in, for a band.
        waypoints: Points of each phase, its end among them, that are measured on held-out text, in the model.
        tokens: Training tokens to sample.
        contexts: Held-out sequences to measure on.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        phases: stage; from; phase; steps; latents before; latents after; MSE before; MSE after; change; low; high;
            change a step; steps that raise it; the same, random order; highest MSE; L0 before; L0 after
        waypoints: point; phase; is; latents; L0; MSE on the path; MSE; MSE low; MSE high; explained variance; explained
            variance low; explained variance high; [CE increase]; [CE increase low]; [CE increase high]; [KL]; [KL low];
            [KL high]
        components: pair; kind; components; latents of SMALL; latents of LARGE; largest (latents)
        percolation: pair; threshold; largest; share of latents; same; split; merge; tangled; novel; orphan
        path: point; stage; phase; latents; L0; MSE; low; high

    Example:
        dictlab report path a-256.safetensors a-512.safetensors a-1024.safetensors
        dictlab report path small.safetensors large.safetensors --data activations.npy
    """
    check_at_least(0, seed=seed, random_orders=random_orders, waypoints=waypoints)
    check_choice(Order, order=order)
    check_choice(Bias, bias=bias)
    sizes = with_selection(open_chain(small, larger, analysis="path"), token_selection)
    reading = open_activations(sizes, model=model, text=text, data=data, device=device)
    train, heldout = reading.parts()
    chain = encode_chain(reading.dictionaries, train.sample(tokens, seed=seed))
    check_active(chain)
    matchings = match_latents(chain, threshold)
    schedule = order_steps(chain, matchings, order, seed)
    marks = np.linspace(0, schedule.steps, MARKS).astype(np.int64)
    trace = trace_path(chain, schedule, np.union1d(schedule.phase_ends(), marks))
    random = [trace_path(chain, order_steps(chain, matchings, "random", seed + i)) for i in range(random_orders)]
    points = waypoints_of(trace, waypoints)
    there = [chain.subset(schedule.chosen(p), trace.bias(p, bias), f"point {p}") for p in points.tolist()]
    result = PathResult(
        chain=chain,
        threshold=threshold,
        bias=bias,
        matchings=matchings,
        trace=trace,
        random=random,
        phases=measure_phases(trace, random, bias, seed),
        mse_intervals=mse_intervals(trace, bias, seed),
        waypoints=points,
        evaluations=evaluate_activations(there, heldout, contexts=contexts, seed=seed, partial=True),
        percolation={matching.pair: percolation(matching.graph) for matching in matchings},
    )
    settings = {"threshold": threshold, "order": order, "bias": bias, "random_orders": random_orders}
    settings |= {"tokens": chain.sample.n_tokens, "seed": seed}
    return Report(
        title=f"The path from {chain.dictionaries[0].name} to {chain.dictionaries[-1].name}",
        summary=path_summary(result),
        tables=path_tables(result, unit=train.unit, counted=train.counted),
        plots=path_plots(result),
        settings=settings | train.record() | result.evaluations[0].sample,
        inputs=chain.dictionaries,
        warnings=(*path_warnings(result), *sign_notes(chain.dictionaries), *reading.cautions),
    )


def waypoints_of(trace: PathTrace, each: int) -> NDArray[np.int64]:
    """The start, the end of every stage, and so many points of each phase."""
    inside = [np.linspace(a, b, each + 1)[1:] for a, b in itertools.pairwise(trace.schedule.phase_ends())]
    return np.unique(np.rint(np.concatenate([[0], *inside, trace.schedule.stage_ends()])).astype(np.int64))
