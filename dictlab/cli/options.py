"""An option that does not exist is answered before anything slow is imported: signatures are read from the source.

What cannot be read that way (an analysis without a source file) is left to the parser.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import dictlab
from dictlab.analysis_entries import GROUP
from dictlab.cli.analyses import MODEL_OPTIONS
from dictlab.cli.renamed import option_renamed
from dictlab.errors import DictlabError

TRAIN = Path(dictlab.__file__).parent / "training" / "config.py"
EVERYWHERE = {"help", "version", "out", "force"}


def check_analysis_options(entry: EntryPoint, arguments: Sequence[str]) -> None:
    """Refuse options that an analysis does not have.

    Raises:
        DictlabError: One of them is unknown; the message says what was meant, where that can be told.
    """
    file = _source(entry.module)
    if file is None:
        return
    tree = _parsed(file)
    function = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == entry.attr), None)
    if function is None:
        return
    parameters = [*function.args.args, *function.args.kwonlyargs]
    known = {parameter.arg for parameter in parameters}
    known |= MODEL_OPTIONS.keys() if "model" in known else set()
    known |= {"explorer"} if entry.group == GROUP else set()  # every report's, beside those that are everywhere
    if _unknown(known, arguments):  # fields of a dataclass are options too: looked for only where that matters
        known |= {name for one in parameters for name in _dataclass_fields(one.annotation, tree)}
    _check(entry.name, known, arguments)


def check_train_options(arguments: Sequence[str]) -> None:
    """Refuse options that `dictlab train` does not have. Errors as above."""
    settings = next(n for n in _parsed(TRAIN).body if isinstance(n, ast.ClassDef) and n.name == "TrainConfig")
    _check("train", _fields(settings) | {"resume"}, arguments)


def unknown_option(command: str, typed: str, known: set[str]) -> str:
    """What to say of an option that does not exist: its new name, or the one that was probably meant."""
    renamed = option_renamed(command, typed)
    flag = typed.partition("=")[0]
    if renamed is not None:
        return renamed
    if flag == "--data" and "model" in known:
        return f"{command} needs the language model, and not its activations alone: leave out --data."
    close = get_close_matches(flag, [f"--{name.replace('_', '-')}" for name in known], 1)
    return f"Unknown option: {flag}." + "".join(f" Did you mean {name}?" for name in close)


def _check(command: str, known: set[str], arguments: Sequence[str]) -> None:
    unknown = _unknown(known, arguments)
    if unknown:
        raise DictlabError(unknown_option(command, unknown[0], known | EVERYWHERE))


def _unknown(known: set[str], arguments: Sequence[str]) -> list[str]:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return [typed for typed in options if typed.startswith("--") and not _is_known(typed, known | EVERYWHERE)]


def _is_known(typed: str, known: set[str]) -> bool:
    name = typed.partition("=")[0].removeprefix("--").replace("-", "_")
    return any(name.removeprefix(start) in known for start in ("", "no_", "empty_"))  # the parser adds the last two


def _source(module: str) -> Path | None:
    """The file of a module, which is not imported; the packages that it lies in are."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    file = Path(spec.origin) if spec is not None and spec.origin else None
    return file if file is not None and file.suffix == ".py" and file.is_file() else None


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _dataclass_fields(annotation: ast.expr | None, tree: ast.Module) -> set[str]:
    """The fields of the dataclasses that an annotation names and the module imports."""
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} if annotation else set()
    fields: set[str] = set()
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or not node.module or not names & {one.name for one in node.names}:
            continue
        file = _source(node.module)
        for defined in _parsed(file).body if file is not None else []:
            if isinstance(defined, ast.ClassDef) and defined.name in names and _is_dataclass(defined):
                fields |= _fields(defined)
    return fields


def _is_dataclass(defined: ast.ClassDef) -> bool:
    decorators = [d.func if isinstance(d, ast.Call) else d for d in defined.decorator_list]
    return any(isinstance(d, ast.Name) and d.id == "dataclass" for d in decorators)


def _fields(defined: ast.ClassDef) -> set[str]:
    return {n.target.id for n in defined.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
