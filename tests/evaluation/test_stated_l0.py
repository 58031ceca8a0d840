"""An L0 that is not the one a file states is said, wherever it is measured."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from analyses import (
    ablation,
    downstream,
    explanations,
    frankenstein,
    geometry,
    matching,
    novelty,
    pareto,
    path,
    pathology,
    probes,
    shrinkage,
    stitching,
    verification,
)
from dictlab import Metadata, Text, load, save
from dictlab.dictionary.activation_functions import BatchTopK, JumpReLU, TopK
from dictlab.evaluation.stated_l0 import FACTOR, stated_l0, stated_l0_warnings
from dictlab.formats.names import l0_in
from tests.planted import SITE, many_documents, random_dictionary, tiny_model

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


def right_and_wrong(folder, **about):
    """Two files that state the same L0, which one of them has."""
    right = jumprelu(4.0, **about)
    (folder / f"average_l0_{round(measured(right))}").mkdir()
    right = load(save(right, folder / f"average_l0_{round(measured(right))}" / "right.safetensors"))
    wrong = load(save(replace(jumprelu(0.05, **about), name="wrong"), right.path.parent / "wrong.safetensors"))
    assert measured(wrong) > FACTOR * measured(right)
    return [right, wrong]


ON_ARRAYS = {
    "frankenstein": lambda ds, **data: frankenstein(ds, contexts=5, **data),
    "geometry": lambda ds, **data: geometry(ds, permutations=2, umap_points=0, tokens=360, **data),
    "matching": lambda ds, **data: matching(ds, permutations=2, tokens=360, **data),
    "novelty": lambda ds, **data: novelty(*ds, tokens=360, **data),
    "pareto": lambda ds, **data: pareto(ds, contexts=30, **data),
    "path": lambda ds, **data: path(ds[0], ds[1:], random_orders=0, contexts=5, **data),
    "shrinkage": lambda ds, **data: shrinkage(ds, contexts=30, l0_levels=(1,), **data),
    "stitching": lambda ds, **data: stitching(ds[0], ds[1:], contexts=5, cards=0, **data),
    "verification": lambda ds, **data: verification(ds[1].path, contexts=5, **data),
}
IN_MODEL = {
    "ablation": lambda ds, **given: ablation(ds, contexts=2, latents_per_token=1, positions=2, **given),
    "downstream": lambda ds, **given: downstream(ds, contexts=2, principal_directions=False, **given),
    "explanations": lambda ds, **given: explanations(ds, latents=1, examples=2, tokens=64, **given),
    "pathology": lambda ds, **given: pathology(
        ds, contexts=2, context_length=12, draws=1, random_points=0, sweep_contexts=0, positions_after=0, **given
    ),
    "probes": lambda ds, **given: probes(ds, contexts=4, min_examples=2, **given),
}


def notes(report) -> list[str]:
    return [caution for caution in report.cautions if "its file states L0" in caution]


@pytest.mark.parametrize("name", sorted(ON_ARRAYS.keys() - {"verification"}))
def test_analyses_of_an_array_say_both_figures_once_and_nothing_where_they_agree(name, tmp_path):
    dictionaries = right_and_wrong(tmp_path)
    (said,) = notes(ON_ARRAYS[name](dictionaries, data=X.numpy()))
    assert said.startswith("wrong") and f"{round(measured(dictionaries[0]))}" in said


def test_verification_says_both_figures_once_in_the_check_of_the_stated_l0(tmp_path):
    right, wrong = right_and_wrong(tmp_path)
    report = verification(wrong.path, contexts=5, data=X.numpy())
    (said,) = [caution for caution in report.cautions if "L0" in caution]
    assert said.startswith("stated L0: ") and f"stated {round(measured(right))}," in said
    assert float(said.split()[2]) == pytest.approx(measured(wrong), rel=0.05), "measured on a part of the same rows"
    assert not report.passed


@pytest.mark.parametrize("name", IN_MODEL)
def test_analyses_in_a_model_say_both_figures_once(name, tmp_path):
    if name == "probes":
        for i in range(20):
            (tmp_path / f"{i}.py").write_text(f"name_{i} = {i}\n" + "def f(x, y):\n    return [x, y]\n" * 9)
    text = Text.files(tmp_path) if name == "probes" else many_documents(tmp_path)
    dictionary = jumprelu(0.05, site=SITE, metrics={"l0": 0.1})
    (said,) = notes(IN_MODEL[name]([dictionary], model=tiny_model(), text=text))
    assert "states L0 0.1, and" in said


@pytest.mark.parametrize("name", ["pareto", "matching", "verification"])
def test_a_batch_top_k_without_a_threshold_is_warned_about(name, tmp_path):
    """By every report alike, of whatever it is given."""
    one = replace(random_dictionary(N, D, activation=BatchTopK(3)), name="batchwise")
    other = random_dictionary(N, D, activation=TopK(3), seed=1, name="other")
    paths = [replace(d, path=save(d, tmp_path / f"{d.name}.safetensors")) for d in (other, one)]
    said = [caution for caution in ON_ARRAYS[name](paths, data=X.numpy()).cautions if "without a threshold" in caution]
    assert len(said) == 1 and said[0].startswith("batchwise:")
