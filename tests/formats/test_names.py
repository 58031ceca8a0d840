"""Names of dictionaries whose files have the same name."""

from dataclasses import replace
from pathlib import Path

import pytest

from dictlab import DictlabError, load
from dictlab.formats.names import name_of, with_distinct_names
from tests.planted import random_dictionary

GRID = "gemma-scope-2b-pt-res/layer_{}/width_{}/average_l0_{}/params.npz"


def at(*paths):
    one = random_dictionary()
    return [replace(one, name=name_of(path), path=Path(path)) for path in paths]


def names(*paths):
    return [dictionary.name for dictionary in with_distinct_names(at(*paths))]


def test_a_grid_of_folders_takes_as_many_of_them_as_tell_all_files_apart():
    assert names(GRID.format(20, "16k", 71), GRID.format(20, "65k", 71), GRID.format(21, "16k", 71)) == [
        "layer_20/width_16k/average_l0_71",
        "layer_20/width_65k/average_l0_71",
        "layer_21/width_16k/average_l0_71",
    ]


def test_folders_that_do_not_differ_or_tell_nothing_new_are_left_out():
    assert names(GRID.format(20, "16k", 71), GRID.format(21, "16k", 71)) == [
        "layer_20/average_l0_71",
        "layer_21/average_l0_71",
    ]
    cache = "hub/models--{}/snapshots/{}/layer_{}/sae.safetensors"
    assert names(cache.format("a--x", "5f", 1), cache.format("b--y", "7c", 1)) == [
        "models--a--x/layer_1",
        "models--b--y/layer_1",
    ]


def test_names_that_differ_already_stay():
    grid = [GRID.format(layer, "16k", l0) for layer in (20, 21) for l0 in (71, 35)]
    assert names(*grid, "b.pt") == [
        *(f"layer_{layer}/average_l0_{l0}" for layer in (20, 21) for l0 in (71, 35)),
        "b",
    ]


def test_every_grid_is_told_apart():
    paths = [GRID.format(a, b, c) for a in range(3) for b in ("16k", "65k", "1m") for c in (71, 35)]
    assert len(set(names(*paths))) == len(paths)
    assert len(set(names("a/b.pt", "a/c/b.pt", "a/c/d/b.pt", "b.pt"))) == 4


def test_one_that_was_read_from_no_file_keeps_its_name():
    (read,) = at("run1/small.safetensors")
    made = replace(read, path=None)
    assert [d.name for d in with_distinct_names([read, made])] == ["run1/small", "small"]
    with pytest.raises(DictlabError, match=r"'small', and were read from no file.*dataclasses\.replace"):
        with_distinct_names([made, replace(made)])


def test_the_same_file_twice_is_refused():
    with pytest.raises(DictlabError, match="'b': the same one was given twice"):
        with_distinct_names(at("a/b.pt", "a/../a/b.pt"))


def test_a_new_name_may_not_be_one_that_is_there():
    with pytest.raises(DictlabError, match="two dictionaries are called 'x/b'"):
        with_distinct_names([*at("x/b.pt", "y/b.pt"), replace(random_dictionary(), name="x/b")])


def test_a_name_that_is_no_utf_8_is_shown_in_codes():
    """Such a file's name is text with halves of surrogate pairs, which no table can hold."""
    assert name_of("/tmp/caf\udce9.safetensors") == "caf\\udce9"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("large.safetensor", "Did you mean {folder}/large.safetensors?"),
        ("quite-other.safetensors", "no such file.$"),
    ],
)
def test_a_misspelt_file_is_answered_with_the_one_beside_it(tmp_path, typed, said):
    (tmp_path / "large.safetensors").write_bytes(b"")
    with pytest.raises(DictlabError, match=said.format(folder=tmp_path)):
        load(tmp_path / typed)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("gpt2-small-res-jb", "written saelens://gpt2-small-res-jb/ID"),
        ("gpt2-small-res-jb/blocks.8.hook_resid_pre", "saelens://gpt2-small-res-jb/blocks.8.hook_resid_pre"),
        ("google/gemma-scope-2b-pt-res", "hf://google/gemma-scope-2b-pt-res"),
    ],
)
def test_a_name_on_the_hub_without_its_scheme(tmp_path, monkeypatch, typed, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DictlabError, match=said):
        load(typed)
