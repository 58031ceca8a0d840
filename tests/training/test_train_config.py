"""One configuration: from Python, from a TOML file, from flags; what is not known is refused by name."""

import pytest

from dictlab import DictlabError, cli, training
from dictlab.model.language_model import LanguageModel
from dictlab.model.model_options import ModelOptions
from dictlab.training import TrainConfig, configfile
from dictlab.training.sources.model import ModelSource


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the command line asks `train` for."""
    seen = []

    class Asked(Exception):
        pass

    def train(config, *, out, force):
        seen.append(config)
        raise Asked

    monkeypatch.setattr(training, "train", train)
    monkeypatch.chdir(tmp_path)

    def ask(*arguments: str) -> TrainConfig:
        with pytest.raises(Asked):
            cli.main(["train", *arguments])
        return seen[-1]

    return ask


def test_flags_win_over_a_file_and_a_file_over_defaults(asked, tmp_path):
    (tmp_path / "run.toml").write_text('model = "m"\nsite = "s"\nwidth = [64, 128]\nk = 4\nlr = 1\nseed = [0, 1]\n')
    config = asked("run.toml", "--seed", "3", "--width", "32")
    assert config == TrainConfig("m", "s", width=(32,), k=(4,), lr=1.0, seed=(3,))
    assert asked("run.toml", "--tokens", "4096").tokens == 4096
    assert asked("run.toml").width == (64, 128)


def test_flags_alone_give_what_python_gives(asked):
    assert asked("m", "s") == TrainConfig("m", "s")
    assert asked("m", "s", "t", "--width", "1", "2", "--k", "1").sites == ("s", "t")
    assert asked("m", "--site", "s", "--objective", "local", "e2e").objective == ("local", "e2e")
    assert asked("--data", "x.npy", "--epochs", "3") == TrainConfig(data="x.npy", epochs=3)
    assert asked("--on", "decoder", "large.safetensors").on == ("decoder", "large.safetensors")
    assert asked("m", "s", "--log", "wandb", "tensorboard").log == ("wandb", "tensorboard")


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig("m", "s"),
        TrainConfig("m", ("s", "t"), width=(3, 4), k=(1, 2), lr=1e-3, ema=0.999, log=("wandb",), cache="x"),
        TrainConfig(data="x.npy", activation="relu", l1=(0.1, 5), tokens=10**9),
        TrainConfig(on=("decoder", 'a "quoted" name.safetensors'), aux_k=3, dead_after=7),
    ],
)
def test_a_written_configuration_is_read_back_the_same(tmp_path, config):
    (tmp_path / "config.toml").write_text(configfile.dumped(config))
    assert TrainConfig(**configfile.read(tmp_path / "config.toml")) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widht = 3", r"run\.toml: no setting is called 'widht'; did you mean width\?"),
        ("learning-rate = 3", r"no setting is called 'learning-rate'; (did you mean|known are)"),
        ("zzz = 3", r"no setting is called 'zzz'; known are model, site"),
        ('width = "many"', r"run\.toml: width is 'many'; expected a list of an integer"),
        ("width = [1, 2.5]", r"width is \[1, 2\.5\]"),
        ("tokens = 1.5", r"tokens is 1\.5; expected an integer"),
        ("tokens = true", r"tokens is True"),
        ('objective = ["locale"]', r'objective is \[\'locale\'\]; expected a list of "local"'),
        ('on = ["encoder", "x"]', r"on is \['encoder', 'x'\]"),
        ("[model]\nname = 3", r"model is \{'name': 3\}; expected a text"),
        ("width = [", r"run\.toml: cannot be read as TOML"),
    ],
)
def test_what_a_file_says_wrongly_is_named(tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(DictlabError, match=message):
        configfile.read(tmp_path / "run.toml")


def test_a_file_that_is_not_there_is_said(asked, capsys, monkeypatch):
    assert cli.main(["train", "nowhere.toml"]) == 2
    assert "nowhere.toml: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to train on"),
        ({"model": "m"}, "no site is given"),
        ({"model": "m", "site": "s", "data": "x"}, "model and data"),
        ({"data": "x", "on": ("decoder", "y")}, "data and on"),
        ({"data": "x", "site": "s"}, "plain activations have no sites"),
        ({"data": "x", "objective": ("e2e",)}, "objective e2e needs a model"),
        ({"data": "x", "cache": "c"}, "cache: for activations of a model; data has none"),
        ({"model": "m", "site": ("s", "s")}, "expected different sites"),
        ({"data": "x", "epochs": 0}, "epochs is 0"),
        ({"data": "x", "save_minutes": -1.0}, "save_minutes is -1"),
    ],
)
def test_sources_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(DictlabError, match=message):
        TrainConfig(**settings)


def test_members_of_several_sites_have_names_of_their_own():
    names = [m.name for m in TrainConfig("m", ("blocks.1.hook_resid_pre", "transformer.h.2.mlp:out"), k=(4,)).members()]
    assert names == ["blocks.1.hook_resid_pre-local-topk4-1024-s0", "transformer.h.2.mlp-out-local-topk4-1024-s0"]


def test_a_run_that_is_fine_tuned_has_a_folder_of_its_own():
    plain = TrainConfig("m", "s", k=(4,))
    assert plain.default_out().name == "local-topk-1024"
    assert TrainConfig("m", "s", k=(4,), finetune="e2e").default_out().name == "local-then-e2e-topk-1024"


def test_no_file_of_settings_has_the_code_of_a_model_run(tmp_path):
    """Neither a file that is given nor the folder of a run that goes on; the command line alone."""
    config = TrainConfig("m", "s", trust_remote_code=True, allow_other_weights=True)
    assert "trust" not in configfile.dumped(config) and configfile.settings(config)["allow_other_weights"] is True
    (tmp_path / "run.toml").write_text('model = "m"\nsite = "s"\ntrust_remote_code = true\n')
    with pytest.raises(
        DictlabError, match="no file decides that code of a model is run; give `trust_remote_code=True`"
    ):
        configfile.read(tmp_path / "run.toml")


def test_how_a_model_is_opened_is_said_by_the_same_options_as_in_an_analysis(asked, monkeypatch):
    options = ["--model-dtype", "bfloat16", "--model-revision", "v1", "--trust-remote-code", "--allow-other-weights"]
    config = asked("m", "s", *options)
    opened = []

    class Opened(Exception):
        pass

    def load(options, *, device):
        opened.append((options, device))
        raise Opened

    monkeypatch.setattr(LanguageModel, "load", load)
    with pytest.raises(Opened):
        ModelSource(config, None, None)
    assert opened == [(ModelOptions("m", "bfloat16", "v1", True, True), "cpu")]
