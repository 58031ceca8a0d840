"""The notebooks run from top to bottom, and show what they showed when they were stored.

They run in this process: a kernel of its own for each takes longer to start than all of their cells. What a cell shows is
asked of its last expression, as a kernel does.
"""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 400_000  # of a notebook with its outputs
SHOWN = {"text/html": "_repr_html_", "text/plain": "__repr__"}


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def shown_by(source: str, names: dict) -> object:
    """The value of a cell's last expression; None where the last statement is none."""
    tree = ast.parse(TransformerManager().transform_cell(source))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_the_notebook_runs_and_shows_what_it_did(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in code_cells(path):
        value, printed = shown_by(cell.source, names), capsys.readouterr().out
        streams = "".join(one.text for one in cell.outputs if one.output_type == "stream" and one.name == "stdout")
        assert bool(printed) == bool(streams), cell.source
        kinds = {kind for one in cell.outputs if one.output_type == "execute_result" for kind in one.data}
        assert (value is None) == (not kinds), cell.source
        for kind in kinds & SHOWN.keys():
            assert getattr(value, SHOWN[kind])(), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_outputs_are_kept_small_and_say_nothing_of_a_machine(path):
    cells = code_cells(path)
    assert sum(bool(cell.outputs) for cell in cells) >= 3
    assert not any(one.output_type == "error" for cell in cells for one in cell.outputs)
    assert path.stat().st_size < MOST_BYTES
    assert not re.search(r"/(home|root|work|Users|tmp)/", path.read_text())


def test_three_notebooks_and_one_that_installs_the_package():
    assert [path.stem for path in NOTEBOOKS] == ["compare", "stitch", "train"]
    assert "%pip install" in code_cells(FOLDER / "compare.ipynb")[0].source


def test_no_folder_of_the_docs_hides_a_package():
    """In a notebook's folder a folder called `analyses` would be imported in place of the package."""
    folders = {path.name for path in FOLDER.parent.rglob("*") if path.is_dir()}
    assert not folders & {"analyses", "dictlab"}
