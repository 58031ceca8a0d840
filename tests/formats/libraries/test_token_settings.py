"""Other libraries' settings of which tokens count become a token selection, and are written back."""

import json
from dataclasses import replace

import pytest
import torch

from dictlab import Metadata, load
from dictlab.dictionary.activation_functions import JumpReLU, TopK
from dictlab.formats.conversion import write
from dictlab.token_selection import RECORD, TokenSelection
from tests.formats.libraries.test_saelens import config_of, folder, tensors_of
from tests.planted import SITE, random_dictionary

SAELENS = {
    "all": ({"prepend_bos": True, "seqpos_slice": [None], "exclude_special_tokens": False}, "all"),
    "nothing said": ({}, "all"),
    "null": ({"prepend_bos": None, "seqpos_slice": None}, "all"),
    "without a first token": ({"prepend_bos": False}, "without-bos"),
    "slice": ({"seqpos_slice": [5, -5]}, "positions=5:-5"),
    "from the second": ({"seqpos_slice": [1, None]}, "without-first=1"),
    "special tokens": ({"exclude_special_tokens": True}, "without-special"),
    "ids": ({"exclude_special_tokens": [50256, 0]}, "without-ids=0/50256"),
}


def selected(dictionary) -> str:
    return str(TokenSelection.parse(dictionary.metadata.training.get(RECORD)))


@pytest.mark.parametrize(("settings", "selection"), SAELENS.values(), ids=SAELENS)
@pytest.mark.parametrize("flat", [False, True], ids=["version 6", "before"])
def test_saelens_settings_are_read(tmp_path, settings, selection, flat):
    if flat:
        config = {name: value for name, value in config_of("standard").items() if name != "metadata"}
        config |= {"model_name": "gpt2", "hook_name": SITE, **settings}
    else:
        config = config_of("standard", metadata={"model_name": "gpt2", "hook_name": SITE, **settings})
    assert selected(load(folder(tmp_path, config, tensors_of("standard")))) == selection


def test_saelens_checkpoints_say_it_in_the_settings_of_the_run(tmp_path):
    run = {"exclude_special_tokens": True, "seqpos_slice": [1, None]}
    path = folder(tmp_path, config_of("standard"), tensors_of("standard"), runner_cfg=run)
    assert selected(load(path)) == "without-first=1,without-special"


@pytest.mark.parametrize("settings", [{"seqpos_slice": [0, 100, 2]}, {"seqpos_slice": [-5]}, {"prepend_bos": "yes"}])
def test_what_no_selection_describes_is_noted(tmp_path, settings):
    dictionary = load(folder(tmp_path, config_of("standard", metadata=settings), tensors_of("standard")))
    assert selected(dictionary) == "all"
    assert any("no token selection describes" in note for note in dictionary.metadata.notes)


@pytest.mark.parametrize(
    ("buffer", "selection"),
    [
        ({}, "all"),
        ({"remove_bos": False, "max_activation_norm_multiple": None}, "all"),
        ({"remove_bos": True}, "without-first=1"),
        ({"max_activation_norm_multiple": 10}, "without-outliers=10"),
        ({"remove_bos": True, "ignore_tokens": [2, 1]}, "without-first=1,without-ids=1/2"),
    ],
)
def test_dictionary_learning_settings_are_read_and_kept(tmp_path, buffer, selection):
    path = write(random_dictionary(20, 8, activation=TopK(3)), tmp_path / "a", "dictionary_learning")
    config = json.loads((path / "config.json").read_text())
    del config["dictlab"]
    config["buffer"] = {"d_submodule": 8, "io": "out", "ctx_len": 128, **buffer}
    (path / "config.json").write_text(json.dumps(config))
    dictionary = load(path)
    assert selected(dictionary) == selection
    again = write(dictionary, tmp_path / "b", "dictionary_learning")
    assert json.loads((again / "config.json").read_text())["buffer"] == config["buffer"]


ROUND = ("all", "without-first=1", "positions=2:100", "without-bos", "without-special", "without-ids=3/7")


@pytest.mark.parametrize("spec", [*ROUND, "without-first=1,without-special,without-outliers=10"])
@pytest.mark.parametrize("format", ["saelens", "dictionary_learning", "sparsify", "dictlab"])
def test_a_selection_survives_every_format(tmp_path, format, spec):
    training = {} if spec == "all" else {RECORD: spec}
    dictionary = random_dictionary(20, 8, activation=TopK(3), metadata=Metadata(site=SITE, training=training))
    name = "x.safetensors" if format == "dictlab" else "layers.3"
    assert selected(load(write(dictionary, tmp_path / name, format))) == spec


@pytest.mark.parametrize("spec", ROUND)
def test_saelens_itself_is_told_in_its_own_fields(tmp_path, spec):
    """Without dictlab's record, as another tool might leave the file."""
    about = Metadata(site=SITE, training={RECORD: spec})
    dictionary = random_dictionary(20, 8, activation=JumpReLU(torch.full((20,), 0.2)), metadata=about)
    path = write(dictionary, tmp_path / "a", "saelens")
    config = json.loads((path / "cfg.json").read_text())
    del config["metadata"]["dictlab"]
    (path / "cfg.json").write_text(json.dumps(config))
    assert selected(load(path)) == spec


@pytest.mark.parametrize("spec", ["all", "without-first=1", "without-outliers=10", "without-ids=3/7"])
def test_dictionary_learning_is_told_in_its_own_fields(tmp_path, spec):
    dictionary = random_dictionary(20, 8, activation=TopK(3), metadata=Metadata(training={RECORD: spec}))
    path = write(dictionary, tmp_path / "a", "dictionary_learning")
    config = json.loads((path / "config.json").read_text())
    del config["dictlab"]
    (path / "config.json").write_text(json.dumps(config))
    assert selected(load(path)) == spec


def test_a_changed_selection_replaces_what_the_file_said(tmp_path):
    config = config_of("standard", metadata={"prepend_bos": True, "seqpos_slice": [1, None], "hook_name": SITE})
    dictionary = load(folder(tmp_path / "a", config, tensors_of("standard")))
    changed = replace(dictionary, metadata=replace(dictionary.metadata, training={RECORD: "without-special"}))
    path = write(changed, tmp_path / "b", "saelens")
    origin = json.loads((path / "cfg.json").read_text())["metadata"]
    assert (origin["seqpos_slice"], origin["exclude_special_tokens"], origin["prepend_bos"]) == ([None], True, True)
