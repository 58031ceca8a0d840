"""Analyses are names of `dictlab`, and a folder that hides the package `analyses` is named."""

import subprocess
import sys

import dictlab
from analyses.composition.novelty import novelty
from analyses.composition.stitching import stitching


def test_an_analysis_is_a_name_of_dictlab():
    assert dictlab.novelty is novelty
    assert dictlab.stitch is dictlab.stitching is stitching
    assert {"novelty", "stitch", "verify", "load"} <= set(dir(dictlab))


def test_the_package_of_training_is_no_analysis():
    assert dictlab.training.__name__ == "dictlab.training"


def test_a_folder_that_hides_the_package_is_named(tmp_path):
    (tmp_path / "analyses").mkdir()
    (tmp_path / "analyses" / "__init__.py").write_text("")
    command = "import dictlab\ntry:\n    dictlab.novelty\nexcept dictlab.DictlabError as error:\n    print(error)"
    ran = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert str(tmp_path / "analyses") in ran.stdout and "Rename it" in ran.stdout, ran.stderr
