"""The same argument has the same name, annotation, default and sentence in every analysis, and the documents say so too.

An argument's entry under `Args:` begins with the sentence that all analyses share, word for word; what follows it is
about this analysis alone. There is one exception, `PLACES`; annotations and defaults have none.
"""

import inspect
import re
from collections import defaultdict
from importlib.metadata import entry_points
from pathlib import Path

import pytest

DOCUMENTS = Path(__file__).parents[2] / "docs" / "reports"
ANALYSES = {
    entry.name: entry.load() for entry in entry_points(group="dictlab.analyses") if entry.value.startswith("analyses.")
}

PLACES = {  # what is said of `dictionaries`: how many an analysis takes, and whether at one site, is asked first
    "One or more at the same site.",
    "Two or more at the same site.",
    "One or more, at one site or at several.",
    "Dictionaries, or folders of training runs, that differ in width, k or tokens.",
}
NO_SAMPLE = {  # analyses that measure on no activations, and so take no token selection
    "meta": "compares weights",
    "training": "reads the logs of runs",
}


def arguments(analysis) -> dict[str, str]:
    """Each argument under `Args:` of a docstring, and what is said of it, in one line."""
    doc = inspect.cleandoc(analysis.__doc__ or "")
    found = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.DOTALL | re.MULTILINE)
    entries = re.split(r"^ {4}(\w+): ", found[1] if found else "", flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[^.]\.) (?=[A-Z0-9])", text, maxsplit=1)[0]


def shared() -> list[str]:
    counts = defaultdict(int)
    for analysis in ANALYSES.values():
        for name in inspect.signature(analysis).parameters:
            counts[name] += 1
    return sorted(name for name, count in counts.items() if count > 1)


@pytest.mark.parametrize("name", sorted(ANALYSES))
def test_the_docstring_is_about_the_arguments_that_there_are(name):
    assert list(arguments(ANALYSES[name])) == list(inspect.signature(ANALYSES[name]).parameters)


@pytest.mark.parametrize("argument", shared())
def test_an_argument_is_the_same_in_every_analysis(argument):
    readings = defaultdict(list)
    for name, analysis in ANALYSES.items():
        parameter = inspect.signature(analysis).parameters.get(argument)
        if parameter is not None:
            readings[str(parameter.annotation), repr(parameter.default)].append(name)
    assert len(readings) == 1, dict(readings)


@pytest.mark.parametrize("argument", shared())
def test_an_argument_is_described_by_the_same_sentence_in_every_analysis(argument):
    sentences = defaultdict(list)
    for name, analysis in ANALYSES.items():
        if argument in (described := arguments(analysis)):
            sentences[first_sentence(described[argument])].append(name)
    if argument == "dictionaries":
        assert set(sentences) == PLACES
    else:
        assert len(sentences) == 1, dict(sentences)


@pytest.mark.parametrize("name", sorted(ANALYSES))
def test_shared_arguments_stand_in_the_same_order(name):
    """Dictionaries first; then model, text and data; an analysis' own; and in the end what is sampled, seed, device."""
    order = ["model", "text", "data", "tokens", "contexts", "seed", "device", "token_selection"]
    given = [argument for argument in inspect.signature(ANALYSES[name]).parameters if argument in order]
    assert given == [argument for argument in order if argument in given]


@pytest.mark.parametrize("name", sorted(ANALYSES))
def test_what_is_measured_on_activations_takes_a_token_selection(name):
    taken = "token_selection" in inspect.signature(ANALYSES[name]).parameters
    assert taken == (name not in NO_SAMPLE)
    assert ("device" in inspect.signature(ANALYSES[name]).parameters) == (name not in NO_SAMPLE)


@pytest.mark.parametrize("page", sorted(DOCUMENTS.glob("*.md")), ids=lambda page: page.stem)
def test_the_page_of_an_analysis_names_arguments_that_there_are(page):
    """The first column of the table of parameters, where the page has one, and the defaults that are written as code."""
    known = inspect.signature(ANALYSES[page.stem]).parameters
    table = re.search(r"\| parameter \|.*?\n\n", page.read_text(), re.DOTALL)
    for row in table[0].strip().splitlines()[2:] if table else []:
        names, default = row.split("|")[1:3]
        for name in re.findall(r"`(\w+)`", names):
            assert name in known, f"{page.name} describes {name}"
        if re.fullmatch(r" [\d,.]+ ", default):
            values = {float(number.replace(",", "")) for number in default.split()}
            assert values == {known[name].default for name in re.findall(r"`(\w+)`", names)}, row
