"""Old names of options are answered with the new ones, and the list of them agrees with the analyses as they are."""

import inspect
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from dictlab import TrainConfig, cli
from dictlab.cli import renamed
from dictlab.cli.dictionaries import convert, info

CHANGELOG = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()


def parameters(command: str) -> set[str]:
    if command == "train":
        return set(inspect.signature(TrainConfig).parameters) | {"out", "resume", "force"}
    if command in ("info", "convert"):
        return set(inspect.signature({"info": info, "convert": convert}[command]).parameters)
    (entry,) = entry_points(group="dictlab.analyses", name=command)
    signature = inspect.signature(entry.load(), eval_str=True)
    fields = {
        name
        for p in signature.parameters.values()
        for one in getattr(p.annotation, "__args__", ())
        for name in getattr(one, "__dataclass_fields__", ())
    }
    return set(signature.parameters) | fields


@pytest.mark.parametrize("command", sorted(renamed.OPTIONS))
def test_renamed_options_are_those_of_the_analysis(command):
    known = parameters(command)
    for old, new in renamed.OPTIONS[command].items():
        assert old not in known, f"{command} still has {old}"
        assert " " in new or new in known, f"{command} has no {new}"
        assert f"`--{old.replace('_', '-')}`" in CHANGELOG


@pytest.mark.parametrize("analysis", sorted(renamed.COLUMNS))
def test_renamed_columns_are_in_the_changelog(analysis):
    for old in renamed.COLUMNS[analysis]:
        assert f"`{old}`" in CHANGELOG


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--far", "--far is now --n-random-points."),
        ("--far=3", "--far is now --n-random-points."),
        ("--no-umap", "--no-umap is now --no-map."),
        ("--choose", "--choose: it is gone; give --latents."),
        ("--unheard-of", None),
    ],
)
def test_an_old_name_is_answered_with_the_new_one(monkeypatch, typed, said):
    names = {"far": "n_random_points", "umap": "map", "choose": "it is gone; give --latents."}
    monkeypatch.setattr(renamed, "OPTIONS", {"stitching": names})
    assert renamed.option_renamed("stitch", typed) == said
    assert renamed.option_renamed("stitching", typed) == said
    assert renamed.option_renamed("matching", typed) is None


def test_on_the_command_line(monkeypatch, capfd):
    monkeypatch.setattr(renamed, "OPTIONS", {"verification": {"reference": "model"}, "info": {"formatting": "format"}})
    for arguments, said in [
        (["report", "verification", "x", "--reference", "3"], "dictlab: --reference is now --model.\n"),
        (["verify", "x", "--reference=3"], "dictlab: --reference is now --model.\n"),
        (["info", "x", "--formatting", "y"], "dictlab: --formatting is now --format.\n"),
    ]:
        assert cli.main(arguments) == 2
        assert capfd.readouterr().err == said
