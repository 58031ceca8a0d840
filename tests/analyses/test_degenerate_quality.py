"""Data that do not vary, or are one row, or hold an outlier; a dictionary of which nothing is active: a number with a
warning, or one sentence. Never another error, and never `nan` among the words."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from analyses import ablation, downstream, pareto, pathology, scaling, shrinkage, verification
from dictlab import DictlabError, ReLU, TopK
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Report
from tests.planted import many_documents, random_dictionary, tiny_model

X = torch.randn(40, 8, 16, generator=torch.Generator().manual_seed(0))
OUTLIER = X.clone()
OUTLIER[3, 2] = 1e6
ARRAYS = {
    "constant": torch.ones(40, 8, 16),
    "zero": torch.zeros(40, 8, 16),
    "one row": X[0, :1],
    "one sequence": X[:1],
    "an outlier": OUTLIER,
    "rows of padding": torch.cat([X[:20], torch.zeros(20, 8, 16)]),
}
ON_ARRAYS: dict[str, Callable[..., Report]] = {
    "shrinkage": lambda d, **given: shrinkage([d], contexts=6, l0_levels=(1, 2), **given),
    "pareto": lambda d, **given: pareto([d], contexts=6, **given),
    "verification": lambda d, **given: verification(d, contexts=6, **given),
    "scaling": lambda d, **given: scaling(of_four_widths(d), remeasure=True, contexts=6, **given),
}
IN_MODEL: dict[str, Callable[..., Report]] = {
    "ablation": lambda d, **given: ablation([d], contexts=3, latents_per_token=2, positions=4, **given),
    "downstream": lambda d, **given: downstream([d], contexts=3, **given),
    "pathology": lambda d, **given: pathology(
        [d], contexts=3, context_length=12, draws=1, random_points=0, sweep_contexts=1, positions_after=1, **given
    ),
    "shrinkage": lambda d, **given: shrinkage([d], contexts=3, l0_levels=(1, 2), **given),
}
WITHOUT_VALUE = re.compile(r"\b(nan|inf)\b")


def dictionary() -> Dictionary:
    return random_dictionary(24, 16, activation=TopK(4), name="d")


def dead() -> Dictionary:
    made = random_dictionary(24, 16, activation=ReLU(), name="dead")
    return replace(made, b_enc=torch.full((24,), -1e4))


def of_four_widths(given: Dictionary) -> list[Dictionary]:
    """Dictionaries of k = 4 with the encoder bias of the one given, three of other widths."""
    family = [random_dictionary(n, 16, activation=TopK(4), seed=n, name=f"of {n}") for n in (16, 32, 64)]
    bias = float(given.b_enc[0])
    return [given, *(replace(d, b_enc=torch.full((d.n_latents,), bias)) for d in family)]


def words(report: Report) -> str:
    return " ".join([report.title, report.summary, *report.warnings])


@pytest.mark.filterwarnings("ignore:Data has no positive values")
@pytest.mark.parametrize("data", ARRAYS)
@pytest.mark.parametrize("name", ON_ARRAYS)
def test_an_array_of_nothing_much_is_answered(name, data):
    try:
        report = ON_ARRAYS[name](dictionary(), data=ARRAYS[data])
    except DictlabError as error:
        assert "\n" not in str(error) and "does not vary" in str(error)
        return
    assert not WITHOUT_VALUE.search(words(report))
    if data in ("constant", "zero", "one row"):
        assert "do not vary" in words(report)
    if data in ("one row", "one sequence") and name != "verification":
        assert "One sequence" in words(report)


@pytest.mark.filterwarnings("ignore:Data has no positive values")
@pytest.mark.parametrize("name", ON_ARRAYS)
def test_a_dictionary_of_which_nothing_is_active_has_no_nan_in_its_words(name):
    assert not WITHOUT_VALUE.search(words(ON_ARRAYS[name](dead(), data=X)))


@pytest.mark.filterwarnings("ignore:Data has no positive values")
@pytest.mark.parametrize("name", IN_MODEL)
def test_nothing_active_in_the_model(name, tmp_path):
    report = IN_MODEL[name](dead(), model=tiny_model(), text=many_documents(tmp_path))
    assert not WITHOUT_VALUE.search(words(report))


@pytest.mark.parametrize("name", IN_MODEL)
def test_an_outlier_of_a_million_in_the_model(name, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.model.transformer.wpe.weight[5] *= 1e6
    report = IN_MODEL[name](dictionary(), model=model, text=many_documents(tmp_path))
    assert not WITHOUT_VALUE.search(words(report)) and "Attention sinks" in words(report)


@pytest.mark.parametrize("name", IN_MODEL)
def test_thirty_short_prompts_are_measured_or_refused_in_a_sentence(name):
    with pytest.raises(DictlabError, match=r"held-?out split holds"):
        IN_MODEL[name](dictionary(), model=tiny_model(), text=[f"ab c{i}" for i in range(30)])


def test_a_law_of_as_many_runs_as_it_needs_has_no_interval_and_no_nan_in_its_words():
    """Every resample with enough settings would be the whole."""
    runs = of_four_widths(dictionary())[1:]
    report = scaling(runs, remeasure=True, data=X, contexts=6)
    assert report.tables["fits"].frame["alpha low"].isna().all()
    assert "alpha = " in report.summary and not WITHOUT_VALUE.search(words(report))
