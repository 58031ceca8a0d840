"""Explanations by a language model: a planted one that knows the truth, one that tosses coins, and what is sent."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import explanations
from analyses.autointerp.examples import (
    Grid,
    Trial,
    Window,
    detection_trials,
    fuzzing_trials,
    shifted_marks,
    stratified,
    top_windows,
)
from analyses.autointerp.prompts import (
    EXPLANATION_BYTES,
    explanation_question,
    judgement_question,
    marked,
    read_explanation,
    read_judgements,
)
from analyses.autointerp.scores import balanced_accuracy
from analyses.autointerp.settings import Interpreter
from analyses.common.firings import LatentFirings
from dictlab import Dictionary, Metadata, ReLU, cli, save
from dictlab.errors import DictlabError
from tests.loopback import EXPLAIN, asked, error, excerpts, oracle, serving
from tests.planted import tiny_model, tiny_tokenizer

START = "blocks.0.hook_resid_pre"
LETTERS = "qxZK"
SECRET = "sk-nobody-0123456789"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("DICTLAB_API_KEY", raising=False)


def letter_model():
    """The stream that enters the first block is the one-hot letter."""
    model = tiny_model(d=98)
    with torch.no_grad():
        model.model.transformer.wte.weight.copy_(torch.eye(97, 98))
        model.model.transformer.wpe.weight.zero_()
    return model


def letter_dictionary(name="letters", letters=LETTERS):
    """A latent for each letter, or for each group of letters, active where one of them stands."""
    ids = [tiny_tokenizer()(group)["input_ids"] for group in letters]
    W, zero = torch.stack([torch.eye(98)[own].sum(dim=0) for own in ids], dim=1), torch.zeros(98)
    about = Metadata(site=START)
    return Dictionary(W, torch.full((len(ids),), -0.5), W.T.clone(), zero, zero, ReLU(), metadata=about, name=name)


def asking(server, tmp_path, **options):
    given = {"judged": 6, "together": 3, "window": 16, "shown": 3, "timeout": 30.0, "retries": 0}
    return Interpreter(server.address, "planted", answers=tmp_path / "answers.sqlite", **{**given, **options})


def explained(interpreter, text, dictionaries=None, **options):
    given = dictionaries or [letter_dictionary()]
    return explanations(
        given,
        model=letter_model(),
        text=text,
        tokens=1440,
        examples=1,
        max_pattern_length=2,
        interpreter=interpreter,
        **options,
    )


def test_a_scorer_that_knows_the_latents_has_score_1(text, tmp_path):
    with serving(oracle) as server:
        report = explained(asking(server, tmp_path), text)
    row = report.tables["interpretation"].frame.loc[0]
    assert row["latents"] == 4 and row["detection"] == 1.0 and row["fuzzing"] == 1.0 and row["unread questions"] == 0
    latents = report.tables["interpretation_latents"].frame
    assert latents["explanation"].tolist() == [f"The character {letter}." for letter in LETTERS]
    assert (latents["detection right contexts"] == 3).all() and (latents["detection wrong taken for right"] == 0).all()
    judged = report.tables["interpretation_judgements"].frame
    assert (judged["truth"] == judged["answer"]).all() and len(judged) == 4 * 12


def test_a_scorer_that_knows_another_latent_does_not(text, tmp_path):
    def confused(messages):
        return "The character #." if asked(messages) == EXPLAIN else oracle(messages)

    with serving(confused) as server:
        row = explained(asking(server, tmp_path), text).tables["interpretation"].frame.loc[0]
    assert row["detection"] < 0.9 and row["fuzzing"] == 0.5  # the other character is never marked


def test_a_scorer_that_tosses_coins_has_score_one_half(text, tmp_path):
    def coins(messages):  # the same ones for the same contexts, whatever the order of questions
        if asked(messages) == EXPLAIN:
            return "Coins."
        return json.dumps([hashlib.sha256(text.encode()).digest()[0] % 2 for text in excerpts(messages)])

    with serving(coins) as server:
        dictionary = letter_dictionary(letters="abcdefghijklmnopqrstuvwxyzABCDEFGHIJ")
        frame = explained(asking(server, tmp_path), text, [dictionary], latents=0).tables["interpretation"]
    row = frame.frame.loc[0]
    for kind in ("detection", "fuzzing"):
        assert row[f"{kind} low"] <= 0.5 <= row[f"{kind} high"] and 0 < row[f"{kind} high"] - row[f"{kind} low"] < 0.3


def test_two_dictionaries_are_compared_by_the_test_of_the_paper(text, tmp_path):
    def half_blind(messages):  # of the second dictionary's letters it knows nothing
        given = messages[1]["content"]
        if asked(messages) != EXPLAIN and re.search("Description: The character [a-d]", given):
            return json.dumps([0] * len(excerpts(messages)))
        return oracle(messages)

    with serving(half_blind) as server:
        pair = [letter_dictionary("seen"), letter_dictionary("unseen", "abcd")]
        report = explained(asking(server, tmp_path), text, pair)
    frame = report.tables["interpretation_differences"].frame
    assert frame[["first", "second"]].drop_duplicates().to_numpy().tolist() == [["seen", "unseen"]]
    assert frame["difference"].tolist() == [0.5, 0.5] and (frame["p"] < 0.05).all()


def test_the_second_run_sends_nothing_and_says_the_same(text, tmp_path):
    with serving(oracle) as server:
        first = explained(asking(server, tmp_path), text)
        sent = len(server.requests)
        again = explained(asking(server, tmp_path), text)
        assert len(server.requests) == sent > 0
    for name in ("interpretation", "interpretation_latents", "interpretation_judgements"):
        assert first.tables[name].frame.equals(again.tables[name].frame)
    assert again.tables["interpretation_cost"].frame["requests"].tolist() == [0] * 5


def test_an_interrupted_run_sends_only_the_rest(text, tmp_path):
    with serving(oracle) as server:
        whole = explained(asking(server, tmp_path / "whole"), text)
        needed = len(server.requests)

    with serving(oracle, [None] * 9 + [error(503, "gone")]) as server:
        where = asking(server, tmp_path, concurrency=1)
        with pytest.raises(DictlabError, match="goes on from there"):
            explained(where, text)
        assert len(server.requests) == 10
        resumed = explained(where, text)
        assert len(server.requests) == needed + 1
    for name in ("interpretation", "interpretation_latents", "interpretation_judgements"):
        assert whole.tables[name].frame.equals(resumed.tables[name].frame)


def test_the_estimate_is_what_the_server_counts(text, tmp_path):
    def longest(messages):  # as long as an explanation may be, so that the estimate is exact
        return "y" * EXPLANATION_BYTES if asked(messages) == EXPLAIN else json.dumps([1] * len(excerpts(messages)))

    with serving(longest) as server:
        estimate = explained(asking(server, tmp_path, estimate=True), text)
        assert not server.requests and "Nothing was sent" in estimate.summary
        report = explained(asking(server, tmp_path), text)
        expected = estimate.tables["interpretation_cost"].frame.set_index("what").loc["expected"]
        sent = report.tables["interpretation_cost"].frame.set_index("what").loc["sent"]
        assert expected["requests"] == sent["requests"] == len(server.requests)
        assert expected["tokens in"] == sent["tokens in"] and expected["tokens out"] >= sent["tokens out"]


def test_a_cost_above_the_budget_is_refused_before_anything_is_sent(text, tmp_path):
    with serving(oracle) as server:
        with pytest.raises(DictlabError, match=r"more than the budget of 0\.001; nothing was sent"):
            explained(asking(server, tmp_path, price=(10.0, 30.0), budget=0.001), text)
        assert not server.requests


def test_answers_that_cannot_be_read_are_asked_for_again(text, tmp_path):
    def clumsy(messages):
        if asked(messages) != EXPLAIN and len(messages) == 2:
            return "I think the second one."
        return oracle(messages)

    with serving(clumsy) as server:
        row = explained(asking(server, tmp_path), text).tables["interpretation"].frame.loc[0]
        sent = len(server.requests)
        explained(asking(server, tmp_path), text)
        assert len(server.requests) == sent == 4 + 2 * 16
    assert row["detection"] == row["fuzzing"] == 1.0 and row["unread questions"] == 0


def test_answers_that_stay_unreadable_are_counted_and_not_dropped(text, tmp_path):
    def mute(messages):
        given = messages[1]["content"]
        if (
            asked(messages) != EXPLAIN
            and "character q" in given
            and excerpts(messages)[0] == first.setdefault(asked(messages), excerpts(messages)[0])
        ):
            return "no"
        return oracle(messages)

    first: dict[str, str] = {}
    with serving(mute) as server:
        report = explained(asking(server, tmp_path, concurrency=1), text)
    row = report.tables["interpretation"].frame.loc[0]
    assert row["unread questions"] == 2 and row["questions"] == 4 + 16
    assert report.tables["interpretation_judgements"].frame["answer"].isna().sum() == 6
    assert any("2 of 20 questions got no answer" in warning for warning in report.warnings)
    known = report.tables["interpretation_latents"].frame.set_index("explanation").loc["The character q."]
    assert known["detection right contexts"] + known["detection wrong contexts"] == 3


def test_nonsense_ends_the_run_with_a_message(text, tmp_path):
    with (
        serving(lambda messages: "Tea?" if asked(messages) != EXPLAIN else "A letter.") as server,
        pytest.raises(DictlabError, match=r"without an answer that can be read; the last one was 'Tea\?'"),
    ):
        explained(asking(server, tmp_path), text)
    with (
        serving(lambda messages: "  ") as server,
        pytest.raises(DictlabError, match=r"\(explanations\).*needs more tokens"),
    ):
        explained(asking(server, tmp_path), text)


def test_an_explanation_is_text_whatever_it_looks_like(text, tmp_path):
    attack = "<script>alert(1)</script> \x1b[31m ]]> \ud800 ÿ"

    def hostile(messages):
        return attack if asked(messages) == EXPLAIN else json.dumps([1] * len(excerpts(messages)))

    with serving(hostile, usage=False) as server:
        report = explained(asking(server, tmp_path), text)
    folder = report.save(tmp_path / "report")
    page = (folder / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in report.tables["interpretation_latents"]._repr_html_()
    assert "\x1b" not in (folder / "interpretation_latents.csv").read_text()


def test_the_key_is_in_no_file_that_is_written(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DICTLAB_API_KEY", SECRET)

    def telltale(messages):
        return f"Somebody's {SECRET}." if asked(messages) == EXPLAIN else json.dumps([1] * len(excerpts(messages)))

    with serving(telltale) as server:
        report = explained(asking(server, tmp_path), text)
        assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
    report.save(tmp_path / "report")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"report.json", "report.html", "interpretation_latents.csv", "answers.sqlite"} <= {
        path.name for path in written
    }
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET not in str(report) + "".join(capsys.readouterr())
    assert report.tables["interpretation_latents"].frame["explanation"].tolist() == ["Somebody's [key]."] * 4


def test_the_command_takes_the_endpoint_as_options(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DICTLAB_API_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    model, dictionary = letter_model(), letter_dictionary()
    model.model.save_pretrained("model")
    model.tokenizer.save_pretrained("model")
    save(dictionary, "letters.safetensors")
    options = (
        "--tokens 1440 --examples 1 --max-pattern-length 2 --judged 6 --together 3 --window 16 --shown 3 --retries 0"
    )
    with serving(oracle) as server:
        command = ["report", "explanations", "letters.safetensors", "--model", "model", "--text", text.name]
        command += [*options.split(), "--endpoint", server.address, "--explainer", "planted", "--price", "2.5", "10"]
        assert cli.main([*command, "--estimate", "--out", "cost"]) == 0 and not server.requests
        assert cli.main([*command, "--out", "made"]) == 0 and server.requests
        assert cli.main([*command, "--out", "again", "--budget", "-1"]) == 2
        assert "budget is -1" in capsys.readouterr().err
    assert pd.read_csv("made/interpretation.csv")["detection"].tolist() == [1.0]
    kept = json.loads(Path("made/report.json").read_text())["provenance"]["settings"]
    assert kept["endpoint"] == server.address and kept["price"] == [2.5, 10.0] and kept["judged"] == 6
    assert Path("out/answers.sqlite").exists()
    assert not [p for p in Path().rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


def test_without_an_endpoint_the_report_is_as_it_was(text):
    report = explained(None, text)
    assert "interpretation" not in report.tables and "endpoint" not in report.settings


def test_latents_that_are_too_rare_are_left_out_and_said(text, tmp_path):
    both = letter_dictionary("groups", ["abcd", "efgh"])
    with serving(lambda m: "Letters." if asked(m) == EXPLAIN else json.dumps([1] * len(excerpts(m)))) as server:
        report = explained(asking(server, tmp_path, judged=30), text, [letter_dictionary(letters="qx"), both])
        row = report.tables["interpretation"].frame.set_index("dictionary")
        assert row["left out"].tolist() == [2, 0]
        with pytest.raises(DictlabError, match="none of the 2 latents can be interpreted"):
            explained(asking(server, tmp_path, judged=30), text, [letter_dictionary(letters="qx")])
    assert any("2 of 2 latents are active in fewer than 30" in warning for warning in report.warnings)


def letters_grid(rows, width=4, first=1):
    return Grid(torch.tensor(rows), tiny_tokenizer(), width, first)


def random_firing(seed=0, rows=12, length=14, share=0.2):
    generator = np.random.default_rng(seed)
    active = generator.random((rows, length)) < share
    strength = np.where(active, 0.1 + generator.random((rows, length)), 0)
    place = np.flatnonzero(strength)
    grid = letters_grid(generator.integers(1, 90, (rows, length)).tolist())
    return grid, LatentFirings(place, strength.ravel()[place]), strength


def test_windows_have_the_strength_that_a_search_finds():
    grid, firing, strength = random_firing()
    expected = [strength[row, 1 + 4 * k : 5 + 4 * k].max() for row in range(12) for k in range(3)]
    assert grid.strengths(firing).tolist() == expected
    for number in range(36):
        row, start = grid.start(number)
        assert grid.window(row, start, firing).strength.tolist() == strength[row, start : start + 4].tolist()
        assert "".join(grid.window(row, start, firing).pieces) == tiny_tokenizer().decode(
            grid.sequences[row, start : start + 4]
        )


def test_shown_windows_hold_the_strongest_token_of_the_strongest_sequences():
    grid, firing, strength = random_firing(1)
    found = top_windows(grid, firing, 5)
    best = np.sort(strength[:, 1:].max(axis=1))[::-1][:5]
    assert [window.strength.max() for window in found] == best.tolist()


def test_detection_has_as_many_silent_windows_as_active_ones():
    grid, firing, _ = random_firing(2, rows=30)
    trials = detection_trials(grid, firing, 8, torch.Generator().manual_seed(0))
    assert [trial.truth for trial in trials].count(True) == 8 == len(trials) / 2
    assert all((trial.window.strength.max() > 0) == trial.truth and not trial.marks for trial in trials)
    assert detection_trials(grid, firing, 80, torch.Generator()) == []


def test_active_windows_come_from_all_of_the_order_of_strength():
    strength = np.arange(40.0)
    for seed in range(5):
        found = stratified(np.arange(40), strength, 4, torch.Generator().manual_seed(seed))
        assert [int(i) // 10 for i in found] == [0, 1, 2, 3]
    assert stratified(np.arange(3), strength, 4, torch.Generator()) == []


def test_wrong_marks_are_as_many_as_right_ones_and_all_of_them_wrong():
    grid, firing, _ = random_firing(3, rows=40, share=0.15)
    trials = fuzzing_trials(grid, firing, 9, torch.Generator().manual_seed(0))
    assert len(trials) == 18 and sum(trial.truth for trial in trials) == 9
    texts = ["".join(trial.window.pieces) for trial in trials]
    assert len(set(texts)) == 18  # no window twice
    for trial in trials:
        active = np.flatnonzero(trial.window.strength)
        assert len(trial.marks) == len(active)
        assert set(trial.marks) == set(active) if trial.truth else not set(trial.marks) & set(active)


def runs(marks):
    return [i for i in marks if i - 1 not in marks]


def test_marks_are_moved_in_every_way_that_a_search_finds():
    generator = np.random.default_rng(0)
    for _ in range(30):
        strength = (generator.random(7) < 0.3).astype(float)
        active = set(np.flatnonzero(strength))
        shifts = [{(i + by) % 7 for i in active} for by in range(1, 7)]
        expected = [one for one in shifts if not one & active and len(runs(one)) == len(runs(active))]
        assert [set(one) for one in shifted_marks(strength)] == expected


def test_balanced_accuracy_is_that_of_a_count_by_hand():
    window = Window((), np.zeros(1))
    said = [(True, 1), (True, 0), (True, None), (True, 1), (False, 0), (False, 1)]
    judged = [Trial(window, (), truth, answer) for truth, answer in said]
    assert balanced_accuracy(judged) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert np.isnan(balanced_accuracy(judged[:4])) and np.isnan(balanced_accuracy([]))


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("[1, 0, 1]", (1, 0, 1)),
        ("```json\n[1,0,1]\n```", (1, 0, 1)),
        ("Sure, for [1, 0] I say: [0, 0, 1].", (0, 0, 1)),
        ("<think>[1, 1, 1] perhaps</think>\n[ 0, 1,0 ]", (0, 1, 0)),
        ("[1, 0]", None),
        ("[1, 0, 1, 1]", None),
        ("[1, 0, 2]", None),
        ("[0.5, 0, 1]", None),
        ("1, 0, 1", None),
        ("", None),
        ("null", None),
    ],
)
def test_only_a_list_of_the_right_length_is_read(said, read):
    assert read_judgements(said, 3) == read


def test_explanations_are_one_line_of_bounded_length():
    assert read_explanation("<think>hm\n</think> A\n\tletter\x00. ") == "A letter ."
    assert read_explanation(" \n ") is None and read_explanation("<think>only</think>") is None
    assert len(read_explanation("é" * 999).encode()) <= EXPLANATION_BYTES


def test_runs_of_marked_tokens_stand_between_two_signs():
    assert marked(["a", "b", "c", "d", "e"], [1, 2, 4]) == "a«bc»d«e»"
    assert marked(["a", "b"], []) == "ab" and marked(["a", "b"], [0]) == "«a»b"


def test_questions_show_what_they_are_about_and_not_the_truth():
    grid = letters_grid([tiny_tokenizer()("_a[b]\nc|")["input_ids"]], width=7, first=0)
    window = grid.window(0, 0, LatentFirings(np.array([1, 3]), np.array([1.0, 4.0])))
    given = explanation_question([window], "m").given
    assert given.endswith("10") and "« a»" in given and "↵" in given and given.count("\n") == 1
    trials = [Trial(window, (0,), True), Trial(window, (0,), False)]
    lines = judgement_question("fuzzing", "Why.", trials, "m").given.splitlines()
    assert lines[2][3:] == lines[3][3:]
