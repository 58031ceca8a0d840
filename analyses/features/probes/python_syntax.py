"""What part does each piece of a Python source play: a parameter, a docstring, the body of a loop, a call?

Spans of characters for the tasks that the syntax tree decides, by `ast` alone. What stands inside an f-string is left
out, for its place in the tree is not reliable before Python 3.12; and so are names that were normalised on parsing.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence

from analyses.features.probes.python_lexical import Places, Span, Spans

BUILTINS = frozenset(name for name in dir(builtins) if not name.startswith("_"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
BODIES: dict[str, tuple[type[ast.AST], ...]] = {
    "inside a function": FUNCTIONS,
    "inside an async function": (ast.AsyncFunctionDef,),
    "inside a class": (ast.ClassDef,),
    "inside a loop": LOOPS,
    "inside an if or else": (ast.If,),
    "inside a with": (ast.With, ast.AsyncWith),
    "inside a try": (ast.Try,),
    "inside an except": (ast.ExceptHandler,),
}
WHOLE: dict[str, tuple[type[ast.AST], ...]] = {
    "import statement": (ast.Import, ast.ImportFrom),
    "return statement": (ast.Return,),
    "raise statement": (ast.Raise,),
    "assert statement": (ast.Assert,),
    "assignment": (ast.Assign, ast.AnnAssign, ast.AugAssign),
    "lambda": (ast.Lambda,),
    "comprehension": (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
    "list": (ast.List,),
    "tuple": (ast.Tuple,),
    "dictionary": (ast.Dict,),
    "conditional expression": (ast.IfExp,),
    "operation of arithmetic": (ast.BinOp,),
    "and, or": (ast.BoolOp,),
    "slice": (ast.Slice,),
}
DEPTHS = (1, 2, 3, 4)  # bodies around
NESTED = tuple(f"in {depth} {'body' if depth == 1 else 'bodies'} or more" for depth in DEPTHS)
FIRST_ONLY = ("inside a loop", "inside a try")  # not what comes after `else` or `finally`
TASKS = (
    "docstring",
    *BODIES,
    "inside a method",
    "inside a nested function",
    *NESTED,
    *WHOLE,
    "condition",
    "iterated over",
    "index",
    "called name",
    "argument of a call",
    "keyword of an argument",
    "parameter",
    "default of a parameter",
    "annotation",
    "decorator",
    "base class",
    "attribute",
    "imported name",
    "imported module",
    "use of an imported name",
    "builtin",
    "name being assigned",
    "name being read",
    "caught exception",
    "first character of a statement",
    "last character of a statement",
)


def spans(tree: ast.Module, places: Places) -> Spans:
    """Where each of TASKS holds."""
    out: Spans = {task: [] for task in TASKS}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {_bound(alias) for node in imports for alias in node.names}
    for node, around in _walk(tree, places):
        for task, kinds in WHOLE.items():
            if isinstance(node, kinds):
                out[task].append(places.span(node))
        _bodies(node, around, places, out)
        if isinstance(node, ast.Name):
            _name(node, imported, places, out)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            _import(node, places, out)
        elif isinstance(node, ast.arguments):
            _parameters(node, places, out)
        elif isinstance(node, ast.stmt):
            _statement(node, places, out)
        for task, part in _roles(node):
            out[task].append(places.span(part))
        for task, span in _words(node, places):
            out[task].append(span)
    return out


def _walk(tree: ast.Module, places: Places) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    """Every node outside f-strings, and the nodes whose bodies it is in, the outermost first."""
    waiting: list[tuple[ast.AST, tuple[ast.AST, ...]]] = [(tree, ())]
    while waiting:
        node, around = waiting.pop()
        yield node, around
        if isinstance(node, ast.JoinedStr):
            continue
        inner = around if isinstance(node, ast.Module) else (*around, node)
        bodies = {id(child) for part in _parts(node, places) for child in part}
        waiting += [(child, inner if id(child) in bodies else around) for child in ast.iter_child_nodes(node)]


def _parts(node: ast.AST, places: Places) -> list[list[ast.stmt]]:
    """The bodies of a statement, none of them empty. An `elif` is no body of its `if`, but beside it."""
    parts = [getattr(node, name, None) for name in ("body", "orelse", "finalbody")]
    found = [part for part in parts if isinstance(part, list) and part]
    if isinstance(node, ast.If) and node.orelse and isinstance(node.orelse[0], ast.If):
        line = node.orelse[0].lineno
        if places.lines[line - 1].lstrip().startswith("elif"):
            found = found[:1]
    return found


def _bodies(node: ast.AST, around: Sequence[ast.AST], places: Places, out: Spans) -> None:
    """The bodies of a node, for the tasks that ask what one is inside of; and the docstring of what has one."""
    own = [(_first(part[0], places), places.end(part[-1])) for part in _parts(node, places)]
    if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module)) and ast.get_docstring(node, clean=False) is not None:
        out["docstring"].append(places.span(node.body[0]))
    if isinstance(node, ast.Module):
        return
    if own and len(around) < len(NESTED):
        out[NESTED[len(around)]] += own
    for task, kinds in BODIES.items():
        if isinstance(node, kinds):
            out[task] += own[:1] if task in FIRST_ONLY else own
    if isinstance(node, FUNCTIONS):
        if around and isinstance(around[-1], ast.ClassDef):
            out["inside a method"] += own
        if any(isinstance(outer, FUNCTIONS) for outer in around):
            out["inside a nested function"] += own


def _first(statement: ast.stmt, places: Places) -> int:
    """Where a statement begins, with its decorators."""
    decorators = getattr(statement, "decorator_list", [])
    return min(places.begin(one) for one in (statement, *decorators))


def _statement(node: ast.stmt, places: Places, out: Spans) -> None:
    begin, end = places.span(node)
    out["first character of a statement"].append((begin, begin + 1))
    if not _parts(node, places) and not isinstance(node, ast.Match):
        out["last character of a statement"].append((end - 1, end))


def _roles(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The parts of a node that are a task's, whole."""
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield "condition", node.test
    elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        yield "iterated over", node.iter
    elif isinstance(node, ast.Subscript):
        yield "index", node.slice
    elif isinstance(node, ast.Call):
        yield from (("argument of a call", one) for one in (*node.args, *(k.value for k in node.keywords)))
    elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
        yield "annotation", node.annotation
    elif isinstance(node, ast.ExceptHandler) and node.type is not None:
        yield "caught exception", node.type
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        yield from (("decorator", one) for one in node.decorator_list)
    if isinstance(node, ast.ClassDef):
        yield from (("base class", one) for one in node.bases)
    if isinstance(node, FUNCTIONS) and node.returns is not None:
        yield "annotation", node.returns


def _words(node: ast.AST, places: Places) -> Iterator[tuple[str, Span]]:
    """Single names of a node."""
    if isinstance(node, ast.Attribute):
        yield "attribute", _tail(node, node.attr, places)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        yield "called name", places.span(node.func)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        yield "called name", _tail(node.func, node.func.attr, places)
    elif isinstance(node, ast.arg):
        yield "parameter", _head(node, node.arg, places)
    if isinstance(node, ast.Call):
        yield from (
            ("keyword of an argument", _head(one, one.arg, places)) for one in node.keywords if one.arg is not None
        )


def _head(node: ast.AST, name: str, places: Places) -> Span:
    return places.begin(node), places.begin(node) + len(name)


def _tail(node: ast.AST, name: str, places: Places) -> Span:
    return places.end(node) - len(name), places.end(node)


def _name(node: ast.Name, imported: set[str], places: Places, out: Spans) -> None:
    span = places.span(node)
    if isinstance(node.ctx, ast.Store):
        out["name being assigned"].append(span)
    elif isinstance(node.ctx, ast.Load):
        out["name being read"].append(span)
        if node.id in imported:
            out["use of an imported name"].append(span)
        elif node.id in BUILTINS:
            out["builtin"].append(span)


def _import(node: ast.Import | ast.ImportFrom, places: Places, out: Spans) -> None:
    """Names that an import binds, and the modules that it names."""
    for alias in node.names:
        if alias.asname is not None:
            out["imported name"].append(_tail(alias, alias.asname, places))
        elif alias.name != "*":
            out["imported name"].append(_head(alias, _bound(alias), places))
        if isinstance(node, ast.Import):
            out["imported module"].append(_head(alias, alias.name, places))
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        begin = places.begin(node)
        line = places.lines[node.lineno - 1][begin - places.starts[node.lineno - 1] :]
        if (at := line.find(node.module)) > 0:  # not found where it stands on a line of its own
            out["imported module"].append((begin + at, begin + at + len(node.module)))


def _bound(alias: ast.alias) -> str:
    """The name that an import binds: of `import os.path` it is `os`."""
    return alias.asname or alias.name.partition(".")[0]


def _parameters(node: ast.arguments, places: Places, out: Spans) -> None:
    given = [one for one in (*node.defaults, *node.kw_defaults) if one is not None]
    out["default of a parameter"] += [places.span(one) for one in given]
