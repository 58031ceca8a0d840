"""Dictionaries of several libraries, given to an analysis by name."""

from dataclasses import replace

import pytest

from analyses.common.inputs import check_same_place, open_dictionaries
from dictlab import DictlabError, Metadata, save
from tests.planted import random_dictionary


def files(tmp_path, *names):
    return [save(random_dictionary(), tmp_path / name) for name in names]


def test_files_of_one_name_are_told_apart_by_the_folder_that_differs(tmp_path):
    opened = open_dictionaries(files(tmp_path, "run1/site/a.safetensors", "run2/site/a.safetensors", "b.safetensors"))
    assert [d.name for d in opened] == ["run1/a", "run2/a", "b"]


def test_one_file_given_twice_is_refused(tmp_path):
    (path,) = files(tmp_path, "a.safetensors")
    with pytest.raises(DictlabError, match="two dictionaries are called 'a'"):
        open_dictionaries([path, path])


def at(site, model="gpt2", name="one"):
    return replace(random_dictionary(metadata=Metadata(site=site, model=model)), name=name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (at("blocks.6.hook_resid_pre"), at("h.5")),
        (at("blocks.5.hook_resid_post"), at("transformer.h.6:in", "openai-community/gpt2")),
        (at("blocks.3.hook_mlp_out", "gpt2-small"), at("transformer.h.3.mlp")),
        (at("layers.4", "EleutherAI/pythia-70m"), at("blocks.5.hook_resid_pre", "pythia-70m")),
        (at("blocks.6.hook_resid_pre"), at(None, None)),
    ],
)
def test_other_spellings_of_a_place_are_the_same_place(one, other):
    check_same_place([one, other])


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (at("blocks.6.hook_resid_pre"), at("h.6", name="two"), "blocks.6.hook_resid_pre and h.6"),
        (at("blocks.6.hook_resid_pre"), at("blocks.6.hook_mlp_out", name="two"), "hook_mlp_out"),
        (at("h.3", "gpt2"), at("h.3", "gpt2-medium", name="two"), "gpt2 and gpt2-medium"),
        (
            at("blocks.3.hook_mlp_out", "google/gemma-2-2b"),
            at("layers.3.mlp", "gemma-2-2b", name="two"),
            "layers.3.mlp",
        ),
    ],
)
def test_different_places_are_refused_with_both_names(one, other, named):
    with pytest.raises(DictlabError, match=f"one and two cannot be compared.*{named}"):
        check_same_place([one, other])
