"""Documents and token ids in memory: one in ten is held out, and nothing is in both splits."""

import pytest
import torch

from dictlab import DictlabError
from dictlab.data.in_memory import TokenIds, text_of_documents
from tests.planted import tiny_tokenizer

DOCUMENTS = [f"document number {i} " * 5 for i in range(25)]
IDS = torch.arange(25 * 8).reshape(25, 8)


def test_documents_are_split():
    train = text_of_documents(DOCUMENTS)
    held = train.as_split("heldout")
    assert list(held.documents()) == [DOCUMENTS[9], DOCUMENTS[19]]
    assert sorted([*train.documents(seed=3), *held.documents(seed=3)]) == sorted(DOCUMENTS)
    assert list(held.as_split("train").documents()) == list(train.documents())
    assert list(text_of_documents(["one", "two"], "heldout").documents()) == ["two"]


def test_documents_are_tokenized_as_a_file_is(tmp_path):
    sample = text_of_documents(DOCUMENTS).sample(tiny_tokenizer(), 16, 4, seed=0)
    assert sample.shape == (4, 16)


def test_token_ids_are_given_as_they_are():
    train, held = TokenIds.of(IDS), TokenIds.of(IDS, "heldout")
    assert torch.equal(held.sample(None, 8, 9), IDS[[9, 19]][held.sample(None, 8, 9)[:, 0].argsort().argsort()])
    rows = {tuple(row) for row in [*train.sample(None, 8, 99).tolist(), *held.sample(None, 8, 99).tolist()]}
    assert rows == {tuple(row) for row in IDS.tolist()}
    assert torch.equal(train.as_split("heldout").ids, held.ids)


def test_long_sequences_are_cut():
    cut = TokenIds.of(IDS, "heldout").sample(None, 3, 99)
    assert sorted(map(tuple, cut.tolist())) == [tuple(IDS[i, at : at + 3].tolist()) for i in (9, 19) for at in (0, 3)]


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: TokenIds.of(IDS.float()), "float32"),
        (lambda: TokenIds.of(IDS[0]), r"\[8\]"),
        (lambda: TokenIds.of(IDS[:1]), "1 sequences"),
        (lambda: text_of_documents(["alone"]), "1 documents"),
        (lambda: text_of_documents(["one", 2]), "int"),
        (lambda: TokenIds.of(IDS).sample(None, 9, 2), "contexts of 9 tokens"),
        (lambda: list(TokenIds.of(IDS).documents()), "list of strings"),
    ],
)
def test_what_will_not_do_is_refused(build, named):
    with pytest.raises(DictlabError, match=named):
        build()
