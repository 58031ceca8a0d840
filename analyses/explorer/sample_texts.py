"""The text of the sample, rebuilt from its tokens: whole sequences, and how many characters of it each token is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from analyses.common.token_texts import token_pieces
from analyses.explorer.data_files import write_data

TOKENS_A_FILE = 1 << 14


def write_texts(folder: Path, tokenizer: Any, sequences: Int[Tensor, "sequences context"]) -> int:
    """Write the files text-0, text-1, ...; returns how many sequences each of them holds.

    Of a sequence: `text`; `lengths`, UTF-16 code units of each token, since that is what a page counts in (a letter of
    several tokens counts at its last one); `special`, positions of tokens such as the end of a text.
    """
    size = max(1, TOKENS_A_FILE // sequences.shape[1])
    special = set(getattr(tokenizer, "all_special_ids", ()))
    for number, some in enumerate(sequences.split(size)):
        write_data(folder, f"text-{number}", [sequence_text(tokenizer, ids, special) for ids in some.tolist()])
    return size


def sequence_text(tokenizer: Any, ids: Sequence[int], special: Iterable[int]) -> dict[str, Any]:
    """The text of one sequence, and where its tokens are."""
    pieces, marked = token_pieces(tokenizer, ids), set(special)
    return {
        "text": "".join(pieces),
        "lengths": [utf16_length(piece) for piece in pieces],
        "special": [position for position, token in enumerate(ids) if token in marked],
    }


def utf16_length(text: str) -> int:
    """The length of a text as JavaScript has it."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def write_vocabulary(folder: Path, tokenizer: Any, ids: Sequence[int]) -> None:
    """Write the texts of the tokens that records and the index name by their ids."""
    texts = [token_pieces(tokenizer, [token])[0] for token in ids]
    write_data(folder, "vocabulary", {"ids": list(ids), "texts": texts})
