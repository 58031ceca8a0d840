"""The built-in tasks of the probes: what is true of each character of a Python source, exactly.

Two parts of the standard library answer for two kinds of task: `tokenize` for words, `ast` for syntax. Nothing is
estimated, so a latent that answers a task does so with a known precision and recall.
"""

from __future__ import annotations

import ast
import tokenize
import warnings

from analyses.features import python_lexical, python_syntax
from analyses.features.python_positions import Places, Spans

TASKS = (*python_lexical.TASKS, *python_syntax.TASKS)


def spans(source: str) -> Spans | None:
    """Where in a source each of TASKS holds, as spans of characters that may overlap; None if it is no Python."""
    source = source.replace("\f", " ")  # white space to Python, but a line's end to some of its string methods
    places = Places(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources are no business of the reader's
            tree = ast.parse(source)
        words = python_lexical.words(source, places)
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return None
    return python_lexical.spans(words) | python_syntax.spans(tree, places)
