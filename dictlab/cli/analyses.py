"""A command out of an analysis: its flags are the function's parameters."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Parameter

from dictlab.analysis_entries import load_analysis
from dictlab.cli.printing import as_options, console, examples, print_report
from dictlab.errors import DictlabError
from dictlab.formats.names import name_of
from dictlab.model.model_options import ModelDtype, ModelOptions
from dictlab.runtime.progress import Phase

if TYPE_CHECKING:  # pandas, matplotlib and torch are slow to import
    from dictlab.reports.report import Report

TYPED = (str, int, float, bool, types.NoneType)  # beside a name, that is
MODEL_OPTIONS = {  # of each analysis that runs a model: the field of ModelOptions, its type, its help
    "model_dtype": (
        "dtype",
        ModelDtype | None,
        "Precision of the model; auto is float32 on a CPU, and on a GPU what the model is kept in.",
    ),
    "model_revision": ("revision", str | None, "Branch, tag or commit of a model on the Hub."),
    "trust_remote_code": ("trust_remote_code", bool | None, "Run code that comes with the model."),
    "allow_other_weights": (
        "allow_other_weights",
        bool | None,
        "Measure dictionaries on a model with other weights than they were trained on, such as a fine-tuned child.",
    ),
}


def command_of(analysis: Callable[..., Report], arguments: Sequence[str]) -> Callable[..., bool]:
    """A command out of an analysis: its parameters, and where to write the report. It says whether a check failed."""
    from dictlab.reports.latent_links import explorer_dictionaries
    from dictlab.reports.report import Report, check_folder

    signature = inspect.signature(analysis, eval_str=True)
    own = [p.replace(annotation=_flagged(p, _typed(p.annotation))) for p in signature.parameters.values()]
    out = inspect.Parameter(
        "out",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            Path | None, Parameter(help="Folder of the report; out/<analysis>-<dictionaries> by default.")
        ],
    )
    force = inspect.Parameter(
        "force",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, Parameter(help="Replace a report that is already in the folder.")],
    )
    explorer = inspect.Parameter(
        "explorer",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            Path | None, Parameter(help="Folder of `dictlab explore`: on the page, latents' numbers lead into it.")
        ],
    )
    extra = [out, force, explorer, *(_model_options() if "model" in signature.parameters else [])]

    def command(*args: Any, **kwargs: Any) -> bool:
        bound = inspect.Signature([*own, *extra]).bind(*args, **kwargs)
        bound.apply_defaults()
        _take_model_options(bound.arguments)
        folder, overwrite = bound.arguments.pop("out"), bound.arguments.pop("force")
        explorer_folder = bound.arguments.pop("explorer")
        if explorer_folder is not None:
            explorer_dictionaries(explorer_folder)  # refused before the work
        folder = folder or default_folder(analysis.__name__, _names_given(signature, bound.arguments))
        check_folder(folder, force=overwrite)
        positional = inspect.BoundArguments(signature, bound.arguments)
        try:
            with Phase(analysis.__name__):
                report = analysis(*positional.args, **positional.kwargs)
        except KeyboardInterrupt as stopped:
            raise KeyboardInterrupt(f"; nothing was written to {folder}") from stopped
        if not isinstance(report, Report):
            raise DictlabError(f"analysis {analysis.__name__!r} returned {type(report).__name__}, not a Report.")
        if os.environ.get("RANK", "0") != "0":  # of several processes that torchrun started, the first one writes
            return report.passed is False
        typed = shlex.join(["dictlab", *arguments])
        report = replace(report, summary=as_options(report.summary), warnings=tuple(map(as_options, report.warnings)))
        with Phase("write the report"):
            report.save(folder, force=overwrite, command=typed, explorer=explorer_folder)
        print_report(report, folder)
        return report.passed is False

    command.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *extra)}
    command.__doc__ = inspect.cleandoc(analysis.__doc__ or "").split("\nExample", 1)[0]
    command.__name__ = analysis.__name__
    return command


def plain_command(function: Callable[..., object]) -> Callable[..., None]:
    """A command out of a function that is no analysis: what it returns is printed.

    What it writes goes into its argument `out`, where it has one: a folder with a default name after the dictionaries.
    """
    signature = inspect.signature(function, eval_str=True)
    own = [p.replace(annotation=_flagged(p, _typed(p.annotation))) for p in signature.parameters.values()]
    extra = _model_options() if "model" in signature.parameters else []

    def command(*args: Any, **kwargs: Any) -> None:
        bound = inspect.Signature([*own, *extra]).bind(*args, **kwargs)
        chosen = bound.arguments.get("out")
        bound.apply_defaults()
        _take_model_options(bound.arguments)
        if chosen is None and "out" in signature.parameters:
            bound.arguments["out"] = default_folder(function.__name__, _names_given(signature, bound.arguments))
        made = inspect.BoundArguments(signature, bound.arguments)
        console().print(as_options(str(function(*made.args, **made.kwargs))), soft_wrap=True)

    command.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *extra)}
    command.__doc__ = inspect.cleandoc(function.__doc__ or "").split("\nExample", 1)[0]
    command.__name__ = function.__name__
    return command


def _model_options() -> list[inspect.Parameter]:
    """How a model is opened, as options of a command."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind, Parameter(help=text)],
        )
        for name, (_, kind, text) in MODEL_OPTIONS.items()
    ]


def _take_model_options(arguments: dict[str, Any]) -> None:
    """Put what was said of how the model is opened into the argument `model`."""
    given = {field: arguments.pop(name, None) for name, (field, _, _) in MODEL_OPTIONS.items()}
    said = {field: value for field, value in given.items() if value is not None}
    if said:
        arguments["model"] = ModelOptions(arguments["model"], **said)


def own_examples(entry: EntryPoint) -> str:
    """An analysis' own examples for its help page."""
    lines = own_lines(entry)
    return examples(*lines) if lines else ""


def own_lines(entry: EntryPoint) -> list[str]:
    """The lines after `Example:` in an analysis' docstring."""
    _, _, after = inspect.cleandoc(load_analysis(entry).__doc__ or "").partition("\nExample:\n")
    return [line.strip() for line in after.splitlines() if line.strip()]


def default_folder(analysis: str, names: Sequence[str]) -> Path:
    """out/ANALYSIS-FIRST-SECOND, or out/ANALYSIS-FIRST-and-N-more."""
    stems = [re.sub(r"[^\w.+-]+", "-", name_of(name)) for name in names]
    label = "-".join(stems) if len(stems) <= 2 else f"{stems[0]}-and-{len(stems) - 1}-more"
    return Path("out") / (f"{analysis}-{label}" if label else analysis)


def _names_given(signature: inspect.Signature, arguments: Mapping[str, Any]) -> list[str]:
    """What was typed for the parameters that are dictionaries, or runs."""
    asked = [name for name, p in signature.parameters.items() if "Dictionary" in str(p.annotation) or name == "runs"]
    values = [arguments[name] for name in asked]
    return [str(one) for value in values for one in (value if isinstance(value, list) else [value]) if one is not None]


def _typed(annotation: Any) -> Any:
    """The annotation as it can be typed: dictionaries, models and texts by their names."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        members = get_args(annotation)
        if str in members:  # what is given by its name; objects that will do in its place cannot be typed
            members = tuple(m for m in members if m in TYPED or get_origin(m) is Literal)
        return Union[tuple(_typed(m) for m in members)]  # noqa: UP007 (built at run time)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence) and origin is not tuple:
        return list[_typed(get_args(annotation)[0])]  # type: ignore[misc]
    return annotation


def _flagged(parameter: inspect.Parameter, annotation: Any) -> Any:
    """Fields of a dataclass are options. What is done unless it is switched off has a flag for that, --no-NAME."""
    if any(is_dataclass(one) for one in (annotation, *get_args(annotation))):
        return Annotated[annotation, Parameter(name="*")]
    if parameter.default is not True:
        return annotation
    return Annotated[annotation, Parameter(negative=f"--no-{parameter.name.replace('_', '-')}")]
