"""What needs no computation is answered without the libraries that are slow to import."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import analyses
import dictlab
from dictlab import cli, load
from dictlab.cli.options import unknown_option
from dictlab.dictionary.describe import describe, description
from dictlab.formats.native.header import described

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "checkpoints").glob("*.safetensors"))
SLOW = ("torch", "transformers", "pandas", "matplotlib", "datasets", "scipy", "sklearn")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "Usage: dictlab COMMAND"),
        (["info", str(FILES[0])], FILES[0].stem),
        (["info", "nowhere.safetensors"], "nowhere.safetensors: no such file."),
        (["info", "nowhere.pt#blocks.6"], "nowhere.pt: no such file."),
        (["inof"], 'Did you mean "info"?'),
        (["info", "x", "--farr"], "Unknown option: --farr"),
        (["report", "geometri"], 'Did you mean "geometry"?'),
        (["report", "geometry", "x", "--umap-point"], "Unknown option: --umap-point. Did you mean --umap-points?"),
        (["report", "explanations", "x", "--explaner=1"], "Unknown option: --explaner. Did you mean --explainer?"),
        (["verify", "x", "--contxts", "3"], "Unknown option: --contxts. Did you mean --contexts?"),
        (["train", "--widht", "3"], "Unknown option: --widht. Did you mean --width?"),
    ],
)
def test_nothing_slow_is_imported(arguments, said):
    code = (
        f"import sys\nfrom dictlab.cli import main\nmain({arguments!r})\nprint([m for m in {SLOW} if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said in ran.stdout + ran.stderr
    assert ran.stdout.endswith("[]\n"), ran.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_header_says_what_the_dictionary_says(file):
    found = described(file)
    if found is None:
        pytest.skip("out of the ordinary: read by the format itself")
    n, d_in, activation, normalisation, about, dtype = found
    rows = description(file.stem, n, d_in, activation, normalisation, about, dtype, emitting=n)
    assert rows == [row if row[0] != "kept in" else ("kept in", dtype) for row in describe(load(file))]


def test_a_damaged_header_is_left_to_the_format(tmp_path):
    content = (ROOT / "checkpoints" / "local-topk16-512-s0.safetensors").read_bytes()
    kind = rb"\"activation\": {\"kind\": \"topk\""
    assert kind in content
    damaged = [content[:-1], content + b"x", content.replace(kind, kind.replace(b"topk", b"tupk")), b"", b"\xff" * 99]
    for number, damage in enumerate(damaged):
        (tmp_path / str(number)).write_bytes(damage)
        assert described(tmp_path / str(number)) is None


@pytest.mark.parametrize("package", [dictlab, analyses])
def test_public_names_are_there(package):
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError):
        getattr(package, "nothing" + "_of_that_name")


def test_every_option_of_every_analysis_is_known(monkeypatch):
    """The options read from the source are those of the command that the parser builds."""
    for entry in entry_points(group="dictlab.analyses"):
        app = cli.build(["report", entry.name])["report"][entry.name]
        for argument in app.assemble_argument_collection(parse_docstring=False):
            for name in argument.names:
                if name.startswith("--"):
                    cli.check_analysis_options(entry, [name])


def test_an_array_is_no_option_of_what_needs_the_model():
    assert "leave out --data" in unknown_option("ablation", "--data=x.npy", {"model", "tokens"})
