"""The notebooks run from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_the_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "store notebooks without outputs"
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("text/html" in output.get("data", {}) for output in shown), "reports show themselves"


def test_there_is_a_notebook():
    assert NOTEBOOKS


def test_no_folder_of_the_docs_hides_a_package():
    """In a notebook's folder a folder called `analyses` would be imported in place of the package."""
    folders = {path.name for path in (Path(__file__).parent.parent / "docs").iterdir() if path.is_dir()}
    assert not folders & {"analyses", "dictlab"}
