"""Probes and explanations where little can be said: a number with a warning or one sentence, and never `nan` in words."""

import re
from dataclasses import replace

import pytest
import torch

from analyses import explanations, probes
from dictlab import DictlabError, ReLU, Text, TopK
from tests.planted import random_dictionary, tiny_model

ANALYSES = {
    "probes": lambda d, **given: probes([d], contexts=6, min_examples=3, **given),
    "explanations": lambda d, **given: explanations(
        [d], latents=3, examples=2, max_pattern_length=4, tokens=96, **given
    ),
}
LIVE = random_dictionary(24, 16, activation=TopK(4), name="d")
DEAD = replace(random_dictionary(24, 16, activation=ReLU(), name="dead"), b_enc=torch.full((24,), -1e4))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for i in range(30):
        (folder / f"{i}.py").write_text(f"name_{i} = {i}\n" + "def f(x, y):\n    return [x, y]\n" * 9)
    return Text.files(folder)


def words(report) -> str:
    captions = (table.caption for table in report.tables.values())
    return " ".join([report.title, report.summary, *report.warnings, *captions])


@pytest.mark.parametrize("name", ANALYSES)
def test_an_outlier_of_a_million_is_said(name, sources):
    model = tiny_model()
    with torch.no_grad():
        model.model.transformer.wpe.weight[5] *= 1e6
    said = words(ANALYSES[name](LIVE, model=model, text=sources))
    assert not re.search(r"\b(nan|inf|None)\b", said) and "Attention sinks" in said


def test_nothing_active_explains_nothing(sources):
    report = probes([DEAD], contexts=6, min_examples=3, model=tiny_model(), text=sources)
    assert not re.search(r"\b(nan|inf|None)\b", words(report)) and "1.00 of the labels' entropy" in report.summary
    with pytest.raises(DictlabError, match="dead: no latent is active on 96 training tokens"):
        ANALYSES["explanations"](DEAD, model=tiny_model(), text=sources)


@pytest.mark.parametrize(
    ("name", "says"), [("probes", "0 tasks at an F1"), ("explanations", "changes nothing in the logits")]
)
def test_activations_that_do_not_vary(name, says, sources):
    model = tiny_model()
    with torch.no_grad():
        model.model.transformer.wte.weight.zero_()
        model.model.transformer.wpe.weight.zero_()
    try:
        said = words(ANALYSES[name](LIVE, model=model, text=sources))
    except DictlabError as error:
        said = str(error)
    assert says in said and not re.search(r"\b(nan|inf|None)\b", said)


@pytest.mark.parametrize("text", [[f"a = {i}" for i in range(30)], ["x = [1, 2]\n" * 40]])
@pytest.mark.parametrize("name", ANALYSES)
def test_too_little_text_is_refused_in_a_sentence(name, text):
    with pytest.raises(DictlabError, match=r"held-?out split holds less than one context|expected two or more"):
        ANALYSES[name](LIVE, model=tiny_model(), text=text)
