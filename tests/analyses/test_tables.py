"""The tables and columns that a docstring lists are those that come back.

Format, in the docstring of the analysis, between Args and Example:

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        shares: inserted; active; dead
        [behaviour]: latent; change in MSE; [change in CE]

A table a line (continued with more indentation), its columns in their order, separated by semicolons. An analysis is
added as one more entry of RUNS: two runs, one in which every table and column is there, and a bare one in which those
in brackets may be missing.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
import torch

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
from analyses.autointerp.settings import Interpreter
from dictlab import Dictionary, Metadata, ReLU, Text, TopK
from dictlab.reports.report import Report, Table
from dictlab.training import TrainConfig, train
from tests.loopback import oracle, serving
from tests.planted import SITE, random_dictionary, random_transcoder, sparse_data, tiny_model

X = torch.randn(40, 16, 16, generator=torch.Generator().manual_seed(0))
BARE = {"data": X, "tokens": 512}

ANALYSES = {
    entry.name: entry.load() for entry in entry_points(group="dictlab.analyses") if entry.value.startswith("analyses.")
}


def of_one_site(*kinds: tuple[int, ReLU | TopK]) -> list[Dictionary]:
    """Dictionaries that differ in seed, and as is said."""
    about = Metadata(site=SITE, objective="local")
    made = [random_dictionary(n, 16, seed=i, name=f"d{i}", activation=k) for i, (n, k) in enumerate(kinds)]
    return [replace(d, metadata=replace(about, seed=i)) for i, d in enumerate(made)]


def _novelty(given: dict) -> Iterator[Report]:
    small, large, control = of_one_site((12, TopK(4)), (20, TopK(4)), (12, TopK(4)))
    yield novelty(small, large, control=control, cards=2, ce_latents=2, latent_choice="random", contexts=4, **given)
    yield novelty(small, large, **BARE)


def _stitching(given: dict) -> Iterator[Report]:
    small, *larger = of_one_site((12, TopK(4)), (20, TopK(4)), (24, ReLU()))
    yield stitching(small, larger, contexts=4, finetune=512, **given)
    yield stitching(small, larger[:1], refit="none", **BARE)


def _path(given: dict) -> Iterator[Report]:
    small, large = of_one_site((12, TopK(4)), (20, TopK(4)))
    yield path(small, [large], threshold=0.4, random_orders=1, contexts=4, **given)
    yield path(small, [large], random_orders=0, **BARE)


def _frankenstein(given: dict) -> Iterator[Report]:
    *donors, other = of_one_site((12, TopK(4)), (20, TopK(4)), (12, ReLU()))
    yield frankenstein(donors, baselines=[other], compact="codes", contexts=4, **given)
    yield frankenstein(donors, **BARE)


def _matching(given: dict) -> Iterator[Report]:
    family = of_one_site((40, TopK(4)), (40, TopK(4)), (60, TopK(6)))
    yield matching(family, min_active_tokens=2, permutations=2, **given)
    yield matching(family[:2], tokens=0)


def _geometry(given: dict) -> Iterator[Report]:
    family = of_one_site((40, TopK(4)), (40, TopK(4)), (60, TopK(6)))
    yield geometry(family, umap_points=0, permutations=2, **given)
    yield geometry(family[:1], umap_points=0, tokens=0)


def _meta(given: dict) -> Iterator[Report]:
    large, smaller = (random_dictionary(n, 16, seed=n, name=f"of {n}") for n in (60, 30))
    over = random_dictionary(20, 16, seed=3, name="meta", activation=ReLU(), metadata=Metadata())
    yield meta(over, large, [smaller])
    yield meta(over, large, [])


def _without_tokens(given: dict) -> dict:
    return {name: value for name, value in given.items() if name != "tokens"}


def _ablation(given: dict) -> Iterator[Report]:
    few = {"contexts": 3, "latents_per_token": 2, "positions": 4} | _without_tokens(given)
    yield ablation(of_one_site((12, TopK(4)), (20, ReLU())), **few)
    yield ablation(of_one_site((12, TopK(4))), **few)


def _downstream(given: dict) -> Iterator[Report]:
    given = {"contexts": 3} | _without_tokens(given)
    yield downstream(of_one_site((12, TopK(4)), (20, ReLU())), **given)
    yield downstream(of_one_site((12, TopK(4))), principal_directions=False, **given)


def _pathology(given: dict) -> Iterator[Report]:
    given = {"contexts": 3, "context_length": 12, "draws": 1, "min_occurrences": 1} | _without_tokens(given)
    small, child = of_one_site((12, TopK(4)), (20, TopK(4)))
    child = replace(child, metadata=replace(child.metadata, sources=(small.name,)))
    yield pathology([small, child], random_points=3, sweep_contexts=2, positions_after=2, **given)
    yield pathology([small], random_points=0, sweep_contexts=0, positions_after=0, **given)


def _shrinkage(given: dict) -> Iterator[Report]:
    family = of_one_site((12, TopK(4)), (20, ReLU()))
    yield shrinkage(family, contexts=3, l0_levels=(2,), **_without_tokens(given))
    yield shrinkage(family, contexts=3, l0_levels=(2,), data=X)


def _pareto(given: dict) -> Iterator[Report]:
    """Of plain activations the table `similar_ce` is called `similar_mse`, and columns are of the MSE."""
    given = {"contexts": 3} | _without_tokens(given)
    yield pareto(of_one_site((12, TopK(4)), (20, TopK(2)), (12, ReLU())), **given)
    yield pareto(of_one_site((12, TopK(4))), **given)


def _verification(given: dict) -> Iterator[Report]:
    (dictionary,) = of_one_site((12, TopK(4)))
    of_most_tables = dictionary if "data" in given else random_transcoder(12, 16, 16)
    yield verification(of_most_tables, contexts=3, **_without_tokens(given))
    yield verification(replace(dictionary, metadata=Metadata()))


def _scaling(given: dict) -> Iterator[Report]:
    def run(width: int, k: int) -> Dictionary:
        metrics = {"explained_variance": 1 - width**-0.3 / k, "ce_increase": width**-0.3, "l0": float(k)}
        about = Metadata(site=SITE, objective="local", tokens=10_000, training={"batch": 100}, metrics=metrics)
        return random_dictionary(width, 16, activation=TopK(k), metadata=about, name=f"{width}-{k}")

    grid = [run(width, k) for width in (32, 64, 128, 256) for k in (2, 4)]
    yield scaling([*grid, replace(grid[0], activation=ReLU(), name="without k")])
    yield scaling(grid)


def _training(given: dict) -> Iterator[Report]:
    with TemporaryDirectory() as folder:
        runs = [Path(folder) / name for name in ("first", "second")]
        for run in runs:
            config = TrainConfig(data="planted", width=(8,), k=(2,), tokens=64 * 60, batch=64)
            train(config, out=run, data=sparse_data(600)[0])
        yield training(runs)
        yield training(runs[:1])


def _probes(given: dict) -> Iterator[Report]:
    given = {"min_examples": 8} | _without_tokens(given)
    with TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        rows = [f"{'good day' if i % 2 else 'bad night'},{i % 2},{int(i % 10 == 0)}" for i in range(120)]
        table.write_text("\n".join(["text,label,rare", *rows]))
        yield probes(of_one_site((12, TopK(4))), table=str(table), labels=("label", "rare"), **given)
        yield probes(of_one_site((12, TopK(4))), table=str(table), **given)


def _explanations(given: dict) -> Iterator[Report]:
    few = given | {"latents": 3, "examples": 2, "max_pattern_length": 3}
    with TemporaryDirectory() as folder, serving(oracle) as server:
        answers = Path(folder) / "answers.sqlite"
        interpreter = Interpreter(
            server.address, "planted", answers=answers, judged=4, together=2, window=8, shown=2, timeout=30.0, retries=0
        )
        yield explanations(of_one_site((12, TopK(4)), (20, ReLU())), interpreter=interpreter, **few)
        yield explanations(of_one_site((12, TopK(4))), **few)


RUNS: dict[str, Callable[[dict], Iterator[Report]]] = {
    "novelty": _novelty,
    "stitching": _stitching,
    "path": _path,
    "frankenstein": _frankenstein,
    "matching": _matching,
    "geometry": _geometry,
    "meta": _meta,
    "ablation": _ablation,
    "downstream": _downstream,
    "pathology": _pathology,
    "shrinkage": _shrinkage,
    "pareto": _pareto,
    "verification": _verification,
    "scaling": _scaling,
    "training": _training,
    "probes": _probes,
    "explanations": _explanations,
}


def listed(analysis: Callable[..., Report]) -> dict[str, list[str]]:
    """Tables and columns by a docstring; what may be missing in brackets."""
    doc = inspect.cleandoc(analysis.__doc__ or "")
    section = re.search(r"^Returns:\n(.*?)(?=^\S|\Z)", doc, re.DOTALL | re.MULTILINE)
    entries = re.split(r"^ {4}(\[?\w+\]?): ", section[1] if section else "", flags=re.MULTILINE)[1:]
    return {
        name: [" ".join(column.split()) for column in columns.split(";")]
        for name, columns in zip(entries[::2], entries[1::2], strict=True)
    }


def plain(names: list[str]) -> list[str]:
    return [name[1:-1] if name.startswith("[") and name.endswith("]") else name for name in names]


def surely(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("[")]


@pytest.mark.parametrize("name", RUNS)
def test_tables_and_columns_are_those_of_the_docstring(name: str, text: Text):
    tables = listed(ANALYSES[name])
    full, bare = RUNS[name]({"model": tiny_model(), "text": text, "tokens": 1024})
    assert plain(list(tables)) == list(full.tables)
    assert set(surely(list(tables))) <= set(bare.tables) <= set(full.tables)
    for table, columns in zip(plain(list(tables)), tables.values(), strict=True):
        assert plain(columns) == list(full.tables[table].frame.columns), table
        if name in LINKED:
            check_links(full.tables[table], {one.name for one in full.inputs})
        if table in bare.tables:
            found = list(bare.tables[table].frame.columns)
            assert set(surely(columns)) <= set(found), table
            assert found == [column for column in plain(columns) if column in found], table


LINKED = {"novelty", "stitching", "matching", "geometry", "probes", "explanations"}  # latents' numbers lead somewhere
LATENT_COLUMNS = {"latent", "parent", "partner", "neighbour"}


def check_links(table: Table, inputs: set[str]) -> None:
    """Every column of latents' numbers says of each row which dictionary the latent is of, or that it is of none."""
    of_latents = LATENT_COLUMNS & set(table.frame.columns) if "latent" in table.frame else set()
    assert set(table.dictionaries_of_latents) == of_latents
    for column, names in table.dictionaries_of_latents.items():
        of = [name for name, latent in zip(names, table.frame[column], strict=True) if not pd.isna(latent)]
        assert {name for name in of if name is not None} <= inputs


def test_every_analysis_lists_its_tables():
    assert set(RUNS) == set(ANALYSES)
