"""The tables and the figure of docs/results/training.md, out of what `quality.py` beside this trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analyses.common import plotting
from analyses.quality.curve_comparison import estimate, mean_ratio
from analyses.quality.measured_points import Point, curves
from benchmarks.results.training.quality_measures import Cost
from dictlab import Dictionary
from dictlab.numerics.statistics import interval

Array = NDArray[np.float64]
Runs = Mapping[str, Sequence[Point]]
Tried = Mapping[str, Sequence[tuple[dict[str, Any], Sequence[Dictionary]]]]
END_TO_END = ("e2e", "e2e+ds")


class Group(NamedTuple):
    """The seeds of one setting.

    Attributes:
        points: One a seed.
        share: Of the tokens, that had the end-to-end objective.
        goal: What for.
    """

    points: Sequence[Point]
    share: float
    goal: str

    def series(self, key: str) -> Array:
        """The mean over seeds of a metric, in the sample (first) and in each resample."""
        mean: Array = np.stack([p.series(key) for p in self.points]).mean(axis=0)
        return mean


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*names: str) -> str:
    return row(*names) + "\n" + "|" + "---|" * len(names)


def spelt(series: Array, digits: int = 3) -> str:
    """A value and its interval."""
    low, high = interval(series[1:])
    return f"{series[0]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def judged(tried: Sequence[tuple[dict[str, Any], Sequence[Dictionary]]]) -> list[float]:
    """The CE increase of each setting; where each has several dictionaries, its ratio to the first at matched L0."""
    found = [[d.metadata.metrics for d in made] for _, made in tried]
    if len(found[0]) == 1:
        return [float(own[0]["ce_increase"]) for own in found]
    lines = [[np.array([m[key] for m in own]) for key in ("l0", "ce_increase")] for own in found]
    return [float(mean_ratio(*lines[0], *line)[0]) for line in lines]


def tuning(tried: Tried) -> Iterable[str]:
    yield head("what", "setting", "CE increase (nats/token); of relu: over the first's, at matched L0")
    for what, entries in ((what, own) for what, own in tried.items() if own):
        scores = judged(entries)
        for (setting, _), score in zip(entries, scores, strict=True):
            yield row(what, written(setting), f"**{score:.3f}**" if score == min(scores) else f"{score:.3f}")


def written(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


def groups(runs: Runs, k: int) -> list[Group]:
    """Local, what was fine-tuned from it, and what was trained end-to-end, at one k."""
    found = []
    for name, points in runs.items():
        own = [p for p in points if getattr(p.dictionary.activation, "k", None) == k]
        parts = name.split("-")
        if not own or parts[0] not in ("local", "then", *END_TO_END):
            continue
        share = float(parts[2]) if parts[0] == "then" else float(parts[0] != "local")
        found.append(Group(own, share, parts[1] if parts[0] == "then" else parts[0]))
    return sorted(found, key=lambda g: (g.goal == "e2e+ds", g.share))


def gain(group: Group, local: Group, whole: Group) -> Array | None:
    """Share of the CE gain of end-to-end training that a group has; None where there is hardly a gain to share."""
    whole_gain = local.series("ce_increase") - whole.series("ce_increase")
    if interval(whole_gain[1:])[0] <= 0:
        return None
    share: Array = (local.series("ce_increase") - group.series("ce_increase")) / whole_gain
    return share


def objectives(runs: Runs, costs: Mapping[str, Cost], ks: Sequence[int]) -> Iterable[str]:
    yield head(
        "k", "objective", "share of tokens", "CE increase", "by seed", "over local's", "share of e2e's gain",
        "KL", "explained variance", "dead", "FLOPs / local's", "seconds / local's", "as the trainer says",
    )  # fmt: skip
    for k in ks:
        found = groups(runs, k)
        local = named(found, "local", 0)
        for group in found if local else ():
            yield objective(k, group, local, named(found, "e2e", 1), costs)


def named(found: Sequence[Group], goal: str, share: float) -> Group | None:
    """The one that had an objective for a share of its tokens."""
    return next((g for g in found if g.goal == goal and g.share == share), None)


def objective(k: int, group: Group, local: Group, reference: Group | None, costs: Mapping[str, Cost]) -> str:
    ratio = group.series("ce_increase") / local.series("ce_increase")
    share = None if reference is None else gain(group, local, reference)
    seeds = ", ".join(f"{p.value('ce_increase'):.3f}" for p in group.points)
    dead = ", ".join(str(p.dictionary.metadata.metrics["dead"]) for p in group.points)
    said = [p.dictionary.metadata.training.get("relative_cost") for p in group.points]
    return row(
        k,
        group.goal if group.share in (0, 1) else f"local, then {group.goal}",
        f"{group.share:.0%}".replace("%", " %"),
        spelt(group.series("ce_increase")),
        seeds,
        "1" if group is local else spelt(ratio, 2),
        "" if share is None or group.share == 0 else spelt(share, 2),
        spelt(group.series("kl")),
        spelt(group.series("explained_variance")),
        dead,
        f"{relative(costs, group, 'all_flops'):.2f}",
        f"{relative(costs, group, 'seconds'):.2f}",
        "" if None in said else f"{np.mean([float(s) for s in said if s]):.2f}",
    )


def relative(costs: Mapping[str, Cost], group: Group, what: str) -> float:
    """Cost as a multiple of local's, tokens being equal."""
    local, own = getattr(costs["local"], what), getattr(costs[group.goal], what)
    return float(1 - group.share + group.share * own / local)


def costs_table(costs: Mapping[str, Cost]) -> Iterable[str]:
    names = ("FLOPs/token", "with the model's forward", "CPU µs/token")
    yield head("objective", *names, *(f"{name} / local's" for name in ("FLOPs", "with the forward", "CPU time")))
    for goal, cost in costs.items():
        ratios = [f"{value / base:.2f}" for value, base in zip(cost, costs["local"], strict=True)]
        yield row(goal, f"{cost.flops:.3g}", f"{cost.all_flops:.3g}", f"{1e6 * cost.seconds:.0f}", *ratios)


def lengths(tried: Tried, runs: Runs, k: int) -> Iterable[str]:
    """CE increase at the length of the tuning and at the whole length."""
    yield head("tokens", "local", *END_TO_END, "local, then e2e 10 %")
    trials = [tried[what] for what in ("local", *END_TO_END, "then-e2e")]
    if all(trials):
        best = [min((made[0] for _, made in own), key=_increase) for own in trials]
        yield row(f"{best[0].metadata.tokens:,}", *map(_said, best))
    found = groups(runs, k)
    there = [named(found, goal, share) for goal, share in (("local", 0), ("e2e", 1), ("e2e+ds", 1), ("e2e", 0.1))]
    tokens = "the whole run" if not found else f"{found[0].points[0].dictionary.metadata.tokens:,}"
    yield row(tokens, *("" if group is None else spelt(group.series("ce_increase")) for group in there))


def _increase(dictionary: Dictionary) -> float:
    return float(dictionary.metadata.metrics["ce_increase"])


def _said(dictionary: Dictionary) -> str:
    low, high = dictionary.metadata.metrics["ce_increase_interval"]
    return f"{dictionary.metadata.metrics['ce_increase']:.3f} [{low:.3f}, {high:.3f}]"


def going_on(runs: Runs) -> Iterable[str]:
    """A dictionary that was there, under another objective: beside as many tokens more under its own."""
    yield head(
        "objective", "learning rate", "tokens", "CE increase", "over the best of local", "KL", "explained variance"
    )
    own = [(p, name) for name, points in runs.items() if name.startswith("start-") for p in points]
    control = min((p for p, name in own if "-local-" in name), key=lambda p: p.value("ce_increase"), default=None)
    for point, name in own:
        about = point.dictionary.metadata
        ratio = "" if control is None else spelt(point.series("ce_increase") / control.series("ce_increase"), 2)
        cells = [spelt(point.series(key)) for key in ("ce_increase", "kl", "explained_variance")]
        what = "as it was" if name == "start-none" else name.split("-")[1]
        yield row(what, f"{about.training['lr']:g}", f"{about.tokens:,}", cells[0], ratio, *cells[1:])


def dead(runs: Runs) -> Iterable[str]:
    yield head("width", "AuxK", "tokens", "dead", "share", "CE increase", "explained variance")
    for name in ("aux", "no-aux"):
        for point in runs.get(name, ()):
            d = point.dictionary
            count = d.metadata.metrics["dead"]
            yield row(
                d.n_latents,
                "yes" if name == "aux" else "no",
                f"{d.metadata.tokens:,}",
                count,
                f"{count / d.n_latents:.1%}".replace("%", " %"),
                spelt(point.series("ce_increase")),
                spelt(point.series("explained_variance")),
            )


def compared(runs: Runs) -> Iterable[str]:
    """Every two curves, at matched CE increase and at matched L0."""
    yield head("what", "of", "over", "ratio", "from", "to")
    wanted = ("local", "relu", "e2e-", "e2e+ds-", "then-e2e-0.1")
    points = [p for name, own in runs.items() if name.startswith(wanted) for p in own]
    frame = matched_table(curve_ratios(curves(points)))
    for entry in frame[~frame["what"].str.contains("alive")].itertuples(index=False):
        what, of, over, ratio, low, high, _, start, end = entry
        yield row(what, of, over, f"{ratio:.2f} [{low:.2f}, {high:.2f}]", f"{start:.3g}", f"{end:.3g}")


def against_l1(runs: Runs) -> Iterable[str]:
    """TopK beside ReLU + L1, both local: point by point, and at matched L0."""
    yield head("dictionary", "L0", "CE increase", "MSE", "explained variance", "dead")
    for point in [*of_local(runs), *runs.get("relu", ())]:
        cells = [
            spelt(point.series(key), digits)
            for key, digits in (("l0", 1), ("ce_increase", 3), ("mse", 2), ("explained_variance", 3))
        ]
        yield row(point.name, *cells, point.dictionary.metadata.metrics["dead"])
    yield ""
    yield from at_matched_l0(runs)


def short_l1(tried: Tried) -> Iterable[str]:
    """The same among what was tried: ReLU under its best setting, and TopK."""
    yield head("what", "setting", "L0", "CE increase", "explained variance")
    if not (tried["relu"] and tried["local"]):
        return
    scores = judged(tried["relu"])
    for what, (setting, made) in (
        ("ReLU + L1", tried["relu"][scores.index(min(scores))]),
        *(("TopK", entry) for entry in tried["local"]),
    ):
        for d in made:
            m = d.metadata.metrics
            yield row(what, written(setting), f"{m['l0']:.1f}", _said(d), f"{m['explained_variance']:.3f}")


def of_local(runs: Runs) -> list[Point]:
    """The local TopK dictionaries, in the order of k."""
    own = [p for name, points in runs.items() if name.startswith("local") for p in points]
    return sorted(own, key=lambda p: p.value("l0"))


def at_matched_l0(runs: Runs) -> Iterable[str]:
    yield head("at matched L0: TopK over ReLU + L1", "ratio", "L0 from", "to")
    if "relu" not in runs or "local" not in runs:
        return
    for key in ("ce_increase", "kl", "mse"):
        sides = [_line(points, key) for points in (runs.get("relu", ()), of_local(runs))]
        ratio, low, high = mean_ratio(*sides[0], *sides[1])
        found = estimate(ratio)
        yield row(key, f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]", f"{low[0]:.1f}", f"{high[0]:.1f}")


def _line(points: Sequence[Point], key: str) -> tuple[Array, Array]:
    """L0 and a metric of the first seed's dictionaries, resamples first."""
    own = [p for p in points if p.dictionary.metadata.seed == points[0].dictionary.metadata.seed]
    return np.stack([p.series("l0") for p in own], axis=1), np.stack([p.series(key) for p in own], axis=1)


@plotting.applied
def draw(runs: Runs, costs: Mapping[str, Cost], ks: Sequence[int], tokens: int, path: Path) -> None:
    """CE increase against cost, both as shares of local's."""
    found = {k: own for k in ks if named(own := groups(runs, k), "local", 0)}
    figure, panels = plotting.axes(len(found), width=6.0, height=4.0)
    for ax, (k, own) in zip(panels, found.items(), strict=True):
        panel(ax, k, own, costs)
    figure.suptitle(f"{tokens:,} tokens each; bars: 95 % over sequences; dotted: 1.3 × local's cost", fontsize=9)
    figure.savefig(path, dpi=130)


def panel(ax: Axes, k: int, found: Sequence[Group], costs: Mapping[str, Cost]) -> None:
    """One k: a line from local through shares of an objective to that objective from the start."""
    local = next(g for g in found if g.goal == "local")
    for number, goal in enumerate(END_TO_END):
        own = [local, *(g for g in found if g.goal == goal)]
        if len(own) == 1:
            continue
        series = [g.series("ce_increase") / local.series("ce_increase") for g in own]
        ends = np.array([(s[0], *interval(s[1:])) for s in series])
        bars = np.stack([ends[:, 0] - ends[:, 1], ends[:, 2] - ends[:, 0]])
        x = [relative(costs, g, "seconds") for g in own]
        look: Any = {"color": plotting.colour(number), "marker": plotting.marker(number), "ls": plotting.line(number)}
        ax.errorbar(x, ends[:, 0], yerr=bars, **look, label=f"local, shares of {goal}, {goal} from the start")
    ax.axvline(1.3, color="black", lw=0.8, ls=":")
    title = f"Is KL worth its cost? TopK, k = {k}"
    ax.set(xlabel="CPU time (× local)", ylabel="CE increase (× local)", title=title)
    ax.legend(loc="upper left")


def show(title: str, lines: Iterable[str]) -> None:
    print(f"### {title}\n")
    for line in lines:
        print(line)
    print(flush=True)
