"""How did training go?

Reads what runs logged: loss and each of its terms before its weight, L0, explained variance, share of dead latents, and
throughput, against the tokens trained on. The log has one record for each member and every 25th step, of that step's
batch alone; a running mean over a twentieth of the records is drawn through them.

At the end of training stands the mean over the last tenth of the records, two at least. Its interval is a bootstrap
over records: batches differ, and so does what a dictionary is from one to the next, so it tells the noise of the log,
and nothing about other seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analyses.common import plotting
from dictlab.errors import DictlabError
from dictlab.numerics.statistics import interval, mean_draws
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
    curves = _curves(folders)
    ends = _ends(curves, folders, seed)
    terms = [c for c in curves.columns if c not in (*WHERE, "name", *OVERALL)]
    plots = {"overview": _plot(curves, list(OVERALL), "How training went")}
    if terms:
        plots["terms"] = _plot(curves, terms, "Terms of the loss, before their weights")
    return Report(
        title=f"How did the training of {_listed([f.name for f in folders])} go?",
        summary=_summary(ends),
        tables={
            "ends": Table(
                ends,
                f"Mean over the last {1 / END:.0%} of the log (two records at least), 95 % bootstrap interval over its "
                "records; throughput is "
                "the median over the whole run. Held-out metrics are in the dictionaries' own files.",
            ),
            "curves": Table(
                curves.drop(columns="name"),
                "The logs: a record for each member and every 25th step. L0, explained variance and the terms are of "
                "that step's batch; seconds are of training, in all sittings; throughput is since the record before.",
            ),
        },
        plots=plots,
        settings={"runs": [str(folder.path) for folder in folders], "seed": seed},
        warnings=tuple(_cautions(folders)),
    )


def _curves(folders: Sequence[RunFolder]) -> pd.DataFrame:
    """All records; `name` is the member, with its run where there are several."""
    parts = []
    for number, folder in enumerate(folders):
        frame = folder.metrics()
        if frame.empty:
            raise DictlabError(f"{folder.path}: nothing is logged yet; the first record comes after 25 steps.")
        alike = [other.name for other in folders].count(folder.name) > 1
        frame.insert(0, "run", f"{folder.name} ({number + 1})" if alike else folder.name)
        parts.append(frame)
    curves = pd.concat(parts, ignore_index=True)
    curves["name"] = curves["member"] if len(folders) == 1 else curves["run"] + "/" + curves["member"]
    return curves


def _ends(curves: pd.DataFrame, folders: Sequence[RunFolder], seed: int) -> pd.DataFrame:
    """One row a member."""
    rows = []
    for (run, member), own in curves.groupby(["run", "member"], sort=False):
        last = own.tail(max(2, len(own) // END))
        row = {"run": run, "member": member, "tokens": int(own["tokens"].max())}
        for metric in ("loss", "l0", "explained_variance", "dead"):
            values = last[metric].to_numpy(dtype=float)
            row[metric] = float(values.mean())
            row[f"{metric} low"], row[f"{metric} high"] = _interval(values, seed)
        row["tokens/s"] = float(own["tokens_per_second"].median())
        row["minutes"] = float(own["seconds"].max()) / 60
        rows.append(row)
    frame = pd.DataFrame(rows)
    leading = ["run", "member", "tokens", "loss", "l0", "explained_variance", "dead", "tokens/s", "minutes"]
    columns = [c for c in leading if c != "run" or len(folders) > 1]
    return frame[columns + [c for c in frame.columns if c.endswith(("low", "high"))]]


def _interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    return interval(mean_draws(values, seed))


@plotting.applied
def _plot(curves: pd.DataFrame, metrics: Sequence[str], title: str) -> Plot:
    """One panel a metric, one line a member."""
    shown = [metric for metric in metrics if curves[metric].notna().any()]
    figure, panels = plotting.axes(len(shown), width=4.6, height=3.2)
    names = list(dict.fromkeys(curves["name"]))
    for metric, ax in zip(shown, panels, strict=True):
        for number, name in enumerate(names):
            own = curves[curves["name"] == name].dropna(subset=[metric])
            _line(ax, own["tokens"].to_numpy() / 1e6, own[metric].to_numpy(dtype=float), number, name)
        label, logarithmic = OVERALL.get(metric, (metric, True))
        if logarithmic and (curves[metric].dropna() > 0).all():
            ax.set_yscale("log")
        ax.set(xlabel="tokens (millions)", ylabel=label)
        if metric in ("dead", "tokens_per_second"):
            ax.set_ylim(bottom=0)
    panels[0].set_title(title)
    if 1 < len(names) <= LEGEND:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    crowd = f" {len(names)} members; the table curves tells them apart." if len(names) > LEGEND else ""
    window = _window(len(curves) // len(names))
    return Plot(
        figure,
        f"Thin: each logged step, of its batch alone. Thick: running mean over {window} of them.{crowd}",
    )


def _line(ax: Axes, x: np.ndarray, y: np.ndarray, number: int, name: str) -> None:
    window = _window(len(y))
    smooth = pd.Series(y).rolling(window, center=True, min_periods=1).mean()
    ax.plot(
        x, smooth, color=plotting.colour(number), ls=plotting.line(number), lw=1.6, label=plotting.short([name], 60)[0]
    )
    ax.plot(x, y, color=plotting.colour(number), lw=0.5, alpha=0.35, label="_each")


def _window(records: int) -> int:
    return max(1, records // SMOOTH)


def _summary(ends: pd.DataFrame) -> str:
    best = ends.loc[ends["explained_variance"].idxmax()] if ends["explained_variance"].notna().any() else ends.iloc[0]
    whose = f"{best['run']}/{best['member']}" if "run" in ends else best["member"]
    low, high = best["explained_variance low"], best["explained_variance high"]
    interval = f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else ""
    told = (
        f"{best['tokens']:,} tokens at {best['tokens/s']:,.0f} a second, explained variance "
        f"{best['explained_variance']:.3f}{interval} at L0 {best['l0']:.1f}, {best['dead']:.1%} of the latents dead."
    )
    if len(ends) == 1:
        return f"{whose}: {told}"
    return f"Of {len(ends)} dictionaries, {whose} explains most of its last batches: {told}"


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
