"""Recipes: shapes of the learning rate from their formulas; what is given wins; what old runs meant stays."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dictlab import DictlabError
from dictlab.data.activations import moments
from dictlab.training import TrainConfig, configfile
from dictlab.training.learner.learner import Learner
from dictlab.training.recipes import RECIPES, LearningRate, Recipe
from dictlab.training.run_folder.state_checks import check_settings

LINEAR = Recipe(LearningRate(1e-3), "linear", warmup=0.1, decay=0.2, final_lr=0.0, clip=0.0)


def config(**settings) -> TrainConfig:
    return TrainConfig(data="x.npy", tokens=128 * 100, batch=128, **settings)


def test_a_linear_schedule_rises_stays_and_falls_to_its_end():
    rates = [LINEAR.share_of_peak(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:81] == pytest.approx([1.0] * 71)
    assert rates[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 101)])
    ending = replace(LINEAR, final_lr=0.1)
    assert ending.share_of_peak(90, 100) == pytest.approx(0.1 + 0.9 * 0.5)
    assert ending.share_of_peak(100, 100) == pytest.approx(0.1)


def test_a_cosine_schedule_is_the_cosine():
    cosine = replace(LINEAR, schedule="cosine", final_lr=0.1)
    for step in (10, 37, 55, 99, 100):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert cosine.share_of_peak(step, 100) == pytest.approx(expected)


def test_without_warm_up_and_decay_the_rate_is_constant():
    constant = RECIPES["gao2024"]
    assert {constant.share_of_peak(step, 7) for step in range(8)} == {1.0}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_trained_with_and_ends_where_it_says(recipe):
    RECIPES[recipe].check()
    assert RECIPES[recipe].share_of_peak(1000, 1000) == pytest.approx(RECIPES[recipe].final_lr)


def test_the_papers_values_are_theirs():
    gao, braun = RECIPES["gao2024"], RECIPES["braun2024"]
    assert gao.lr(2**14, 10) == gao.lr(2**14, 10**6) == pytest.approx(2e-4) and gao.lr(2**16, 10) == pytest.approx(1e-4)
    assert (gao.clip, gao.ema, gao.dead_after) == (None, 0.999, 10_000_000)
    assert braun.lr(1024, 10) == braun.lr(46080, 10**6) == 5e-4
    assert (braun.schedule, braun.warmup, braun.final_lr, braun.clip) == ("cosine", 0.05, 0.1, 10.0)


def test_a_rate_falls_with_width_and_steps_as_it_says_and_is_bounded():
    lr = LearningRate(1e-3, by_width=-0.5, by_steps=-0.25, most=0.5)
    assert lr(16384, 1000) == pytest.approx(1e-3)
    assert lr(4096, 1000) == pytest.approx(2e-3) and lr(16384, 16000) == pytest.approx(5e-4)
    assert lr(1, 1) == 0.5


def test_an_activation_function_has_its_own_factor_in_the_rate():
    lr = LearningRate(1e-3, by_activation=(("relu", 4.0),), most=3e-3)
    assert (lr(16384, 9, "gated"), lr(16384, 9, "relu")) == (1e-3, 3e-3)
    family = config(activation=("topk", "relu"), width=(16384,), k=(4,))
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    topk, relu = (Learner(member, family, moments([x]), x.mean(dim=0)).lr for member in family.members())
    assert relu == pytest.approx(min(4 * topk, 1.6e-2)) and topk == RECIPES["dictlab"].lr(16384, 100)


def test_what_is_given_wins_over_the_recipe_and_the_rest_is_the_recipes():
    given = config(recipe="braun2024", clip=0.0, lr=0.01)
    assert given.optimisation == replace(RECIPES["braun2024"], clip=0.0)
    assert given.peak_lr(64) == 0.01
    assert replace(given, recipe="dictlab-0.1").optimisation == replace(RECIPES["dictlab-0.1"], clip=0.0)


def test_a_dictionary_that_is_gone_on_from_has_smaller_steps_by_default_alone():
    assert config().peak_lr(1024) == RECIPES["dictlab"].lr(1024, 100)
    fresh, started = (config().peak_lr(1024, started=started) for started in (False, True))
    assert started == pytest.approx(fresh * RECIPES["dictlab"].start_lr) and started < fresh
    assert config(lr=0.01).peak_lr(1024, started=True) == 0.01


def test_written_out_settings_mean_the_same_in_another_recipe():
    """All but the rate, which is a function of the width."""
    spelt = config(recipe="dictlab-0.1", clip=3.0).spelt_out()
    assert (spelt.schedule, spelt.warmup, spelt.clip) == ("cosine", 0.05, 3.0)
    before, after = spelt.optimisation, replace(spelt, recipe="dictlab").optimisation
    assert replace(after, lr=before.lr, start_lr=before.start_lr) == before


def test_a_file_of_an_earlier_run_means_what_it_meant(tmp_path):
    """Such files have every setting of then, and no recipe; files of users have neither."""
    lines = configfile.dumped(config(warmup=0.05, final_lr=0.1, clip=10.0, finetune_lr=0.3)).splitlines()
    kept = [line for line in lines if not line.startswith(("recipe", "schedule", "decay"))]
    (tmp_path / "config.toml").write_text("\n".join(kept))
    earlier = TrainConfig(**configfile.read(tmp_path / "config.toml"))
    assert earlier.optimisation == RECIPES["dictlab-0.1"]
    assert earlier.peak_lr(1024) == pytest.approx(2e-4 * 4)
    (tmp_path / "user.toml").write_text('data = "x.npy"\nclip = 10.0\n')
    assert TrainConfig(**configfile.read(tmp_path / "user.toml")).schedule is None


def test_a_state_of_an_earlier_run_is_one_of_the_same_settings():
    now = configfile.settings(config(recipe="dictlab-0.1").spelt_out())
    then = {name: value for name, value in now.items() if name not in ("recipe", "schedule", "decay")}
    check_settings(Path("state"), {"settings": then}, now)
    for changed in ({"recipe": "dictlab"}, {"schedule": "linear"}, {"clip": 1.0}):
        with pytest.raises(DictlabError, match=f"{next(iter(changed))} is"):
            check_settings(Path("state"), {"settings": then}, now | changed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "gao"}, "recipe 'gao' is unknown; known are dictlab"),
        ({"schedule": "constant"}, "schedule is 'constant'; expected linear or cosine"),
        ({"warmup": 1.0}, "warmup is 1.0; expected a share below 1"),
        ({"warmup": -0.1}, "warmup is -0.1; expected a share between"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"final_lr": 2.0}, "final_lr is 2.0"),
        ({"warmup": 0.6, "decay": 0.6}, "warmup 0.6 and decay 0.6 together"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"finetune_lr": -1.0}, "finetune_lr is -1.0"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(DictlabError, match=message):
        config(**settings)
