"""Texts keep their order and their splits, and are packed into contexts by the tokenizer's own rule."""

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dictlab.data import text as text_module
from dictlab.data.packing import leading_tokens
from dictlab.data.text import Text
from dictlab.errors import DictlabError

EOS, BOS, UNKNOWN = 0, 1, 2
WORDS = [f"w{i}" for i in range(40)]


def build_tokenizer(begins: bool) -> PreTrainedTokenizerFast:
    """One token a word; `begins`: its post-processor puts BOS before every text."""
    vocabulary = {word: number for number, word in enumerate(["<eos>", "<bos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


PLAIN, BEGINS = build_tokenizer(False), build_tokenizer(True)


@pytest.fixture(autouse=True)
def short_rest(monkeypatch):
    """The library `datasets` rests after each shuffled reading, for threads of pyarrow; seconds, by default."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)


def of_documents(documents: list[str]) -> Text:
    """A text of these documents, none of them held out."""

    def source(seed):
        return iter([(document, document) for document in documents])

    return Text("own", "train", source, lambda split: of_documents(documents), True)


def write_folder(folder, count: int = 60):
    """Documents in nested files; each holds its own name."""
    for number in range(count):
        path = folder / f"{number % 3}" / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"document {number}\n")
    return folder


# The built-in corpus


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[str]]:
    return {split: list(Text.builtin(split).documents()) for split in ("train", "heldout")}


def test_the_built_in_corpus_has_the_same_order_every_time(corpus):
    assert list(Text.open("builtin").documents()) == corpus["train"]


def test_about_a_tenth_of_the_built_in_corpus_is_held_out_and_none_of_it_is_trained_on(corpus):
    everything = [document for _, document in Text.builtin()._source(None)]
    assert sorted(corpus["train"] + corpus["heldout"]) == sorted(everything)
    assert 0.05 < len(corpus["heldout"]) / len(everything) < 0.17
    keys = [key for key, _ in Text.builtin()._source(None)]
    assert len(set(keys)) == len(keys)


def test_the_built_in_corpus_is_the_standard_library_without_its_tests():
    keys = {key for key, _ in Text.builtin()._source(None)}
    assert {"ast.py", "json/decoder.py"} <= keys
    assert not [key for key in keys if {"site-packages", "test", "tests"} & set(key.split("/"))]
    assert not [key for key in keys if "_sysconfigdata" in key], "this machine's paths"


# Splits


def test_shuffling_changes_the_order_and_moves_nothing_between_the_splits(tmp_path):
    write_folder(tmp_path)
    for split in ("train", "heldout"):
        text = Text.files(tmp_path, split)
        ordered, shuffled = list(text.documents()), list(text.documents(seed=3))
        assert sorted(shuffled) == sorted(ordered)
        assert list(text.documents(seed=3)) == shuffled
        if split == "train":
            assert shuffled != ordered and list(text.documents(seed=4)) != shuffled


def test_the_two_splits_of_a_folder_are_all_of_it_wherever_it_stands(tmp_path):
    here, there = write_folder(tmp_path / "here"), write_folder(tmp_path / "there")
    parts = {split: list(Text.files(here, split).documents()) for split in ("train", "heldout")}
    assert parts["heldout"] and not set(parts["train"]) & set(parts["heldout"])
    assert len(parts["train"]) + len(parts["heldout"]) == 60
    for split, documents in parts.items():
        assert list(Text.files(there, split).documents()) == documents


def test_the_other_part_of_a_text_is_opened_as_the_first_was(tmp_path):
    rows = [{"body": f"row {i}", "text": "wrong"} for i in range(60)]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    text = Text.dataset(str(tmp_path / "rows.parquet"), column="body")
    assert text.as_split("train") is text
    held_out = list(text.as_split("heldout").documents())
    assert held_out and sorted([*text.documents(), *held_out]) == sorted(row["body"] for row in rows)


# Files and folders


def test_a_folder_is_read_in_the_order_of_its_paths_without_hidden_and_binary_files(tmp_path):
    write_folder(tmp_path, 30)
    (tmp_path / ".hidden").write_text("hidden file")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("in a hidden folder")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\x00\x00")
    found = list(Text.files(tmp_path)._source(None))
    assert [key for key, _ in found] == [f"{i % 3}/{i:03}.txt" for i in sorted(range(30), key=lambda i: (i % 3, i))]
    assert found[0][1] == "document 0\n"


@pytest.mark.parametrize("line", ["some words\n", "one line without an end "])
def test_a_large_file_is_read_in_bounded_pieces_that_are_its_whole_text(tmp_path, monkeypatch, line):
    monkeypatch.setattr(text_module, "PIECE", 1000)
    path = tmp_path / "large.txt"
    path.write_text(line * 1000)

    found = list(Text.files(tmp_path)._source(None))
    pieces = [piece for _, piece in found]
    assert "".join(pieces) == path.read_text()
    assert max(map(len, pieces)) <= 2000 and len(pieces) > 5
    assert len({key for key, _ in found}) == len(pieces)
    if line.endswith("\n"):
        assert all(piece.endswith("\n") for piece in pieces)
    train, held_out = (list(Text.files(tmp_path, split).documents()) for split in ("train", "heldout"))
    assert train and held_out and len(train) + len(held_out) == len(pieces)


# Hugging Face datasets


ROWS = [f"row {i}" for i in range(80)]


def as_saved(path):
    Dataset.from_dict({"text": ROWS}).save_to_disk(path / "saved")
    return path / "saved"


def as_saved_one_split(path):
    DatasetDict({"everything": Dataset.from_dict({"text": ROWS})}).save_to_disk(path / "saved")
    return path / "saved"


def as_parquet(path):
    Dataset.from_dict({"text": ROWS}).to_parquet(path / "rows.parquet")
    return path / "rows.parquet"


def as_jsonl(path):
    Dataset.from_dict({"text": ROWS}).to_json(path / "rows.jsonl")
    return path / "rows.jsonl"


def as_csv(path):
    Dataset.from_dict({"text": ROWS}).to_csv(path / "rows.csv")
    return path / "rows.csv"


@pytest.mark.parametrize("write", [as_saved, as_saved_one_split, as_parquet, as_jsonl, as_csv])
def test_a_dataset_without_a_validation_split_holds_a_tenth_of_its_rows_out(tmp_path, write):
    path = write(tmp_path)
    train, held_out = (list(Text.open(path, split).documents()) for split in ("train", "heldout"))
    assert held_out and len(train) > len(held_out)
    assert [row for row in ROWS if row in train] == train, "in their own order"
    assert sorted(train + held_out) == sorted(ROWS)
    assert sorted(Text.open(path).documents(seed=1)) == sorted(train)
    assert list(Text.open(path).documents(seed=1)) != train


@pytest.mark.parametrize("own", ["validation", "test"])
def test_a_dataset_with_a_split_of_its_own_keeps_it(tmp_path, own):
    parts = {"train": Dataset.from_dict({"text": ROWS[:50]}), own: Dataset.from_dict({"text": ROWS[50:]})}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    text = Text.open(tmp_path / "saved")
    assert list(text.documents()) == ROWS[:50]
    assert list(text.as_split("heldout").documents()) == ROWS[50:]
    assert sorted(text.documents(seed=0)) == sorted(ROWS[:50])


def test_a_dataset_that_has_a_test_split_alone_is_split_like_any_other(tmp_path):
    DatasetDict({"test": Dataset.from_dict({"text": ROWS})}).save_to_disk(tmp_path / "saved")
    train, held_out = (list(Text.open(tmp_path / "saved", split).documents()) for split in ("train", "heldout"))
    assert held_out and sorted(train + held_out) == sorted(ROWS)


def test_rows_without_text_are_left_out(tmp_path):
    Dataset.from_dict({"text": ["a", None, "b"]}).save_to_disk(tmp_path / "saved")
    assert {document for _, document in Text.open(tmp_path / "saved")._source(None)} == {"a", "b"}


# Packing


def packed(documents: list[str], tokenizer, length: int) -> list[list[int]]:
    return [context.tolist() for context in of_documents(documents).contexts(tokenizer, length)]


def stream(documents: list[str]) -> list[int]:
    """The tokens of documents, an EOS after each: the reference."""
    return [token for d in documents for token in [*(WORDS.index(w) + 3 for w in d.split()), EOS]]


documents_of_words = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=1, max_size=150)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents_of_words, st.integers(2, 9), st.booleans())
def test_contexts_are_the_joined_documents_cut_to_one_length_and_the_rest_is_dropped(documents, length, begins):
    tokens = stream(documents)
    body = length - begins
    expected = [[BOS] * begins + tokens[at : at + body] for at in range(0, len(tokens) - body + 1, body)]
    if not expected:
        with pytest.raises(DictlabError, match="less than one context"):
            packed(documents, BEGINS if begins else PLAIN, length)
    else:
        assert packed(documents, BEGINS if begins else PLAIN, length) == expected


def test_only_a_tokenizer_whose_rule_it_is_begins_contexts_with_bos():
    assert leading_tokens(PLAIN) == [] and leading_tokens(BEGINS) == [BOS]
    documents = ["w1 w2 w3 w4", "w5 w6"]
    assert packed(documents, PLAIN, 4) == [[4, 5, 6, 7], [EOS, 8, 9, EOS]]
    assert packed(documents, BEGINS, 4) == [[BOS, 4, 5, 6], [BOS, 7, EOS, 8]]


def test_a_tokenizer_without_an_end_of_text_token_joins_documents_bare():
    tokenizer = build_tokenizer(False)
    tokenizer.eos_token = None
    assert packed(["w1 w2", "w3 w4"], tokenizer, 4) == [[4, 5, 6, 7]]


def test_repeating_goes_round_in_another_order_each_time(tmp_path):
    for number, word in enumerate(WORDS):
        (tmp_path / f"{number}.txt").write_text(f"{word} {word} {word}")
    text = Text.files(tmp_path)
    per_round = len(list(text.contexts(PLAIN, 4)))
    stream = text.contexts(PLAIN, 4, seed=5, repeat=True)
    rounds = [[next(stream).tolist() for _ in range(per_round)] for _ in range(3)]
    assert rounds[0] != rounds[1] != rounds[2] != rounds[0]
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(rounds[2])
    again = text.contexts(PLAIN, 4, seed=5, repeat=True)
    assert [[next(again).tolist() for _ in range(per_round)] for _ in range(3)] == rounds


def test_repeating_without_a_seed_keeps_the_order():
    stream = of_documents(["w1 w2 w3", "w4 w5 w6"]).contexts(PLAIN, 4, repeat=True)
    found = [next(stream).tolist() for _ in range(4)]
    assert found[:2] == found[2:]


def test_batches_are_the_contexts_stacked_with_a_smaller_one_at_the_end():
    text = of_documents(["w1 w2 w3"] * 7)
    batches = list(text.batches(PLAIN, 4, 3))
    assert [tuple(batch.shape) for batch in batches] == [(3, 4), (3, 4), (1, 4)]
    assert torch.equal(torch.cat(batches), torch.stack(list(text.contexts(PLAIN, 4))))


# What is refused, and how


def refused(*needles: str):
    """A message of one line that says all this."""
    return pytest.raises(DictlabError, match=r"\A(?=.*" + ")(?=.*".join(needles) + r")[^\n]*\Z")


def test_a_path_that_is_nothing_is_named_with_what_was_tried(tmp_path):
    with refused("no/such-text", "no such file or folder", "no dataset"):
        Text.open("no/such-text")
    with refused("nothing.txt", "no such file or folder"):
        Text.open(tmp_path / "nothing.txt")
    with refused("nothing.txt", "no such file or folder"):
        Text.files(tmp_path / "nothing.txt")


def test_an_empty_folder_an_empty_file_and_a_binary_file_are_refused(tmp_path):
    with refused("holds no files"):
        Text.open(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.bin").write_bytes(bytes(100))
    for name in ("empty.txt", "binary.bin"):
        with refused(name, "empty or binary"):
            Text.open(tmp_path / name)


def test_too_little_text_is_said_and_not_waited_for(tmp_path):
    write_folder(tmp_path, 3)
    for split in ("train", "heldout"):
        with refused("less than one context of 50 tokens", f"its {split} split"):
            next(Text.files(tmp_path, split).contexts(PLAIN, 50, repeat=True))


@pytest.mark.parametrize("length", [1, 0, -3])
def test_a_context_without_room_for_text_is_refused(length):
    with refused("no room"):
        next(of_documents(["w1 w2"]).contexts(BEGINS, length))


@pytest.mark.parametrize("write", [as_saved, as_parquet, as_jsonl, as_csv])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path, write):
    with refused("no column 'body'", "the dataset has text"):
        Text.dataset(str(write(tmp_path)), column="body")


def test_a_column_of_something_else_is_refused(tmp_path):
    Dataset.from_dict({"text": [1, 2, 3]}).save_to_disk(tmp_path / "saved")
    with refused("column 'text' holds int"):
        list(Text.open(tmp_path / "saved").documents())


@pytest.mark.parametrize(
    ("name", "content"), [("a.parquet", b"PAR1 no more"), ("a.jsonl", b'{"text": "a"}\n{"text": '), ("a.json", b"")]
)
def test_a_damaged_dataset_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with refused(name, "cannot be read"):
        list(Text.open(tmp_path / name).documents())


def test_a_single_file_has_both_splits(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {number}\n" for number in range(60_000)))
    train, held_out = ("".join(Text.open(path, split).documents()) for split in ("train", "heldout"))
    assert len(train) + len(held_out) == path.stat().st_size and 0.02 < len(held_out) / path.stat().st_size < 0.25


def test_a_folder_of_tables_is_a_dataset(tmp_path):
    for number in range(3):
        rows = "".join(f'{{"text": "file {number} row {row}"}}\n' for row in range(20))
        (tmp_path / f"{number}.jsonl").write_text(rows)
    documents = [d for split in ("train", "heldout") for d in Text.open(tmp_path, split).documents()]
    assert sorted(documents) == sorted(f"file {n} row {r}" for n in range(3) for r in range(20))
