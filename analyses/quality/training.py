"""How did training go?

Reads what runs logged: loss and each of its terms before its weight, L0, explained variance, share of dead latents, and
throughput, against the tokens trained on. The log has one record for each member and every 25th step, of that step's
batch alone; a running mean over a twentieth of the records is drawn through them.

At the end of training stands the mean over the last tenth of the records, two at least. Its interval is a bootstrap
over records: batches differ, and so does what a dictionary is from one to the next, so it tells the noise of the log,
and nothing about other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analyses.common import plotting
from dictlab.errors import DictlabError
from dictlab.numerics.statistics import Estimate, interval, mean_draws
from dictlab.reports.report import Plot, Report, Table
from dictlab.runs import RunFolder, open_run

WHERE = ("run", "member", "step", "tokens", "seconds")  # what a record is about
OVERALL = {  # metrics of every member, their axis, and whether it is logarithmic
    "loss": ("loss", True),
    "l0": ("L0 (latents/token)", False),
    "explained_variance": ("explained variance (share)", False),
    "dead": ("dead latents (share)", False),
    "tokens_per_second": ("throughput (tokens/s)", False),
}
ENDING = ("loss", "l0", "explained_variance", "dead")  # metrics whose means at the end are told
END = 10  # the end of training is the last of so many parts of its log, and two records at least
SMOOTH = 20  # the running mean is over one of so many parts
LEGEND = 8  # members that a legend has room for


def training(runs: Sequence[str | Path], *, seed: int = 0) -> Report:
    """How did training go: loss and its terms, L0, explained variance, dead latents, throughput?

    Args:
        runs: Folders of training runs, finished or not; of a run that is going on, as far as it is.
        seed: Seed of everything that is drawn at random.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        ends: [run]; member; tokens; loss; l0; explained_variance; dead; tokens/s; minutes; loss low; loss high; l0 low;
            l0 high; explained_variance low; explained_variance high; dead low; dead high
        curves: run; member; step; tokens; seconds; tokens_per_second; loss; reconstruction; aux; l0;
            explained_variance; dead

    Example:
        dictlab report training runs/first runs/second
    """
    folders = [open_run(folder) for folder in ([runs] if isinstance(runs, str | Path) else runs)]
    if not folders:
        raise DictlabError("training: no run was given; expected one or more folders of training runs.")
    logs = _read_logs(folders)
    members = [member for log in logs for member in _members(log, with_run=len(folders) > 1)]
    ends = [_end_of(member, seed) for member in members]
    terms = [name for log in logs for name in log.records if name not in (*WHERE, *OVERALL)]
    plots = {"overview": _plot(members, list(OVERALL), "How training went")}
    if terms:
        plots["terms"] = _plot(members, list(dict.fromkeys(terms)), "Terms of the loss, before their weights")
    return Report(
        title=f"How did the training of {_listed([f.name for f in folders])} go?",
        summary=_summary(ends),
        tables={
            "ends": Table(
                _end_table(ends, with_run=len(folders) > 1),
                f"Mean over the last {1 / END:.0%} of the log (two records at least), 95 % bootstrap interval over its "
                "records; throughput is "
                "the median over the whole run. Held-out metrics are in the dictionaries' own files.",
            ),
            "curves": Table(
                _curve_table(logs),
                "The logs: a record for each member and every 25th step. L0, explained variance and the terms are of "
                "that step's batch; seconds are of training, in all sittings; throughput is since the record before.",
            ),
        },
        plots=plots,
        settings={"runs": [str(folder.path) for folder in folders], "seed": seed},
        warnings=tuple(_cautions(folders)),
    )


class RunLog(NamedTuple):
    """The log of one run: a record for each member and logged step.

    Attributes:
        run: The run's name, with its number where several have the same one.
        records: By field of the log; of metrics, NaN where a record has none.
    """

    run: str
    records: Mapping[str, NDArray[Any]]


class MemberLog(NamedTuple):
    """The records of one member of a run.

    Attributes:
        run: As above.
        member: Its name.
        name: What plots call it: with its run where there are several.
        metrics: By field, in the order of steps.
    """

    run: str
    member: str
    name: str
    metrics: Mapping[str, NDArray[np.float64]]


class MemberEnd(NamedTuple):
    """How a member was at the end of its log.

    Attributes:
        log: Its records.
        tokens: It was trained on.
        means: By metric of ENDING, over the last records.
        tokens_per_second: Median over the whole run.
        seconds: Of training.
    """

    log: MemberLog
    tokens: int
    means: Mapping[str, Estimate]
    tokens_per_second: float
    seconds: float


def _read_logs(folders: Sequence[RunFolder]) -> list[RunLog]:
    """The logs of all runs.

    Raises:
        DictlabError: A run has logged nothing yet.
    """
    logs = []
    for number, folder in enumerate(folders):
        frame = folder.metrics()
        if frame.empty:
            raise DictlabError(f"{folder.path}: nothing is logged yet; the first record comes after 25 steps.")
        same_name = [other.name for other in folders].count(folder.name) > 1
        records = {str(name): frame[name].to_numpy() for name in frame}
        logs.append(RunLog(f"{folder.name} ({number + 1})" if same_name else folder.name, records))
    return logs


def _members(log: RunLog, *, with_run: bool) -> list[MemberLog]:
    """The records of each member, in the order in which members are first logged."""
    of_record = log.records["member"]
    members = []
    for member in dict.fromkeys(of_record.tolist()):
        metrics = {
            name: values[of_record == member].astype(np.float64)
            for name, values in log.records.items()
            if name != "member"
        }
        members.append(MemberLog(log.run, member, f"{log.run}/{member}" if with_run else member, metrics))
    return members


def _end_of(log: MemberLog, seed: int) -> MemberEnd:
    """Means over the last records, with intervals over these."""
    last = -max(2, len(log.metrics["step"]) // END)
    means = {name: _mean(log.metrics[name][last:], seed) for name in ENDING}
    speed = log.metrics["tokens_per_second"]
    return MemberEnd(
        log,
        int(log.metrics["tokens"].max()),
        means,
        float(np.nanmedian(speed)) if np.isfinite(speed).any() else float("nan"),
        float(log.metrics["seconds"].max()),
    )


def _mean(values: NDArray[np.float64], seed: int) -> Estimate:
    low, high = _interval(values, seed)
    return Estimate(float(values.mean()), low, high)


def _end_table(ends: Sequence[MemberEnd], *, with_run: bool) -> pd.DataFrame:
    """One row a member."""
    return pd.DataFrame(
        [
            ({"run": end.log.run} if with_run else {})
            | {"member": end.log.member, "tokens": end.tokens}
            | {name: mean.value for name, mean in end.means.items()}
            | {"tokens/s": end.tokens_per_second, "minutes": end.seconds / 60}
            | {f"{name} {side}": v for name, mean in end.means.items() for side, v in _sides(mean)}
            for end in ends
        ]
    )


def _sides(mean: Estimate) -> tuple[tuple[str, float], tuple[str, float]]:
    return ("low", mean.low), ("high", mean.high)


def _curve_table(logs: Sequence[RunLog]) -> pd.DataFrame:
    """The logs as they are, one row a record."""
    return pd.concat([pd.DataFrame({"run": log.run, **log.records}) for log in logs], ignore_index=True)


def _interval(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    return interval(mean_draws(values, seed))


@plotting.applied
def _plot(members: Sequence[MemberLog], metrics: Sequence[str], title: str) -> Plot:
    """One panel a metric, one line a member."""
    shown = [name for name in metrics if any(np.isfinite(_values(member, name)).any() for member in members)]
    figure, panels = plotting.axes(len(shown), width=4.6, height=3.2)
    for metric, ax in zip(shown, panels, strict=True):
        for number, member in enumerate(members):
            values = _values(member, metric)
            known = ~np.isnan(values)
            _line(ax, member.metrics["tokens"][known] / 1e6, values[known], number, member.name)
        label, logarithmic = OVERALL.get(metric, (metric, True))
        logged = np.concatenate([_values(member, metric) for member in members])
        if logarithmic and (logged[~np.isnan(logged)] > 0).all():
            ax.set_yscale("log")
        ax.set(xlabel="tokens (millions)", ylabel=label)
        if metric in ("dead", "tokens_per_second"):
            ax.set_ylim(bottom=0)
    panels[0].set_title(title)
    if 1 < len(members) <= LEGEND:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    crowd = f" {len(members)} members; the table curves tells them apart." if len(members) > LEGEND else ""
    window = _window(sum(len(member.metrics["step"]) for member in members) // len(members))
    return Plot(
        figure,
        f"Thin: each logged step, of its batch alone. Thick: running mean over {window} of them.{crowd}",
    )


def _values(member: MemberLog, metric: str) -> NDArray[np.float64]:
    """What was logged of a metric; NaN where its run has no such term."""
    unknown = np.full(len(member.metrics["step"]), np.nan)
    return member.metrics.get(metric, unknown)


def _line(ax: Axes, x: np.ndarray, y: np.ndarray, number: int, name: str) -> None:
    window = _window(len(y))
    smooth = pd.Series(y).rolling(window, center=True, min_periods=1).mean()
    ax.plot(
        x, smooth, color=plotting.colour(number), ls=plotting.line(number), lw=1.6, label=plotting.short([name], 60)[0]
    )
    ax.plot(x, y, color=plotting.colour(number), lw=0.5, alpha=0.35, label="_each")


def _window(records: int) -> int:
    return max(1, records // SMOOTH)


def _summary(ends: Sequence[MemberEnd]) -> str:
    known = [end for end in ends if np.isfinite(end.means["explained_variance"].value)]
    best = max(known, key=lambda end: end.means["explained_variance"].value, default=ends[0])
    figures = (
        f"{best.tokens:,} tokens at {best.tokens_per_second:,.0f} a second, explained variance "
        f"{best.means['explained_variance'].words('.3f')} at L0 {best.means['l0'].value:.1f}, "
        f"{best.means['dead'].value:.1%} of the latents dead."
    )
    if len(ends) == 1:
        return f"{best.log.name}: {figures}"
    return f"Of {len(ends)} dictionaries, {best.log.name} explains most of its last batches: {figures}"


def _cautions(folders: Sequence[RunFolder]) -> list[str]:
    """What a reader of the curves must not overlook."""
    said = []
    for folder in folders:
        if not folder.finished:
            why = f" ({reason})" if (reason := folder.about.get("reason")) else ""
            said.append(
                f"{folder.name} is not finished{why}: it is going on, or was stopped; "
                f"`dictlab train --resume {folder.path}` goes on with it."
            )
        for member, step in folder.about.get("diverged", {}).items():
            said.append(f"{folder.name}/{member} was given up at step {step}: its loss was no finite number.")
    return said


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more runs"
