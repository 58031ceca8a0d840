"""The probes analysis: labels that align with tokens, planted latents that are found, tables of the user's own."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analyses import probes
from analyses.features.probes.single_latent_probes import Rows, best_thresholds, f1, of_coordinates, of_dictionary
from analyses.features.probes.token_labels import LabelledTokens, python_tokens, touched
from dictlab import ReLU, Text
from dictlab.errors import DictlabError
from tests.planted import SITE, random_dictionary, tiny_model

CODE = 'def f(x, y):\n    # sum\n    return [x, y]\n\n\nfor i in range(3):\n    print("a", i)\n\n\n'


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for i in range(60):
        (folder / f"m{i}.py").write_text(f"name_{i} = {i}\n" + CODE * 3)
    return folder


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5),
)
def test_a_token_is_touched_exactly_if_it_shares_a_character_with_a_span(lengths, spans):
    ends = np.cumsum(lengths)
    offsets = np.stack([ends - lengths, ends], axis=1)
    expected = [any(set(range(a, b)) & set(range(*span)) for span in spans) for a, b in offsets]
    assert touched(offsets, spans).tolist() == expected


def test_labels_of_packed_contexts_are_those_of_their_characters(model, sources):
    found = python_tokens(Text.files(sources), model.tokenizer, 32, 10, seed=1)
    characters = [model.tokenizer.decode([t]) for t in found.tokens[found.known].tolist()]
    comma = found.labels[:, found.tasks.index("comma")].tolist()
    assert [c == "," for c in characters] == comma  # a token is a character here
    assert not (found.tokens[found.known] == model.tokenizer.eos_token_id).any()


def labelled(y, sequences=20):
    """Rows of several sequences, one task a column of y."""
    known = torch.ones(sequences, len(y) // sequences, dtype=torch.bool)
    names = tuple(f"task {i}" for i in range(y.shape[1]))
    return LabelledTokens(names, torch.zeros(known.shape, dtype=torch.long), known, y)


def planted(seed):
    """Activations, and labels that latent 5 and latent 9 of the dictionary answer exactly."""
    dictionary = replace(random_dictionary(24, 8), activation=ReLU(), b_enc=torch.full((24,), -1.0))
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(seed)) + dictionary.b_pre
    codes = dictionary.encode(x).dense()
    return dictionary, Rows(x, labelled(torch.stack([codes[:, 5] > 0.3, codes[:, 9] > 0], dim=1)))


def test_planted_latents_are_found_with_precision_and_recall_1():
    dictionary, train = planted(0)
    found = of_dictionary(dictionary, SITE, train, planted(1)[1], ridge=1.0, seed=0)
    assert found.columns.tolist() == [5, 9]
    assert found.f1 == pytest.approx(1, abs=0.02)
    beside = of_coordinates(SITE, train, planted(1)[1], ridge=1.0, seed=0)
    assert all((found.f1 > one.f1).all() for one in beside[:2])


def test_the_loss_of_a_probe_is_measured_on_held_out_rows_by_sequence():
    dictionary, train = planted(0)
    held = planted(1)[1]
    found = of_dictionary(dictionary, SITE, train, held, ridge=1.0, seed=0)
    assert found.sums.sums["ce"].shape == (20, 2)
    assert found.sums.sums["n"].sum() == 2000
    assert found.sums.sums["true"].sum(axis=0).tolist() == held.labelled.labels.sum(dim=0).tolist()


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=12))
def test_the_threshold_has_the_largest_f1_there_is(pairs):
    scores = torch.tensor([[float(s)] for s, _ in pairs])
    labels = torch.tensor([[y] for _, y in pairs])
    if not labels.any():
        return

    def at(threshold):
        said = scores >= threshold
        total = {"hits": (said & labels).sum(), "said": said.sum(), "true": labels.sum()}
        return float(f1({k: v.double().numpy()[None] for k, v in total.items()})[0])

    assert at(best_thresholds(scores, labels)) == pytest.approx(max(at(s) for s in scores.flatten()))


def test_the_report_has_a_row_for_each_task_and_set_of_features(model, sources):
    report = probes([random_dictionary(d=16)], model=model, text=Text.files(sources), contexts=12, min_examples=3)
    overview, tasks = report.tables["overview"].frame, report.tables["tasks"].frame
    assert list(overview["features"]) == ["random", "residual channels", "principal components", "dense probe"]
    assert len(tasks) == 4 * report.settings["tasks"]
    assert (overview["probe loss low"] <= overview["probe loss"]).all()
    loss = overview.set_index("features")["probe loss"]
    assert loss["dense probe"] < loss["residual channels"]
    assert report.tables["left_out"].frame["task"].tolist().count("keyword yield") == 1


def table(tmp_path, frame, kind="csv"):
    path = tmp_path / f"table.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    return str(path)


def texts(n=80):
    return ["good day, a fine one" if i % 2 else "bad night, a long dark one" for i in range(n)]


def test_labels_of_whole_texts_make_one_task_or_one_a_class(model, tmp_path):
    frame = pd.DataFrame(
        {"text": texts(), "good": [i % 2 for i in range(80)], "kind": [f"k{i % 3}" for i in range(80)]}
    )
    for pool in ("mean", "last"):
        report = probes(
            [random_dictionary(d=16)], model=model, table=table(tmp_path, frame), labels=("good", "kind"), pooling=pool,
            min_examples=2,
        )  # fmt: skip
        names = set(report.tables["tasks"].frame["task"])
        assert names == {"good", "kind = k0", "kind = k1", "kind = k2"}


def test_labels_of_tokens_are_lists_or_spans_of_characters(model, tmp_path):
    found = texts()
    spans = [[[t.index(","), t.index(",") + 1]] for t in found]
    listed = [[int(c == ",") for c in t] for t in found]
    losses = []
    for column in (spans, listed):
        for kind in ("csv", "parquet"):
            values = [json.dumps(v) for v in column] if kind == "csv" else column
            path = table(tmp_path, pd.DataFrame({"text": found, "label": values}), kind)
            report = probes([random_dictionary(d=16)], model=model, table=path, min_examples=2)
            losses.append(float(report.tables["overview"].frame["probe loss"][0]))
    assert losses == pytest.approx([losses[0]] * 4)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": texts(), "other": 1}, "no column 'label'; it has text, other"),
        ({"label": [0, 1] * 40}, "no column 'text'"),
        ({"text": texts(), "label": 1}, "all of column 'label' is 1"),
        ({"text": texts(), "label": [0.5, 1.0] * 40}, "expected true or false, a class, or a list"),
        ({"text": texts(), "label": "[1, 0]"}, "they do not align"),
        ({"text": texts(), "label": "[[0, 99]]"}, "the characters of its text"),
        ({"text": texts(), "label": ["[[0, 1]]", "1"] * 40}, "lists in some rows"),
        ({"text": texts(), "label": "[[0"}, "no list"),
        ({"text": texts(), "label": "[]"}, "false in all"),
        ({"text": ["", *texts()[1:]], "label": [0, 1] * 40}, "has no text"),
        ({"text": texts(), "label": [f"c{i}" for i in range(80)]}, "80 different labels"),
        ({"text": ["only one"], "label": [1]}, "2 are needed of each"),
        ({"text": texts(), "label": [0, 1] * 36 + [0.5] + [1, 0] * 3 + [1]}, "row 73: 'label' is 0.5"),
    ],
)
def test_a_bad_table_is_answered_in_a_sentence(model, tmp_path, columns, said):
    path = table(tmp_path, pd.DataFrame(columns))
    with pytest.raises(DictlabError, match=said.replace("[", r"\[")):
        probes([random_dictionary(d=16)], model=model, table=path, min_examples=2)


@pytest.mark.parametrize(
    ("name", "labels", "said"),
    [
        ("missing.csv", ("label",), "no such file"),
        ("notes.txt", ("label",), "expected a file that ends in .parquet"),
        ("whole.csv", (), "no column of labels was named"),
    ],
)
def test_a_table_that_is_none_is_answered_in_a_sentence(model, tmp_path, name, labels, said):
    (tmp_path / "notes.txt").write_text("text,label")
    with pytest.raises(DictlabError, match=said):
        probes([random_dictionary(d=16)], model=model, table=str(tmp_path / name), labels=labels)


def test_a_dictionary_of_another_width_than_its_site_is_refused_before_anything_is_run(model):
    with pytest.raises(DictlabError, match=r"reads activations of width 8, and blocks.1.hook_resid_pre .* is 16 wide"):
        probes([random_dictionary(d=8)], model=model)


def test_an_interruption_leaves_the_dictionaries_that_are_complete(model, tmp_path, monkeypatch):
    module = importlib.import_module(
        "analyses.features.probes.probes"
    )  # the package offers the function under this name
    path, whole = table(tmp_path, pd.DataFrame({"text": texts(), "label": [0, 1] * 40})), module.of_dictionary
    given = [random_dictionary(d=16, seed=i, name=f"d{i}") for i in range(3)]

    def stopped_at(name):
        def one(dictionary, *args, **kwargs):
            if dictionary.name == name:
                raise KeyboardInterrupt
            return whole(dictionary, *args, **kwargs)

        monkeypatch.setattr(module, "of_dictionary", one)
        return probes(given, model=model, table=path, min_examples=2)

    report = stopped_at("d2")
    assert "PARTIAL: interrupted after 2 of 3 dictionaries." in report.warnings
    assert report.tables["overview"].frame["features"].tolist()[:2] == ["d0", "d1"]
    with pytest.raises(KeyboardInterrupt):
        stopped_at("d0")


def test_text_that_is_no_python_is_refused(model, tmp_path):
    (tmp_path / "a.txt").write_text("no code at all, and quite a lot of it\n" * 2000)
    with pytest.raises(DictlabError, match="less than one context of 32 tokens of Python"):
        probes([random_dictionary(d=16)], model=model, text=Text.files(tmp_path))
