"""Data of which little can be said: a number with a warning, or one sentence; never a traceback, never a NaN in words."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from analyses import frankenstein, geometry, matching, meta, novelty, path, stitching
from dictlab import Dictionary
from dictlab.errors import DictlabError
from dictlab.reports.report import Report
from tests.analyses.test_equal_functions import D, M, N, X, dictionary

ANALYSES: dict[str, Callable[..., Report]] = {
    "matching": lambda a, b, **data: matching([a, b], permutations=2, min_active_tokens=5, **data),
    "geometry": lambda a, b, **data: geometry([a, b], permutations=5, umap_points=0, **data),
    "novelty": lambda a, b, **data: novelty(a, b, **data),
    "path": lambda a, b, **data: path(a, [b], random_orders=1, contexts=8, **data),
    "stitching": lambda a, b, **data: stitching(a, [b], contexts=8, **data),
    "stitching by search": lambda a, b, **data: stitching(a, [b], select="optimal", contexts=8, **data),
    "frankenstein": lambda a, b, **data: frankenstein([a, b], contexts=8, **data),
}


def with_outlier() -> torch.Tensor:
    x = X[:40].clone()
    x[3, 4] = 1e6
    return x


def with_padding() -> torch.Tensor:
    x = X[:40].clone()
    x[:, 6:] = 0
    return x


DATA = {
    "constant": torch.full((40, 12, D), 0.7),
    "all zero": torch.zeros(40, 12, D),
    "one row": X[0, :1],
    "one sequence": X[:1],
    "padding": with_padding(),
    "30 short prompts": X[:30, :3],
    "an outlier": with_outlier(),
    "one direction": X[:40, :, :1] * torch.linspace(-1, 1, D),
}


def dead(dictionary: Dictionary) -> Dictionary:
    return replace(dictionary, b_enc=torch.full_like(dictionary.b_enc, -1e4))


def check_words(report: Report) -> None:
    words = " ".join((report.title, report.summary, *report.warnings, *(t.caption for t in report.tables.values())))
    assert not re.search(r"\b(nan|inf|NaN|None)\b", words), words


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize("data", DATA)
def test_little_data_is_a_number_or_a_sentence(name, data):
    small, large = dictionary("topk", N, 1, "small"), dictionary("topk", M, 2, "large")
    x = DATA[data]
    try:
        check_words(ANALYSES[name](small, large, data=x, tokens=x.reshape(-1, D).shape[0]))
    except DictlabError as error:
        assert str(error).count(". ") <= 1 and data not in ("padding", "an outlier", "30 short prompts"), str(error)


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize("which", ["small", "large"])
def test_an_entirely_dead_dictionary_is_named(name, which):
    small, large = dictionary("relu", N, 1, "small"), dictionary("relu", M, 2, "large")
    pair = (dead(small), large) if which == "small" else (small, dead(large))
    try:
        report = ANALYSES[name](*pair, data=X[:40], tokens=480)
    except DictlabError as error:
        assert which in str(error)
    else:
        check_words(report)
        assert any(which in warning and "active" in warning for warning in report.warnings)


def test_a_dead_meta_dictionary_is_named():
    with pytest.raises(DictlabError, match="m: 0 of its latents are active"):
        meta(dead(dictionary("relu", N, 1, "m")), dictionary("relu", M, 2, "large"), [])


@pytest.mark.parametrize(
    ("analysis", "options", "says"),
    [
        (lambda a, b, **o: stitching(a, [b], **o), {"refit": "all"}, "refit is 'all'; expected one of decoder, bias, none"),
        (lambda a, b, **o: stitching(a, [b], **o), {"select": "worst"}, "select is 'worst'; expected one of best, effect"),
        (lambda a, b, **o: stitching(a, [b], **o), {"order": "best"}, "order is 'best'; expected one of cosine"),
        (lambda a, b, **o: path(a, [b], **o), {"bias": "none"}, "bias is 'none'; expected one of best, keep, blend"),
        (lambda a, b, **o: path(a, [b], **o), {"order": "best"}, "order is 'best'"),
        (lambda a, b, **o: novelty(a, b, **o), {"latent_choice": "novel"}, "expected one of useful, random"),
        (lambda a, b, **o: frankenstein([a, b], **o), {"compact": "yes"}, "compact is 'yes'; expected one of no, codes"),
        (lambda a, b, **o: frankenstein([a, b], **o), {"written_refit": "some"}, "written_refit is 'some'"),
    ],
)  # fmt: skip
def test_a_choice_that_there_is_not_is_refused_before_any_file_is_opened(analysis, options, says):
    with pytest.raises(DictlabError, match=says):
        analysis("no-such-file.safetensors", "nor-this.safetensors", **options)


@pytest.mark.parametrize("name", ANALYSES)
def test_that_signs_are_one_is_said_by_all(name):
    small, large = dictionary("abstopk", N, 1, "small"), dictionary("abstopk", M, 2, "large")
    report = ANALYSES[name](small, large, data=X[:40], tokens=480)
    assert any("either sign" in warning for warning in report.warnings)
