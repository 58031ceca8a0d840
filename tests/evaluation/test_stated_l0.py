"""An L0 that is not the one a file states is said, wherever it is measured."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from analyses import pareto, shrinkage
from dictlab import Metadata, load, save
from dictlab.dictionary.activation_functions import JumpReLU, TopK
from dictlab.evaluation.stated_l0 import FACTOR, stated_l0, stated_l0_warnings
from dictlab.formats.names import l0_in
from tests.planted import random_dictionary

N, D = 40, 16
X = torch.randn(30, 12, D, generator=torch.Generator().manual_seed(0))


def jumprelu(threshold: float, **about):
    return random_dictionary(N, D, activation=JumpReLU(torch.full((N,), threshold)), metadata=Metadata(**about))


def measured(dictionary) -> float:
    return float(dictionary.encode(X).l0().double().mean())


@pytest.mark.parametrize("path", ["layer_20/width_16k/average_l0_71/params.npz", "a/b/resid_l0-71/sae.pt", "L0_71.pt"])
def test_an_l0_in_a_name_is_read(path):
    assert l0_in(Path(path)) == 71


@pytest.mark.parametrize("path", ["layer_20/l0_small/params.npz", "l0_71/a/b/c.pt", "model10_71.pt", "trial0_5/a.pt"])
def test_a_name_without_a_number_of_its_own_states_none(path):
    assert l0_in(Path(path)) is None


def test_it_stands_in_the_metrics_or_is_the_k_that_a_threshold_was_set_for():
    assert stated_l0(jumprelu(0.5, metrics={"l0": 12.0}, training={"k": 9})) == 12
    assert stated_l0(jumprelu(0.5, training={"k": 9})) == 9
    assert stated_l0(random_dictionary(N, D, activation=TopK(3), metadata=Metadata(training={"k": 3}))) is None
    assert stated_l0(jumprelu(0.5)) is None


def test_only_what_is_off_by_more_than_the_factor_is_said():
    assert not stated_l0_warnings("a", None, 3)
    assert not stated_l0_warnings("a", 10, 10 * FACTOR) and not stated_l0_warnings("a", 10, 10 / FACTOR)
    for off in (10 * FACTOR + 0.1, 10 / FACTOR - 0.1, 0):
        (warning,) = stated_l0_warnings("a", 10, off)
        assert "states L0 10" in warning and f"{off:.4g}" in warning


@pytest.mark.parametrize("analysis", [pareto, shrinkage])
def test_analyses_say_both_figures_and_nothing_where_they_agree(analysis, tmp_path):
    right = jumprelu(4.0)
    folder = tmp_path / f"average_l0_{round(measured(right))}"
    folder.mkdir()
    right = load(save(right, folder / "right.safetensors"))
    wrong = load(save(replace(jumprelu(0.05), name="wrong"), folder / "wrong.safetensors"))
    assert measured(wrong) > FACTOR * measured(right)
    report = analysis([right, wrong], data=X.numpy(), contexts=30)
    said = [caution for caution in report.cautions if "its file states L0" in caution]
    assert len(said) == 1 and said[0].startswith("wrong:") and f"{round(measured(right))}" in said[0]
