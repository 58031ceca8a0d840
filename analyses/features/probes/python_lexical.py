"""What is each word of a Python source: a keyword, a comment, a number, an opening bracket?

Spans of characters for the tasks that the sequence of tokens decides, by `tokenize` alone. An f-string is one string,
whatever stands in its braces: so it is in every version of Python.

`Places` turns lines and characters (`tokenize`) and lines and bytes of UTF-8 (`ast`) into offsets in characters.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

Span: TypeAlias = tuple[int, int]  # first character, and the one after the last
Spans: TypeAlias = dict[str, list[Span]]  # by task
KEYWORDS = [
    "def",
    "class",
    "return",
    "if",
    "elif",
    "else",
    "for",
    "while",
    "in",
    "import",
    "from",
    "as",
    "with",
    "try",
    "except",
    "raise",
    "not",
    "and",
    "or",
    "is",
    "None",
    "True",
    "False",
    "lambda",
    "yield",
    "pass",
    "assert",
]
BRACKETS = {"(": ")", "[": "]", "{": "}"}
COMPARISONS = {"==", "!=", "<", ">", "<=", ">="}
ARITHMETIC = {"+", "-", "*", "/", "//", "%", "**"}
DEEP = 2  # brackets
INDENTS = (0, 4, 8)  # columns; what is beyond is one task
LAYOUT = {tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.COMMENT, tokenize.ENDMARKER, tokenize.ENCODING}
CLOSES = {getattr(tokenize, name) for name in ("FSTRING_END", "TSTRING_END") if hasattr(tokenize, name)}
NAMES = {
    "self": lambda name: name in ("self", "cls"),
    "dunder name": lambda name: name.startswith("__") and name.endswith("__") and len(name) > 4,
    "private name": lambda name: name.startswith("_") and not name.startswith("__"),
    "upper-case name": lambda name: name.isupper() and len(name) > 1,
    "camel-case name": lambda name: name[0].isupper() and not name.isupper() and name.isidentifier(),
}
TASKS = (
    *(f"keyword {word}" for word in KEYWORDS),
    "comment",
    "string",
    "string of several lines",
    "f-string",
    "number",
    "sign of arithmetic",
    "comparison",
    "assignment sign",
    "comma",
    "colon",
    "dot",
    "opening bracket",
    "closing bracket",
    *(f"inside {a}{b}" for a, b in BRACKETS.items()),
    "inside two brackets or more",
    "first word of a line of code",
    "last word of a line of code",
    "continued line",
    *(f"indented by {column}" for column in INDENTS),
    f"indented by more than {INDENTS[-1]}",
    "defined function's name",
    "defined class' name",
    *NAMES,
    "name seen before",
)


class Places:
    """Offsets of one source.

    Args:
        source: Python code, lines ended by a line feed.
    """

    def __init__(self, source: str) -> None:
        self.lines = source.split("\n")
        self.starts = [0, *accumulate(len(line) + 1 for line in self.lines)]

    def of_characters(self, position: tuple[int, int]) -> int:
        """The offset of a line (from 1) and a character in it, as `tokenize` counts."""
        line, column = position
        return self.starts[line - 1] + column

    def of_bytes(self, line: int, column: int) -> int:
        """The offset of a line (from 1) and a byte in it, as `ast` counts."""
        text = self.lines[line - 1]
        return self.starts[line - 1] + (column if text.isascii() else len(text.encode()[:column].decode()))

    def begin(self, node: ast.AST) -> int:
        """The first character of a node."""
        return self.of_bytes(node.lineno, node.col_offset)  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        """The character after a node."""
        return self.of_bytes(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def span(self, node: ast.AST) -> Span:
        """A node from its first character to its last."""
        return self.begin(node), self.end(node)


# From Python 3.12 on an f-string is several tokens.
OPENS = {getattr(tokenize, name) for name in ("FSTRING_START", "TSTRING_START") if hasattr(tokenize, name)}


class Word(NamedTuple):
    """A token of Python: its kind (of `tokenize`; f-strings are STRING), its text and where it stands."""

    kind: int
    text: str
    span: Span
    line: int
    column: int
    last_line: int


def words(source: str, places: Places) -> list[Word]:
    """The tokens of a source, each f-string as one.

    Raises:
        tokenize.TokenError, SyntaxError: It is no Python.
    """
    return list(_joined(tokenize.generate_tokens(io.StringIO(source).readline), source, places))


def spans(found: Sequence[Word]) -> Spans:
    """Where each of TASKS holds."""
    out: Spans = {task: [] for task in TASKS}
    _kinds(found, out)
    _names(found, out)
    _brackets(found, out)
    _lines(found, out)
    return out


def _joined(tokens: Iterator[tokenize.TokenInfo], source: str, places: Places) -> Iterator[Word]:
    depth, opened = 0, None
    for token in tokens:
        if token.type in OPENS:
            opened, depth = opened or token, depth + 1
        elif token.type in CLOSES:
            depth -= 1
            if depth == 0 and opened is not None:
                span = places.of_characters(opened.start), places.of_characters(token.end)
                yield Word(tokenize.STRING, source[slice(*span)], span, *opened.start, token.end[0])
                opened = None
        elif depth == 0:
            span = places.of_characters(token.start), places.of_characters(token.end)
            yield Word(token.type, token.string, span, *token.start, token.end[0])


def _kinds(found: Sequence[Word], out: Spans) -> None:
    for word in found:
        if word.kind == tokenize.NAME and word.text in KEYWORDS:
            out[f"keyword {word.text}"].append(word.span)
        elif word.kind == tokenize.COMMENT:
            out["comment"].append(word.span)
        elif word.kind == tokenize.NUMBER:
            out["number"].append(word.span)
        elif word.kind == tokenize.STRING:
            out["string"].append(word.span)
            if word.last_line > word.line:
                out["string of several lines"].append(word.span)
            if "f" in word.text[: word.text.index(word.text[-1])].lower():
                out["f-string"].append(word.span)
        elif word.kind == tokenize.OP and (task := _operator(word.text)):
            out[task].append(word.span)


def _operator(text: str) -> str | None:
    if text in COMPARISONS:
        return "comparison"
    if text in ARITHMETIC:
        return "sign of arithmetic"
    if text.endswith("=") and text != ":=":
        return "assignment sign"
    if text in BRACKETS:
        return "opening bracket"
    if text in BRACKETS.values():
        return "closing bracket"
    return {",": "comma", ":": "colon", ".": "dot"}.get(text)


def _names(found: Sequence[Word], out: Spans) -> None:
    before, seen = "", set()
    for word in found:
        if word.kind == tokenize.NAME and not keyword.iskeyword(word.text):
            if before in ("def", "class"):
                out["defined function's name" if before == "def" else "defined class' name"].append(word.span)
            for task, holds in NAMES.items():
                if holds(word.text):
                    out[task].append(word.span)
            if word.text in seen:
                out["name seen before"].append(word.span)
            seen.add(word.text)
        before = word.text


def _brackets(found: Sequence[Word], out: Spans) -> None:
    """What lies between an opening bracket and its own closing one, both excluded."""
    opened: list[Word] = []
    for word in found:
        if word.kind == tokenize.OP and word.text in BRACKETS:
            opened.append(word)
        elif word.kind == tokenize.OP and word.text in BRACKETS.values():
            inside = opened[-1].span[1], word.span[0]
            out[f"inside {opened.pop().text}{word.text}"].append(inside)
            if len(opened) + 1 == DEEP:
                out["inside two brackets or more"].append(inside)


def _lines(found: Sequence[Word], out: Spans) -> None:
    """Logical lines: a statement on several lines is one, and so are several statements on one line."""
    line: list[Word] = []
    for word in found:
        if word.kind == tokenize.NEWLINE:
            _line(line, out)
            line = []
        elif word.kind not in LAYOUT:
            line.append(word)


def _line(line: Sequence[Word], out: Spans) -> None:
    if not line:
        return
    out["first word of a line of code"].append(line[0].span)
    out["last word of a line of code"].append(line[-1].span)
    column = line[0].column
    task = f"indented by {column}" if column in INDENTS else f"indented by more than {INDENTS[-1]}"
    if column in INDENTS or column > INDENTS[-1]:
        out[task].append((line[0].span[0], line[-1].span[1]))
    beyond = [word for word in line if word.line > line[0].line]
    if beyond:
        out["continued line"].append((beyond[0].span[0], line[-1].span[1]))
