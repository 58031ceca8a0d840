"""Analyses are names of `dictlab`, and a folder that hides the package `analyses` is named."""

import re
import subprocess
import sys
import types
from importlib.metadata import EntryPoint

import pytest

import dictlab
from analyses.composition.novelty.novelty import novelty
from analyses.composition.stitching.stitching import stitching
from dictlab import DictlabError
from dictlab.analysis_entries import load_analysis


def test_an_analysis_is_a_name_of_dictlab():
    assert dictlab.novelty is novelty
    assert dictlab.stitch is dictlab.stitching is stitching
    assert {"novelty", "stitch", "verify", "load"} <= set(dir(dictlab))


def test_the_package_of_training_is_no_analysis():
    assert dictlab.training.__name__ == "dictlab.training"


def test_a_package_that_hides_that_of_the_analyses_is_named(tmp_path, monkeypatch):
    hiding = types.ModuleType("analyses")
    hiding.__file__ = str(tmp_path / "analyses" / "__init__.py")
    monkeypatch.setitem(sys.modules, "analyses", hiding)
    entry = EntryPoint("novelty", "analyses.nowhere:novelty", "dictlab.analyses")
    with pytest.raises(DictlabError, match=rf"{re.escape(str(tmp_path / 'analyses'))}: .* Rename it"):
        load_analysis(entry)


def test_a_module_that_is_missing_in_the_package_itself_is_no_folder_that_hides_it():
    with pytest.raises(ModuleNotFoundError, match=r"analyses\.nowhere"):
        load_analysis(EntryPoint("novelty", "analyses.nowhere:novelty", "dictlab.analyses"))


def test_beside_a_folder_of_the_same_name_the_analysis_is_found_or_the_folder_is_named(tmp_path):
    """Which of the two depends on how the package was installed."""
    (tmp_path / "analyses").mkdir()
    (tmp_path / "analyses" / "__init__.py").write_text("")
    command = (
        "import dictlab\ntry:\n    print(dictlab.novelty.__module__)\n"
        "except dictlab.DictlabError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "analyses.composition.novelty.novelty" or "Rename it" in ran.stdout, ran.stderr
