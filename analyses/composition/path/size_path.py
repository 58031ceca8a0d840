"""The path through a chain of dictionaries: which latents are matched, the order of its steps, and its points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analyses.composition.path.latent_graph import components, graph
from analyses.composition.path.path_error import Bias, PathTrace, trace_schedule
from analyses.composition.path.path_steps import (
    LatentMatching,
    Order,
    StepSchedule,
    cosine_scores,
    effect_scores,
    greedy_scores,
    random_scores,
    schedule_steps,
)
from analyses.pool.dictionary_chain import DictionaryChain
from analyses.pool.quadratic_error import QuadraticError
from dictlab.errors import DictlabError


def match_latents(chain: DictionaryChain, threshold: float) -> list[LatentMatching]:
    """The latents of each dictionary matched with those of the next one, from a decoder cosine on."""
    matchings = []
    for number, (small, large) in enumerate(zip(chain.dictionaries, chain.dictionaries[1:], strict=False)):
        alive, signed = (chain.alive(number), chain.alive(number + 1)), (small.signed, large.signed)
        edges = graph(small.W_dec, large.W_dec, threshold, *alive, signed=signed)
        first_small, first_large = chain.first_latents[number : number + 2]
        matchings.append(
            LatentMatching(edges, components(edges), first_small, first_large, small=small.name, large=large.name)
        )
    return matchings


def order_steps(chain: DictionaryChain, matchings: Sequence[LatentMatching], order: Order, seed: int) -> StepSchedule:
    """The steps through a chain in an order."""
    if order in ("effect", "greedy"):
        quadratic = QuadraticError.from_sample(chain.sample, chain.pool.W_dec)
        score = effect_scores if order == "effect" else greedy_scores
        scores = [score(matching, quadratic) for matching in matchings]
    elif order == "cosine":
        scores = [cosine_scores(matching) for matching in matchings]
    else:
        scores = [random_scores(matching, seed) for matching in matchings]
    return schedule_steps(matchings, chain.pool.n_latents, scores, mixed=order == "greedy")


def trace_path(chain: DictionaryChain, steps: StepSchedule, marks: NDArray[np.int64] | None = None) -> PathTrace:
    """Error and L0 at every point of a path; sequence by sequence at its marks, by default the ends of phases."""
    return trace_schedule(chain.sample, chain.pool.W_dec, steps, chain.biases, context=chain.context, marks=marks)


def parse_until(until: str) -> tuple[str, float]:
    """Name and value of `latents=N`, `mse=VALUE` or `l0=VALUE`.

    Raises:
        DictlabError: It is something else.
    """
    name, _, text = until.partition("=")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if name not in ("latents", "mse", "l0") or not np.isfinite(value):
        raise DictlabError(f"until {until}: expected latents=N, mse=VALUE or l0=VALUE, such as mse=4.2.")
    return name, value


def point_until(trace: PathTrace, until: str, bias: Bias = "best") -> int:
    """The first point of a path at which a quantity has reached a value, from the side that it starts on.

    Args:
        trace: The path.
        until: `latents=N`, `mse=VALUE` or `l0=VALUE`.
        bias: With which the error is measured.

    Raises:
        DictlabError: It is something else, or the value is never reached.
    """
    name, value = parse_until(until)
    curve = {"latents": trace.schedule.n_latents(), "mse": trace.mse(bias), "l0": trace.l0()}[name]
    reached = curve <= value if curve[0] >= value else curve >= value
    if not reached.any():
        raise DictlabError(
            f"until {until}: never reached; along the path {name} is {curve.min():.4g} to {curve.max():.4g}."
        )
    return int(np.argmax(reached))
