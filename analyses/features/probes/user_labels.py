"""Tasks of the user's own: a table with a column of text and one or more columns of labels.

A label is one value a text (true or false, a class, a few of them), or a list: of one value for each of the tokens that
the language model's tokenizer makes of the text, or of `[begin, end]` pairs, the characters at which it holds. In a CSV
file a list is written as JSON. Text beyond the model's context is cut off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analyses.features.probes.token_labels import LabelledTokens, encoded, touched
from dictlab.data.hf_datasets import TABLES, rows
from dictlab.data.packing import leading_tokens
from dictlab.errors import DictlabError
from dictlab.model.language_model import LanguageModel
from dictlab.numerics import seeds

Pooling = Literal["mean", "last"]
HELD_OUT = 0.3  # of the rows of a table without splits of its own
CLASSES = 50  # of a column at most
Row = dict[str, Any]


def table_tokens(
    table: str, column: str, labels: Sequence[str], model: LanguageModel, *, pool: Pooling, limit: int, seed: int
) -> tuple[LabelledTokens, LabelledTokens, list[str]]:
    """A table as labelled tokens, to fit on and to measure on; and what the user should know of it.

    Args:
        table: A CSV, Parquet or JSON file, a saved data set, or a name on the Hub.
        column: Of the text.
        labels: Columns of labels, at least one.
        model: Whose tokenizer and context count.
        pool: Of labels of whole texts: the mean activation over the text, or that at its last token.
        limit: Rows to use at most.
        seed: Of the split of a table that has none.

    Raises:
        DictlabError: The table cannot be read, a column is missing, or labels do not fit their text or each other.
    """
    if not labels:
        raise DictlabError("no column of labels was named; give one or more with `labels=...`.")
    train, held = _parts(table, (column, *labels), limit, seed)
    both, places = [row for row, _ in (*train, *held)], [f"table {table}: {place}" for _, place in (*train, *held)]
    for place, row in zip(places, both, strict=True):
        if not isinstance(row[column], str) or not row[column]:
            raise DictlabError(f"{place} has no text in column {column!r} ({row[column]!r}).")
    truth = {name: _parsed(table, name, [row[name] for row in both], places) for name in labels}
    listed = {name for name, values in truth.items() if isinstance(values[0], list)}
    if listed and listed != set(labels):
        raise DictlabError(
            f"table {table}: {', '.join(sorted(listed))} label tokens and the other columns whole texts; "
            "use them in runs of their own."
        )
    tokenised = [encoded(model.tokenizer, row[column]) for row in both]
    start = leading_tokens(model.tokenizer)
    length = min(model.context_length(), max(len(ids) for ids, _ in tokenised) + len(start))
    cut = sum(len(ids) + len(start) > length for ids, _ in tokenised)
    tokens, known = _padded([ids for ids, _ in tokenised], start, length)
    lengths = known.sum(dim=1) + len(start)
    if not known.any(dim=1).all():
        raise DictlabError(f"{places[int((~known.any(dim=1)).nonzero()[0])]} has a text without tokens.")
    split = torch.arange(len(both)) < len(train)
    notes = [f"{cut} of {len(both)} texts are longer than {length} tokens and were cut off."] if cut else []
    if listed:
        made = [_token_labels(name, truth[name], tokenised, [r[column] for r in both], places) for name in labels]
        kept = torch.from_numpy(
            np.concatenate([np.stack([m[i] for m in made], 1)[: length - len(start)] for i in range(len(both))])
        )
        owner = known.nonzero()[:, 0]
        parts = [
            LabelledTokens(tuple(labels), tokens[s], known[s], kept[s[owner]], lengths=lengths[s])
            for s in (split, ~split)
        ]
        return parts[0], parts[1], notes
    names, flags = _text_labels(table, truth)
    if pool == "last":
        last = torch.zeros_like(known)
        last[torch.arange(len(known)), known.shape[1] - 1 - known.flip(1).int().argmax(dim=1)] = True
        known = last
    parts = [
        LabelledTokens(names, tokens[s], known[s], flags[s], pooled=pool == "mean", lengths=lengths[s])
        for s in (split, ~split)
    ]
    return parts[0], parts[1], notes


def _parts(
    table: str, columns: Sequence[str], limit: int, seed: int
) -> tuple[list[tuple[Row, str]], list[tuple[Row, str]]]:
    """Rows to fit on and rows to measure on, each with its place in the table, counted from 1."""
    path = Path(table)
    if path.suffix in TABLES and not path.exists():
        raise DictlabError(f"table {table}: no such file.")
    if path.is_file() and path.suffix not in TABLES:
        raise DictlabError(f"table {table}: expected a file that ends in {', '.join(TABLES)}, or a data set.")
    found, own = rows(table, "train", columns, limit)
    if own:
        train = [(row, f"row {i} of its training split") for i, row in enumerate(found, 1)]
        found = rows(table, "heldout", columns, limit)[0]
        held = [(row, f"row {i} of its held-out split") for i, row in enumerate(found, 1)]
    else:
        order = torch.randperm(len(found), generator=seeds.generator(seed, "split of a table")).tolist()
        drawn = [(found[i], f"row {i + 1}") for i in order]
        at = math.ceil(len(found) * (1 - HELD_OUT))
        train, held = drawn[:at], drawn[at:]
    if len(train) < 2 or len(held) < 2:
        raise DictlabError(
            f"table {table}: {len(train)} rows to fit on and {len(held)} to measure on; 2 are needed of each, and far "
            "more to mean anything."
        )
    return train, held


def _parsed(table: str, name: str, values: Sequence[Any], places: Sequence[str]) -> list[Any]:
    """Labels as values or as lists; lists in CSV are JSON."""
    out = []
    for place, value in zip(places, values, strict=True):
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise DictlabError(f"{place}: {name!r} is {value!r}, no list ({error}).") from error
        if value is None or (isinstance(value, float) and not value.is_integer()):
            raise DictlabError(f"{place}: {name!r} is {value!r}; expected true or false, a class, or a list.")
        out.append(value)
    kinds = {isinstance(value, list) for value in out}
    if len(kinds) > 1:
        raise DictlabError(f"table {table}: column {name!r} holds lists in some rows and single labels in others.")
    return out


def _text_labels(table: str, truth: Mapping[str, Sequence[Any]]) -> tuple[tuple[str, ...], Tensor]:
    """Binary tasks out of classes: one where there are two, else one a class against the rest."""
    names: list[str] = []
    flags: list[Tensor] = []
    for name, values in truth.items():
        classes = sorted(set(values), key=lambda value: (str(type(value)), value))
        if len(classes) > CLASSES:
            raise DictlabError(
                f"table {table}: column {name!r} holds {len(classes)} different labels; expected classes, "
                f"{CLASSES} at most."
            )
        if len(classes) < 2:
            raise DictlabError(f"table {table}: all of column {name!r} is {classes[0]!r}; a probe needs two classes.")
        for one in classes[1:] if len(classes) == 2 else classes:
            plain = len(classes) == 2 and set(classes) in ({0, 1}, {"0", "1"})
            names.append(name if plain else f"{name} = {one}")
            flags.append(torch.tensor([value == one for value in values]))
    return tuple(names), torch.stack(flags, dim=1)


def _token_labels(
    name: str,
    values: Sequence[Any],
    tokenised: Sequence[tuple[list[int], NDArray[np.int64]]],
    texts: Sequence[str],
    places: Sequence[str],
) -> list[NDArray[np.bool_]]:
    """Of each text, what is true of each of its tokens."""
    out = []
    for value, (ids, offsets), text, place in zip(values, tokenised, texts, places, strict=True):
        where = f"{place}: {name!r}"
        if all(isinstance(one, list | tuple) for one in value):
            out.append(touched(offsets, _spans(where, value, text)))
            continue
        if len(value) != len(ids):
            raise DictlabError(
                f"{where} holds {len(value)} labels, and its text is {len(ids)} tokens for this model: they do not "
                "align. Give one label a token, or [begin, end] pairs of characters."
            )
        if not set(value) <= {0, 1}:
            raise DictlabError(f"{where} holds {sorted(set(map(str, value)))[:5]}; labels of tokens are 0 and 1.")
        out.append(np.array(value, dtype=bool))
    return out


def _spans(where: str, pairs: Sequence[Any], text: str) -> list[tuple[int, int]]:
    out = []
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(end, int) for end in pair) or not 0 <= pair[0] < pair[1] <= len(text):
            raise DictlabError(
                f"{where} holds {pair}; expected [begin, end] with 0 <= begin < end <= {len(text)}, the characters of "
                "its text."
            )
        out.append((pair[0], pair[1]))
    return out


def _padded(ids: Sequence[list[int]], start: list[int], length: int) -> tuple[Tensor, Tensor]:
    """Token ids side by side, and which of them are text. What fills up stands behind, where no token can see it."""
    tokens = torch.zeros(len(ids), length, dtype=torch.long)
    known = torch.zeros(len(ids), length, dtype=torch.bool)
    for row, own in enumerate(ids):
        whole = [*start, *own][:length]
        tokens[row, : len(whole)] = torch.tensor(whole, dtype=torch.long)
        known[row, len(start) : len(whole)] = True
    return tokens, known
