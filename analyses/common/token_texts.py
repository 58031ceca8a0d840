"""How are tokens shown, so that a reader sees each of them, and nothing in a text acts on the page or terminal?

    line ends and tabs                          as the signs ↵ and ⇥
    other control characters, bidirectional     escaped as in Python: \\x1b, \\u202e
    and other invisible format characters
    bytes that are no whole letter of UTF-8     escaped: \\xe4

The bytes of a token are known where the tokenizer works on bytes (GPT-2's and its successors', or the byte fallback of
SentencePiece); of other tokenizers an incomplete letter is U+FFFD, as they decode it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

SIGNS = {"\n": "↵", "\t": "⇥", "\r": "↵"}
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's control, format, surrogate, line and paragraph separators
INCOMPLETE = "\ufffd"  # what a decoder puts in place of bytes that are no letter
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a token of SentencePiece's byte fallback


def visible(text: str) -> str:
    """The text with every character that cannot be seen, or that acts on what shows it, as a sign or escaped."""
    if text.isprintable():
        return text
    return "".join(SIGNS.get(c) or (_escaped(c) if unicodedata.category(c) in INVISIBLE else c) for c in text)


def token_text(tokenizer: Any, token: int) -> str:
    """One token alone, as it is shown."""
    return token_texts(tokenizer, [token], peak=0)[0]


def token_texts(tokenizer: Any, ids: Sequence[int], peak: int | None = None) -> list[str]:
    """What each token adds to the text, as it is shown.

    Args:
        tokenizer: The language model's.
        ids: Token ids.
        peak: A position that must be seen: where it lies inside of a letter, its own bytes are shown.

    Returns:
        A text for each token. A letter of several tokens stands at its last one, and "" at the others.
    """
    ids = list(ids)
    raw = token_bytes(tokenizer, ids)
    texts = [visible(piece) for piece in _pieces(tokenizer, ids, raw)]
    if peak is not None and not texts[peak]:
        own = raw[peak]
        texts[peak] = visible(_decode(tokenizer, ids[peak : peak + 1]) if own is None else _letters([own])[0])
    return texts


def token_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, as it is in the text: together they are the text, character for character.

    Args:
        tokenizer: The language model's.
        ids: Token ids.

    Returns:
        A text for each token. A letter of several tokens stands at its last one, and "" at the others; a byte b that
        belongs to no letter of UTF-8 is the lone surrogate U+DC00 + b, as Python's "surrogateescape" has it.
    """
    ids = list(ids)
    return _pieces(tokenizer, ids, token_bytes(tokenizer, ids))


def _pieces(tokenizer: Any, ids: list[int], raw: list[bytes | None]) -> list[str]:
    return _letters(raw) if None not in raw else _decoded_texts(tokenizer, ids, raw)  # type: ignore[arg-type]


def token_bytes(tokenizer: Any, ids: Sequence[int]) -> list[bytes | None]:
    """The bytes of each token; None of a token whose bytes the tokenizer does not tell."""
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return [None] * len(ids)
    pieces: list[str | None] = tokenizer.convert_ids_to_tokens(list(ids))
    if None not in pieces:
        alphabet = _byte_alphabet()
        raw: list[bytes | None] = [
            bytes(alphabet[c] for c in p) if all(c in alphabet for c in p) else p.encode("utf-8", "surrogatepass")
            for p in pieces
            if p is not None
        ]
        together = b"".join(part for part in raw if part is not None)
        if together.decode("utf-8", "replace") == _decode(tokenizer, ids):
            return raw
    matches = [BYTE.fullmatch(piece or "") for piece in pieces]
    return [None if match is None else bytes([int(match[1], 16)]) for match in matches]


def _letters(raw: Sequence[bytes]) -> list[str]:
    """Each letter at the token that holds its last byte, and each byte that belongs to no letter at its own token."""
    owner = [i for i, part in enumerate(raw) for _ in part]
    texts, end = [""] * len(raw), 0
    for character in b"".join(raw).decode("utf-8", "surrogateescape"):
        end += len(character.encode("utf-8", "surrogateescape"))
        texts[owner[end - 1]] += character
    return texts


def _decoded_texts(tokenizer: Any, ids: Sequence[int], raw: Sequence[bytes | None]) -> list[str]:
    """As the tokenizer decodes longer and longer beginnings; neighbouring tokens of known bytes by these."""
    texts: list[str] = []
    known = ""
    for i in range(len(ids)):
        text = _decode(tokenizer, ids[: i + 1])
        whole = not text.endswith(INCOMPLETE) and text.startswith(known)
        texts.append(text[len(known) :] if whole else "")
        known = text if whole else known
    for is_bytes, group in groupby(range(len(ids)), lambda i: raw[i] is not None):
        if is_bytes:
            run = list(group)
            texts[run[0] : run[-1] + 1] = _letters([part for i in run if (part := raw[i]) is not None])
            for after in range(run[-1] + 1, min(run[-1] + 2, len(ids))):
                texts[after] = texts[after].lstrip(INCOMPLETE)  # of bytes that are shown as such already
    return texts


def _escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that "surrogateescape" could not decode
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers write bytes: printable ones of Latin-1 themselves, others moved."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(moved)}


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
