"""Labels of Python sources: each task on a source whose answers can be read off, and on the standard library."""

import ast
import io
import tokenize

import pytest

from analyses.features.probes.token_labels import PYTHON_TASKS, python_spans
from dictlab import Text

SOURCE = '''import os.path as p, sys
from a.b import c as d, e
LIMIT = 3

@dec(1)
class A(B):
    """Doc é"""
    def f(self, x: int = 3, *y) -> str:
        é = "é"; z = x[1:2]  # why
        for i in range(3):
            if x > 2 and y:
                print(f"{i}", sep="")
            elif q:
                pass
            else:
                A.b.c(lambda: None)
'''


@pytest.fixture(scope="module")
def found():
    return {task: [SOURCE[a:b] for a, b in sorted(where)] for task, where in python_spans(SOURCE).items()}


def test_there_are_sixty_tasks_or_more_with_different_names():
    assert len(PYTHON_TASKS) == len(set(PYTHON_TASKS)) >= 60


@pytest.mark.parametrize(
    ("task", "expected"),
    {
        "comment": ["# why"],
        "docstring": ['"""Doc é"""'],
        "f-string": ['f"{i}"'],
        "string": ['"""Doc é"""', '"é"', 'f"{i}"', '""'],
        "parameter": ["self", "x", "y"],
        "default of a parameter": ["3"],
        "annotation": ["int", "str"],
        "decorator": ["dec(1)"],
        "base class": ["B"],
        "attribute": ["b", "c"],
        "called name": ["dec", "range", "print", "c"],
        "keyword of an argument": ["sep"],
        "imported name": ["p", "sys", "d", "e"],
        "imported module": ["os.path", "sys", "a.b"],
        "builtin": ["int", "str", "range", "print"],
        "name being assigned": ["LIMIT", "é", "z", "i"],
        "defined function's name": ["f"],
        "defined class' name": ["A"],
        "upper-case name": ["LIMIT"],
        "slice": ["1:2"],
        "condition": ["x > 2 and y", "q"],
        "iterated over": ["range(3)"],
        "inside an if or else": ['print(f"{i}", sep="")', "pass", "A.b.c(lambda: None)"],
        "in 4 bodies or more": ['print(f"{i}", sep="")', "pass", "A.b.c(lambda: None)"],
        "indented by 4": ['"""Doc é"""', "def f(self, x: int = 3, *y) -> str:"],
        "inside []": ["1:2"],
        "keyword elif": ["elif"],
    }.items(),
)
def test_each_task_marks_what_it_is_about(found, task, expected):
    assert found[task] == expected


def test_what_is_inside_ends_with_it(found):
    assert found["inside a loop"] == [SOURCE[SOURCE.index("if x > 2") : -1]]
    assert found["inside a class"][0].startswith('"""Doc') and found["inside a class"][0].endswith("None)")


def test_code_in_an_f_string_is_string_and_nothing_else():
    marked = python_spans("x = f'{name(1)} {y:>{w}}'\n")
    inside = {task for task, where in marked.items() if any(a < 22 and b > 6 for a, b in where)}
    assert inside <= {"string", "f-string", "assignment", "indented by 0", "last word of a line of code"}


def test_what_is_no_python_has_no_labels():
    assert python_spans("to be or not to be\n") is None
    assert python_spans("def f(:\n") is None
    assert python_spans("x = 'a\0b'\n") is None


def test_keywords_comments_and_docstrings_of_the_standard_library_agree_with_another_count():
    documents = Text.builtin("heldout").documents(0)
    for document, _ in zip(documents, range(12), strict=False):
        marked = python_spans(document)
        tokens = list(tokenize.generate_tokens(io.StringIO(document).readline))
        comments = [t.string for t in tokens if t.type == tokenize.COMMENT]
        assert [document[a:b] for a, b in marked["comment"]] == comments
        assert len(marked["keyword return"]) == sum(t.type == tokenize.NAME and t.string == "return" for t in tokens)
        nodes = [
            n
            for n in ast.walk(ast.parse(document))
            if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        written = sorted(
            ast.get_docstring(n, clean=False) for n in nodes if ast.get_docstring(n, clean=False) is not None
        )
        assert sorted(ast.literal_eval(document[a:b]) for a, b in marked["docstring"]) == written
