"""Where does something of a Python source stand, counted in characters from its beginning?

`tokenize` gives lines and characters, `ast` gives lines and bytes of UTF-8; both are turned into one offset here.
"""

from __future__ import annotations

import ast
from itertools import accumulate
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]  # first character, and the one after the last
Spans: TypeAlias = dict[str, list[Span]]  # by task


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
