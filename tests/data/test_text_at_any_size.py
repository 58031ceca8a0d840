"""Texts of any size and kind: read in pieces from all over them, tokenized when they are needed, or refused by name."""

import gzip
import json
import random
import sysconfig
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from dictlab.data import packing, text_files
from dictlab.data.json_rows import JsonRows
from dictlab.data.packing import Contexts, Position
from dictlab.data.text import PIECE, Text, _in_corpus
from dictlab.errors import DictlabError
from tests.data.test_text import EOS, PLAIN, WORDS, build_tokenizer, refused, short_rest  # noqa: F401  # short_rest is used by itself


def lines(number: int) -> str:
    return "".join(
        json.dumps({"text": f"Once upon a time {number} {i}.", "body": f"b{number}-{i}"}) + "\n" for i in range(20)
    )


def test_the_built_in_corpus_has_the_order_that_it_always_had():
    """The reader of earlier versions, written out: figures of the documents depend on this order."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in sorted(root.rglob("*.py")) if _in_corpus(p.relative_to(root))]
    for seed in (None, 0):
        order = paths if seed is None else random.Random(seed).sample(paths, len(paths))
        order = order[:: 1 if seed == 0 else 7]
        expected = {p.relative_to(root).as_posix(): p.open(encoding="utf-8", errors="replace").read() for p in order}
        given = list(Text.builtin()._source(seed))
        assert [key for key, _ in given if key in expected] == [key for key, text in expected.items() if text]
        assert all(expected[key] == document for key, document in given if key in expected)


# Any size


def test_a_shuffled_file_is_drawn_from_all_over_and_read_only_where_it_is_wanted(tmp_path, monkeypatch):
    path = tmp_path / "large.txt"
    with path.open("w") as file:
        for number in range(200_000):
            file.write(f"w{number % 40} line {number}\n")
    read = []
    piece = text_files._piece
    monkeypatch.setattr(text_files, "_piece", lambda *args: read.append(args[1]) or piece(*args))
    documents = list(islice(Text.open(path).documents(seed=0), 12))
    starts = [int(d.split("line ")[1].split()[0]) for d in documents]
    assert len(read) < 20, "nothing is read before it is wanted"
    assert min(starts) < 50_000 and max(starts) > 150_000 and len(set(starts)) == 12
    assert all(len(d) < 2 * (1 << 14) + 1 for d in documents)


def test_memory_does_not_grow_with_a_file(tmp_path):
    path = tmp_path / "large.txt"
    path.write_text(" ".join(WORDS) * 200_000)  # 30 MB without a single line end
    tracemalloc.start()
    contexts = list(islice(Text.open(path).contexts(PLAIN, 64, seed=0), 200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(contexts) == 200 and peak < 20e6


@pytest.mark.parametrize("character", ["x", "\u00e9", "\u4e2d", "\U0001f600"])
def test_characters_are_whole_where_a_line_is_cut(tmp_path, character):
    path = tmp_path / "line.txt"
    for shift in range(4):
        path.write_text("a" * shift + character * 900, encoding="utf-8")
        pieces = [piece for _, piece in text_files.pieces(path, [path], 100, None)]
        assert "".join(pieces) == path.read_text(encoding="utf-8") and len(pieces) > 5


def test_long_rows_are_cut_and_short_ones_keep_their_split(tmp_path):
    rows = [{"text": "x" * 200_000}, {"text": "y" * (PIECE + 1)}, *({"text": f"row {i}"} for i in range(40))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = [d for split in ("train", "heldout") for d in Text.open(tmp_path / "rows.jsonl", split).documents()]
    assert max(map(len, documents)) == PIECE
    assert sum(map(len, documents)) == sum(len(row["text"]) for row in rows)
    assert sum(d.startswith("x") for d in documents) == -(-200_000 // PIECE)


def test_rows_of_json_lines_are_each_read_once_from_blocks_shorter_and_longer_than_lines(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "z" * (number % 50), "n": number} for number in range(300)]
    path.write_text("\n".join(json.dumps(row) for row in rows))  # no line end at the end
    for block in (7, 100, 1 << 20):
        monkeypatch.setattr("dictlab.data.json_rows.BLOCK", block)
        assert list(JsonRows([path])) == rows
        shuffled = list(JsonRows([path]).shuffle(3))
        assert shuffled != rows and sorted(shuffled, key=lambda row: row["n"]) == rows
        assert shuffled == list(JsonRows([path]).shuffle(3))


def test_documents_are_tokenized_in_groups_of_bounded_size(monkeypatch):
    sizes = []

    class Counting:
        eos_token_id, bos_token_id = EOS, 1

        def __call__(self, documents, **kwargs):
            sizes.append(sum(map(len, documents)))
            return PLAIN(documents, **kwargs)

    document = " ".join(WORDS) * 400  # 60 kB
    contexts = Contexts(lambda turn: iter([document] * 64), Counting(), 8)
    next(contexts)
    assert sizes[-1] < packing.GROUP_SIZE + len(document) < 64 * len(document)


def test_a_position_holds_whatever_the_size_of_groups_was(monkeypatch):
    documents = [" ".join(WORDS[: 3 + number % 9]) for number in range(150)]

    def stream(start=None):
        return Contexts(lambda turn: iter(documents), PLAIN, 5, start=start)

    positions, contexts = [], []
    reader = stream()
    for context in reader:
        contexts.append(context.tolist())
        positions.append(reader.position)
    for group in (1, 5, 64):
        monkeypatch.setattr(packing, "GROUP", group)
        for at in range(0, len(contexts) - 1, 17):
            again = stream(Position.of(positions[at].record()))
            assert [context.tolist() for context in again] == contexts[at + 1 :]


def test_a_text_goes_on_where_it_was_left(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("\n".join(" ".join(WORDS) for _ in range(1500)))
    text = Text.files(tmp_path)
    whole = text.contexts(PLAIN, 16, seed=1, repeat=True)
    list(islice(whole, 700))
    position = Position.of(json.loads(json.dumps(whole.position.record())))
    rest = [context.tolist() for context in islice(whole, 300)]
    again = text.contexts(PLAIN, 16, seed=1, repeat=True, start=position)
    assert [context.tolist() for context in islice(again, 300)] == rest


# Contexts and token ids


def test_separate_documents_share_no_context(tmp_path):
    words = [f"w{number % 10} w{10 + number % 10} w5 w6 w7" for number in range(40)]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": w + f" w{30 + i % 9}"}) + "\n" for i, w in enumerate(words))
    )
    text = Text.open(f"{tmp_path / 'rows.jsonl'}?documents=separate")
    expected = []
    for document in Text.open(tmp_path / "rows.jsonl").documents():
        ids = [*(WORDS.index(w) + 3 for w in document.split()), EOS]
        expected += [ids[at : at + 3] for at in range(0, len(ids) - 2, 3)]
    assert [c.tolist() for c in text.contexts(PLAIN, 3)] == expected
    assert text.as_split("heldout").separate and text.name.endswith("?documents=separate")
    reader = text.contexts(PLAIN, 3)
    list(islice(reader, 10))
    assert [c.tolist() for c in text.contexts(PLAIN, 3, start=reader.position)] == expected[10:]


def test_a_column_of_token_ids_is_packed_as_it_is(tmp_path):
    rows = [[5 + i % 7, 6, 7, 8 + i % 5] for i in range(60)]
    Dataset.from_dict({"input_ids": rows}).to_parquet(tmp_path / "rows.parquet")
    text = Text.open(f"{tmp_path / 'rows.parquet'}?column=input_ids")
    kept = list(text.documents())
    assert kept and all(row in rows for row in kept)
    joined = [token for row in kept for token in row]
    assert [c.tolist() for c in text.contexts(PLAIN, 6)] == [joined[i : i + 6] for i in range(0, len(joined) - 5, 6)]


@pytest.mark.parametrize("shape", [(400, 8), (60_000,)])
def test_token_ids_in_a_file(tmp_path, shape):
    ids = np.arange(np.prod(shape)).reshape(shape) % 40
    np.save(tmp_path / "ids.npy", ids)
    parts = [list(Text.open(tmp_path / "ids.npy", split).documents()) for split in ("train", "heldout")]
    assert (sum(len(d) for part in parts for d in part) == ids.size and all(parts)) or len(shape) == 1
    assert next(Text.open(tmp_path / "ids.npy").contexts(PLAIN, 4, seed=0)).shape == (4,)
    np.save(tmp_path / "floats.npy", np.ones((3, 4)))
    with refused("floats.npy", "token ids"):
        Text.open(tmp_path / "floats.npy")


def test_settings_behind_a_name(tmp_path):
    (tmp_path / "rows.jsonl").write_text(lines(0))
    text = Text.open(f"{tmp_path / 'rows.jsonl'}?column=body")
    assert all(document.startswith("b0-") for document in text.documents())
    assert Text.open(text.name, "heldout").name == text.as_split("heldout").name == text.name
    for spec, needle in (("?colunm=body", "colunm"), ("?documents=both", "both"), ("?split=dev", "no split 'dev'")):
        with refused(needle):
            Text.open(f"{tmp_path / 'rows.jsonl'}{spec}")


# Folders of data files


@pytest.mark.parametrize("ending", [".jsonl", ".NDJSON", ".json"])
def test_data_files_beside_a_readme_are_a_data_set(tmp_path, ending):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# About\n")
    (tmp_path / "LICENSE").write_text("MIT")
    for number in range(10):
        (tmp_path / "data" / f"part-{number}{ending}").write_text(lines(number))
    documents = [d for split in ("train", "heldout") for d in Text.open(str(tmp_path), split).documents()]
    assert sorted(documents) == sorted(f"Once upon a time {n} {i}." for n in range(10) for i in range(20))


@pytest.mark.parametrize(("ending", "separator"), [(".csv", ","), (".TSV", "\t")])
def test_tables_of_either_separator(tmp_path, ending, separator):
    rows = "".join(f"{i}{separator}row {i}\n" for i in range(30))
    (tmp_path / f"a{ending}").write_text(f"id{separator}text\n{rows}")
    assert sorted(d for s in ("train", "heldout") for d in Text.open(tmp_path, s).documents()) == sorted(
        f"row {i}" for i in range(30)
    )


def test_test_and_validation_files_are_never_trained_on(tmp_path):
    for number, name in enumerate(["train-00000", "test-00000", "validation/part", "more"]):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(lines(number))
    train, held = (list(Text.open(tmp_path, split).documents()) for split in ("train", "heldout"))
    assert {d.split()[4] for d in train} == {"0", "3"} and {d.split()[4] for d in held} == {"2"}


def test_plain_files_called_test_or_valid_are_never_trained_on(tmp_path):
    for name in ("wiki.train.raw", "wiki.valid.raw", "test.txt", "test_module.py"):
        (tmp_path / name).write_text(name)
    assert sorted(Text.files(tmp_path).documents()) == ["test_module.py", "wiki.train.raw"]
    assert sorted(Text.files(tmp_path, "heldout").documents()) == ["test.txt", "wiki.valid.raw"]


def test_data_files_of_several_kinds_or_beside_text_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(0))
    (tmp_path / "b.csv").write_text("text\nrow\n")
    with refused("data files beside others", "csv", "jsonl"):
        Text.open(tmp_path)
    (tmp_path / "b.csv").unlink()
    (tmp_path / "notes.txt").write_text("some notes")
    with refused("data files beside others", "txt"):
        Text.open(tmp_path)


def test_a_folder_of_sources_with_a_table_among_them_is_text(tmp_path):
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "code.py").write_text("print(1)\n" * 100)
    assert len([d for s in ("train", "heldout") for d in Text.open(tmp_path, s).documents()]) == 2


def test_a_folder_above_a_saved_data_set_is_refused(tmp_path):
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "saved")
    with refused("saved data set in saved", "give that folder"):
        Text.open(tmp_path)


# What is no text


def test_text_that_is_not_utf8_is_refused_by_name_and_byte(tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 au lait".encode("latin-1"))
    for path in (tmp_path, tmp_path / "latin.txt"):
        with refused("latin.txt", "not UTF-8 at byte 3"):
            Text.open(path)
    late = tmp_path / "late.txt"
    late.write_bytes(b"plain\n" * 30_000 + b"caf\xe9\n")
    with refused("late.txt", "not UTF-8 at byte 180003"):
        list(Text.open(late).documents()) + list(Text.open(late, "heldout").documents())


def test_compressed_files_are_refused_by_name(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"text"))
    with refused("b.txt.gz", "gzip", "Unpack"):
        Text.open(tmp_path)


def test_a_zero_byte_late_in_a_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"plain text\n" * 1000 + bytes(1) + b"more\n")
    with refused("a.txt", "binary at byte 11000"):
        list(Text.files(tmp_path)._source(None))


def test_json_nested_too_deeply_is_refused_in_one_line(tmp_path):
    (tmp_path / "deep.jsonl").write_text('{"text": ' + "[" * 50_000 + "]" * 50_000 + "}\n")
    with refused("deep.jsonl", "nested too deeply"):
        list(Text.open(tmp_path / "deep.jsonl").documents())


def test_json_that_is_no_rows_is_refused(tmp_path):
    for name, content in (("list.json", "[1, 2]"), ("lines.jsonl", "1\n2\n"), ("half.jsonl", '{"text": "a"}\n{"te')):
        (tmp_path / name).write_text(content)
        with pytest.raises(DictlabError, match=name):
            list(Text.open(tmp_path / name).documents())


# What is said


def test_what_is_left_out_and_how_documents_become_tokens_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2 <eos> w3")
    notes = Text("own", "train", lambda seed: iter([("a", "w1 <eos> w2")]), Text.builtin, True).notes(PLAIN)
    assert len(notes) == 1 and "special tokens" in notes[0] and "<eos>" in notes[0]
    bare = build_tokenizer(False)
    bare.eos_token = None
    notes = Text("own", "train", lambda seed: iter([("a", "w1 w2")]), Text.builtin, True).notes(bare)
    assert len(notes) == 1 and "no end-of-text token" in notes[0]
    (tmp_path / "picture.png").write_bytes(b"\x89PNG" + bytes(9))
    (note, *_) = Text.files(tmp_path).notes(PLAIN)
    assert note == "1 binary files are left out: picture.png."
