"""Renaming every column of every table, and every cell of text, changes no number: frames are made last.

While an analysis runs, every frame that its modules make comes out with other titles and other words in its cells. What
reads a frame back by a title then fails, and what compares a cell with a word finds nothing; what works on the results of
the mathematics notices nothing. Another analysis is one more entry of ANALYSES.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest

from analyses import (
    ablation,
    downstream,
    explanations,
    frankenstein,
    geometry,
    matching,
    meta,
    novelty,
    pareto,
    path,
    pathology,
    probes,
    scaling,
    shrinkage,
    stitching,
    training,
    verification,
)
from dictlab import Metadata, ReLU, TopK
from dictlab.reports.report import Report
from tests.planted import SITE, random_dictionary, tiny_model

PACKAGES = ("analyses.",)  # whose frames are renamed
MARK = "renamed "
WORDS_ALONE = ("verification",)  # whose table holds sentences: its numbers are in its summary, warnings and outcome


def dictionaries():
    about = Metadata(site=SITE, objective="local")
    kinds = ((12, TopK(4)), (20, TopK(4)), (12, ReLU()))
    made = [random_dictionary(n, 16, seed=i, name=f"d{i}", activation=k) for i, (n, k) in enumerate(kinds)]
    return [replace(d, metadata=replace(about, seed=i)) for i, d in enumerate(made)]


def _novelty(given):
    small, large, control = dictionaries()
    return novelty(small, large, control=control, cards=3, ce_latents=3, latent_choice="random", contexts=4, **given)


def _stitching(given):
    small, *larger = dictionaries()
    return stitching(small, larger, contexts=4, select="cosine", **given)


def _search(given):
    small, large, _ = dictionaries()
    return stitching(small, large, contexts=4, select="optimal", max_latents=12, **given)


def _path(given):
    small, large, _ = dictionaries()
    return path(small, large, threshold=0.4, random_orders=1, contexts=4, **given)


def _frankenstein(given):
    first, second, other = dictionaries()
    return frankenstein([first, second], baselines=[other], contexts=4, compact="codes", written_refit="bias", **given)


def _without_tokens(given):
    return {name: value for name, value in given.items() if name != "tokens"}


def _ablation(given):
    few = {"contexts": 6, "latents_per_token": 3, "positions": 4}
    return ablation(dictionaries(), **few, **_without_tokens(given))


def _downstream(given):
    return downstream(dictionaries(), contexts=3, **_without_tokens(given))


def _pathology(given):
    few = {"contexts": 3, "context_length": 12, "draws": 1, "random_points": 3, "sweep_contexts": 2}
    return pathology(dictionaries(), positions_after=2, min_occurrences=1, **few, **_without_tokens(given))


def _shrinkage(given):
    return shrinkage(dictionaries(), contexts=3, l0_levels=(1, 2), **_without_tokens(given))


def _explanations(given):
    few = {"latents": 3, "examples": 2, "max_pattern_length": 3, "tokens": 256}
    return explanations(dictionaries(), **(given | few))


def _pareto(given):
    return pareto(dictionaries(), contexts=3, **_without_tokens(given))


def _geometry(given):
    return geometry(dictionaries(), umap_points=0, permutations=10, **given)


def _matching(given):
    few = {"min_active_tokens": 5, "permutations": 5, "correlation_threshold": 0.1, "threshold": 0.3}
    return matching(dictionaries(), **few, **given)


def _meta(given):
    _, large, _ = dictionaries()
    smaller = [random_dictionary(n, 16, seed=n, name=f"n{n}") for n in range(8, 20)]
    return meta(random_dictionary(8, 16, seed=5, name="meta"), large, smaller)


def _probes(given):
    with TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        rows = [f"{'good day' if i % 2 else 'bad night'},{i % 2},{int(i % 10 == 0)}" for i in range(120)]
        table.write_text("\n".join(["text,label,rare", *rows]))
        few = {"table": str(table), "labels": ("label", "rare"), "min_examples": 8}
        return probes(dictionaries(), **few, **_without_tokens(given))


def _scaling(given):
    """Losses are those of files, and one family has no k."""

    def run(width, k, activation):
        metrics = {"explained_variance": 1 - width**-0.3 / k, "ce_increase": width**-0.3, "l0": float(k)}
        about = Metadata(site=SITE, objective="local", tokens=10_000, training={"batch": 100}, metrics=metrics)
        return random_dictionary(
            width, 16, activation=activation, metadata=about, name=f"{width}-{activation.kind}-{k}"
        )

    grid = [run(width, k, TopK(k)) for width in (32, 64, 128, 256) for k in (2, 4)]
    return scaling([*grid, run(32, 2, ReLU())])


def _training(given):
    """Of two runs, one of which logs no term of the loss."""
    with TemporaryDirectory() as folder:
        for run, terms in (("first", {"reconstruction": 0.5, "aux": 0.1}), ("second", {})):
            (Path(folder) / run).mkdir()
            (Path(folder) / run / "config.toml").write_text('data = "planted"\n')
            (Path(folder) / run / "run.json").write_text(json.dumps({"state": "finished"}))
            records = [
                {"member": f"m{member}", "step": 25 * i, "tokens": 1600 * i, "seconds": 2.0 * i}
                | {"tokens_per_second": 800.0 + i, "loss": 1 / (i + member), "l0": 2.0, "dead": 0.5 / i}
                | {"explained_variance": 1 - 1 / (i + 2 * member)}
                | {name: weight / i for name, weight in terms.items()}
                for i in range(1, 41)
                for member in (1, 2)
            ]
            (Path(folder) / run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
        return training([Path(folder) / "first", Path(folder) / "second"])


def _verification(given):
    small, _, _ = dictionaries()
    return verification(replace(small, W_dec=3 * small.W_dec), contexts=3, **_without_tokens(given))


ANALYSES = {
    "training": _training,
    "verification": _verification,
    "geometry": _geometry,
    "matching": _matching,
    "meta": _meta,
    "ablation": _ablation,
    "downstream": _downstream,
    "pathology": _pathology,
    "shrinkage": _shrinkage,
    "explanations": _explanations,
    "pareto": _pareto,
    "probes": _probes,
    "scaling": _scaling,
    "novelty": _novelty,
    "stitching": _stitching,
    "stitching by search": _search,
    "path": _path,
    "frankenstein": _frankenstein,
}


def rename_frames(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on every frame made in PACKAGES has other titles and other words; returns who made one."""
    original, makers = pd.DataFrame.__init__, []

    def make(self: pd.DataFrame, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        maker = str(sys._getframe(1).f_globals.get("__name__", ""))
        if not maker.startswith(PACKAGES):
            return
        makers.append(maker)
        for i in range(self.shape[1]):
            if not pd.api.types.is_numeric_dtype(self.dtypes.iloc[i]):
                self.isetitem(i, [MARK + cell if isinstance(cell, str) else cell for cell in self.iloc[:, i]])
        self.columns = pd.Index([f"{MARK}{name}" for name in self.columns])

    monkeypatch.setattr(pd.DataFrame, "__init__", make)
    return makers


def numbers(report: Report) -> dict[str, np.ndarray]:
    """All numbers of a report's tables and of the lines and points of its figures, by where they stand."""
    found = {
        f"table {name}": table.frame.select_dtypes("number").to_numpy(dtype=float, na_value=np.nan)
        for name, table in report.tables.items()
        if len(table.frame)
    }
    for name, plot in report.plots.items():
        for i, ax in enumerate(plot.figure.axes):
            drawn = [np.asarray(line.get_xydata(), dtype=float) for line in ax.lines]
            drawn += [
                np.ma.filled(np.ma.asarray(points.get_offsets(), dtype=float), np.nan) for points in ax.collections
            ]
            found[f"plot {name}, panel {i}"] = np.concatenate([np.zeros((0, 2)), *drawn])
    return found


@pytest.mark.parametrize("name", ANALYSES)
def test_renaming_every_column_and_cell_changes_no_number(name: str, text, monkeypatch):
    analysis: Callable[[dict], Report] = ANALYSES[name]
    given = {"model": tiny_model(), "text": text, "tokens": 1024}
    plain = analysis(given)
    makers = rename_frames(monkeypatch)
    renamed = analysis(given)
    monkeypatch.undo()
    assert makers, "the analysis made no frame: nothing was tested"
    assert any(str(c).startswith(MARK) for table in renamed.tables.values() for c in table.frame.columns)
    assert (renamed.summary, renamed.warnings, renamed.title) == (plain.summary, plain.warnings, plain.title)
    before, after = numbers(plain), numbers(renamed)
    assert before.keys() == after.keys() and renamed.passed == plain.passed
    assert sum(map(np.size, before.values())) > 100 or name in WORDS_ALONE
    for where, expected in before.items():
        np.testing.assert_array_equal(after[where], expected, err_msg=where)
    for made, other in zip(plain.dictionaries.values(), renamed.dictionaries.values(), strict=True):
        assert all(a.equal(b) for (_, a), (_, b) in zip(made._weights(), other._weights(), strict=True))


def test_an_analysis_that_reads_its_table_back_is_found(text, monkeypatch):
    """By a title: the column is not there. By a word in a cell: there are none such."""
    source = "import pandas as pd\ndef by_title():\n    return pd.DataFrame({'a': [1.0]})['a'].sum()\n"
    source += "def by_word():\n    return (pd.DataFrame({'a': ['novel']}).iloc[:, 0] == 'novel').sum()\n"
    namespace = {"__name__": "analyses.relapse"}
    exec(source, namespace)
    assert (namespace["by_title"](), namespace["by_word"]()) == (1.0, 1)
    rename_frames(monkeypatch)
    with pytest.raises(KeyError):
        namespace["by_title"]()
    assert namespace["by_word"]() == 0
