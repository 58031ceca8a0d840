"""The command line: it parses arguments, prints, and exits. An analysis' flags are its function's parameters."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from importlib.metadata import EntryPoint, entry_points
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import docstring_parser
import numpy as np
from cyclopts import App, CycloptsError, Parameter, UnknownCommandError, UnusedCliTokensError
from rich.console import Console
from rich.table import Table as Grid
from torch import Tensor

from dictlab.__about__ import VERSION
from dictlab.arrays import ArrayActivations
from dictlab.describe import describe
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.formats import conversion
from dictlab.formats.loading import load, mapped, name_of
from dictlab.lm import LanguageModel
from dictlab.report import Report, Table, check_folder
from dictlab.text import Text
from dictlab.train import TrainConfig, configfile, resume, train
from dictlab.train.run import Run

GROUP = "dictlab.analyses"
SHORT = {"stitch": "stitching", "verify": "verification"}  # analyses that are commands of their own
HELP = {
    "stitch": "Add to a small dictionary what larger ones know and it lacks, and measure the result.",
    "verify": "Check a dictionary's file as a careful person would: pass or fail, with figures.",
}
NOT_TYPED = (Dictionary, LanguageModel, Text, ArrayActivations, Tensor, np.ndarray)  # given by name on a command line
WRAPPED = 24  # characters that a column of text needs to be worth wrapping
SHOWN = 12  # rows of a table in the terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 a check failed, 2 a user's mistake, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        failed = build(arguments)(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (DictlabError, CycloptsError, OSError) as error:  # OSError: no permission, no space left, ...
        _console(stderr=True).print(f"dictlab: {_message(error)}", style="red", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        _console(stderr=True).print("dictlab: interrupted.", style="red")
        return 130
    return 1 if failed else 0


def _message(error: Exception) -> str:
    if isinstance(error, UnusedCliTokensError):
        return f"nothing is known to do with {' '.join(error.unused_tokens or [])!r}; --help shows what is expected."
    return str(error) + (" (--help lists all)" if isinstance(error, UnknownCommandError) else "")


def _console(*, stderr: bool = False) -> Console:
    """Text from files and users is shown as it is: brackets are no markup, colons no emoji."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def build(arguments: Sequence[str]) -> App:
    """The application. Analyses are imported only where the arguments ask for one: they are slow to import."""
    app = App(
        name="dictlab",
        version=VERSION,
        help="Train, compare and stitch sparse dictionaries of a language model's activations.",
        help_epilogue=_examples(
            "dictlab info checkpoints/local-topk16-512-s0.safetensors",
            "dictlab stitch checkpoints/local-topk16-512-s0.safetensors checkpoints/local-topk16-1024-s0.safetensors",
            "dictlab report geometry checkpoints/local-topk16-1024-s*.safetensors",
            "dictlab train checkpoints/gpt2-python-2m blocks.3.hook_resid_pre --width 512 1024",
        ),
        help_format="plaintext",
        default_parameter=Parameter(negative=(), consume_multiple=True),
        suppress_keyboard_interrupt=False,  # main says it
    )
    app.command(
        _train() if arguments[:1] == ["train"] else _listed,
        name="train",
        help=None if arguments[:1] == ["train"] else "Train a family of dictionaries from one stream of activations.",
        help_epilogue=_examples(
            "dictlab train checkpoints/gpt2-python-2m blocks.3.hook_resid_pre --width 512 1024 --k 16 32 --seed 0 1",
            "dictlab train gpt2 blocks.6.hook_resid_pre --activation relu --l1 4 --objective local e2e --text my/texts",
            "dictlab train gpt2 blocks.6.hook_resid_pre --activation batchtopk jumprelu --k 32 --l0 0.001 0.003",
            "dictlab train gpt2 blocks.6.hook_resid_pre --k 32 --finetune e2e --finetune-tokens 100000",
            "dictlab train gpt2 blocks.6.hook_resid_pre --start mine.safetensors --objective weighted --kl 1 --ce 0.1",
            "dictlab train run.toml --seed 3",
            "dictlab train --data activations.npy --width 2048 --k 32",
            "dictlab train --resume runs/first",
        ),
    )
    app.command(_info, name="info", help_epilogue=_examples("dictlab info checkpoints/local-topk16-512-s0.safetensors"))
    app.command(
        _convert,
        name="convert",
        help_epilogue=_examples(
            "dictlab convert my_saelens_folder mine.safetensors",
            "dictlab convert mine.safetensors out/for_sparsify --to sparsify",
            "dictlab convert model.pth mine.safetensors --map W_enc=encoder.weight.T W_dec=decoder.weight.T "
            "b_enc=encoder.bias b_pre=zero b_out=decoder.bias activation=relu",
        ),
    )
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    asked = arguments[0] if arguments else ""
    for name, analysis in SHORT.items():
        if asked != name:
            app.command(_listed, name=name, help=HELP[name])
        elif analysis in known:
            own = _command(_load(known[analysis]), arguments)
            app.command(own, name=name, help_epilogue=_own_examples(known[analysis]))
        else:
            raise DictlabError("the analyses are not installed; install dictlab with pip, so that they are found.")
    app.command(_reports(known if asked == "report" else {}, arguments))
    return app


def _reports(known: Mapping[str, EntryPoint], arguments: Sequence[str]) -> App:
    """`dictlab report`, with a command for the analysis that is asked for, or for each."""
    report = App(name="report", help="Run an analysis: tables, plots and a page in a folder.", help_format="plaintext")
    wanted = arguments[1] if len(arguments) > 1 else ""
    examples = []
    for name, entry in {wanted: known[wanted]}.items() if wanted in known else sorted(known.items()):
        try:
            report.command(_command(_load(entry), arguments), name=name, help_epilogue=_own_examples(entry))
            examples += _own_lines(entry)[:1]
        except Exception as error:  # another package's code; it must not take the other analyses with it
            reason = f"cannot be loaded from {entry.value} ({type(error).__name__}: {error})."
            if name == wanted:
                raise DictlabError(f"analysis {name!r} {reason}") from error
            report.command(_listed, name=name, help=f"This analysis {reason}")
    report.help_epilogue = _examples(*examples)
    return report


def _listed() -> None:
    """Stands for a command that was not asked for, in a list of commands."""


def _train() -> Callable[..., None]:
    """`dictlab train`: the fields of TrainConfig as arguments and options. None of them says its default itself, so
    that what was given can be told from what was not: flags win over a file's settings, and those over defaults.
    """
    described = {p.arg_name: p.description or "" for p in docstring_parser.parse(TrainConfig.__doc__ or "").params}
    kinds = get_type_hints(TrainConfig)
    own = [_setting(field, kinds[field.name], described.get(field.name, "")) for field in fields(TrainConfig)]
    extra = {
        "out": (Path, "Folder of the run; runs/... by default."),
        "resume": (Path, "Folder of a run to go on with, after it was stopped or killed. Takes no other settings."),
        "force": (bool, "Write into a folder that already holds a run."),
    }
    own += [_optional(name, kind, text) for name, (kind, text) in extra.items()]

    def command(**given: Any) -> None:
        out, folder, force = (given.pop(name, None) for name in extra)
        given = {name: value for name, value in given.items() if value is not None}
        if folder is not None:
            if given or out or force:
                raise DictlabError(f"--resume {folder}: goes on with the settings of that run; leave out the others.")
            run = resume(folder)
        else:
            file = given.pop("model") if str(given.get("model", "")).endswith(".toml") else None
            known = configfile.read(file) if file else {}
            run = train(TrainConfig(**(known | given)), out=out, force=bool(force))
        if os.environ.get("RANK", "0") == "0":  # of several processes that torchrun started, the first one speaks
            _print_run(run)

    def bound(*args: Any, **kwargs: Any) -> None:
        command(**signature.bind(*args, **kwargs).arguments)

    signature = inspect.Signature(own)
    bound.__signature__ = signature  # type: ignore[attr-defined]
    bound.__annotations__ = {p.name: p.annotation for p in own}
    bound.__doc__ = """Train a family of dictionaries from one stream of activations.

    What to train on is MODEL SITE, --data FILE, or --on decoder LARGE. In place of MODEL, a TOML file of settings, such
    as the config.toml of an earlier run: `dictlab train run.toml --seed 3`; options win over the file.
    """
    return bound


def _setting(field: Field[Any], kind: Any, text: str) -> inspect.Parameter:
    """An option for a field of TrainConfig; its default is in its text alone."""
    shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    text += f" [default: {shown}]" if shown not in (None, "", MISSING) else ""
    if field.name == "site":
        kind = tuple[str, ...]  # one or several
    return _optional(field.name, kind, " ".join(text.split()), positional=field.name in ("model", "site"))


def _optional(name: str, kind: Any, text: str, *, positional: bool = False) -> inspect.Parameter:
    where = inspect.Parameter.POSITIONAL_OR_KEYWORD if positional else inspect.Parameter.KEYWORD_ONLY
    off = f"--no-{name.replace('_', '-')}" if kind is bool and name != "force" else ()
    annotation = Annotated[kind | None, Parameter(help=text, negative=off)]
    return inspect.Parameter(name, where, default=None, annotation=annotation)


def _info(
    file: str,
    *,
    format: str | None = None,
    map: tuple[str, ...] = (),
    scale: float | None = None,
    ignore: tuple[str, ...] = (),
) -> None:
    """What a dictionary is, where it came from, and how good it was at the end of training.

    Parameters
    ----------
    file
        A dictionary of any library's: a file, a folder, hf://owner/repo/path, or saelens://release/id.
    format
        The format to read; recognised from the content by default.
    map
        For a plain state dict, NAME=TENSOR for each of its parts, such as W_enc=encoder.weight.T.
    scale
        What its inputs are multiplied by, where its configuration does not say.
    ignore
        Fields of its configuration to pass over although they are unknown here.
    """
    dictionary = mapped(file, format=format, map=_pairs(map), scale=scale, ignore=ignore)
    grid = Grid(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in describe(dictionary):
        grid.add_row(name, value, style=None)
    _console().print(grid)


def _convert(
    source: str,
    target: Path,
    *,
    to: str = "dictlab",
    format: str | None = None,
    map: tuple[str, ...] = (),
    scale: float | None = None,
    ignore: tuple[str, ...] = (),
    site: str | None = None,
    model: str | None = None,
    force: bool = False,
) -> None:
    """Write a dictionary in another library's format; it is read back and compared before anything is replaced.

    Parameters
    ----------
    source
        A dictionary of any library's: a file, a folder, hf://owner/repo/path, or saelens://release/id.
    target
        What to write: a .safetensors file for dictlab, a folder for other libraries.
    to
        The format to write.
    format
        The format to read; recognised from the content by default.
    map
        For a plain state dict, NAME=TENSOR for each of its parts, such as W_enc=encoder.weight.T.
    scale
        What its inputs are multiplied by, where its configuration does not say.
    ignore
        Fields of its configuration to pass over although they are unknown here.
    site
        Where in the model it belongs, if the source does not say, or says it wrongly.
    model
        The model it belongs to, likewise.
    force
        Replace what is already there.
    """
    dictionary = load(source, format=format, map=_pairs(map), scale=scale, ignore=ignore)
    about = dictionary.metadata
    about = replace(about, site=site or about.site, model=model or about.model)
    written = conversion.write(replace(dictionary, metadata=about), target, to, force=force)
    console = _console()
    console.print(f"Dictionary: {written}", soft_wrap=True)
    for note in about.notes:
        console.print(f"Note: {note}", style="yellow", soft_wrap=True)


def _pairs(texts: Sequence[str]) -> dict[str, str] | None:
    """What --map says, or None where it was not given."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name or not value:
            raise DictlabError(f"--map {text!r}: expected NAME=TENSOR, such as W_enc=encoder.weight.T.")
        if name in pairs:
            raise DictlabError(f"--map {text!r}: {name} is {pairs[name]!r} already.")
        pairs[name] = value
    return pairs or None


def _command(analysis: Callable[..., Report], arguments: Sequence[str]) -> Callable[..., bool]:
    """A command out of an analysis: its parameters, and where to write the report. It says whether a check failed."""
    signature = inspect.signature(analysis, eval_str=True)
    own = [p.replace(annotation=_negatable(p, _typed(p.annotation))) for p in signature.parameters.values()]
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

    def command(*args: Any, **kwargs: Any) -> bool:
        bound = inspect.Signature([*own, out, force]).bind(*args, **kwargs)
        bound.apply_defaults()
        folder, overwrite = bound.arguments.pop("out"), bound.arguments.pop("force")
        folder = folder or default_folder(analysis.__name__, _names_given(signature, bound.arguments))
        check_folder(folder, force=overwrite)
        positional = inspect.BoundArguments(signature, bound.arguments)
        report = analysis(*positional.args, **positional.kwargs)
        if not isinstance(report, Report):
            raise DictlabError(f"analysis {analysis.__name__!r} returned {type(report).__name__}, not a Report.")
        if os.environ.get("RANK", "0") != "0":  # of several processes that torchrun started, the first one writes
            return report.passed is False
        typed = shlex.join(["dictlab", *arguments])
        report.save(folder, force=overwrite, command=typed)
        _print_report(report, folder)
        return report.passed is False

    command.__signature__ = inspect.Signature([*own, out, force])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, out, force)}
    command.__doc__ = inspect.cleandoc(analysis.__doc__ or "").split("\nExample", 1)[0]
    command.__name__ = analysis.__name__
    return command


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
        members = [
            m
            for m in get_args(annotation)
            if (get_origin(m) or m) not in NOT_TYPED and not (m is Path and str in get_args(annotation))
        ]
        return Union[tuple(_typed(m) for m in members)]  # noqa: UP007 (built at run time)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence) and origin is not tuple:
        return list[_typed(get_args(annotation)[0])]  # type: ignore[misc]
    return annotation


def _negatable(parameter: inspect.Parameter, annotation: Any) -> Any:
    """What is done unless it is switched off has a flag to switch it off, --no-NAME."""
    if parameter.default is not True:
        return annotation
    return Annotated[annotation, Parameter(negative=f"--no-{parameter.name.replace('_', '-')}")]


def _load(entry: EntryPoint) -> Callable[..., Report]:
    loaded: Callable[..., Report] = entry.load()
    return loaded


def _own_examples(entry: EntryPoint) -> str:
    lines = _own_lines(entry)
    return _examples(*lines) if lines else ""


def _own_lines(entry: EntryPoint) -> list[str]:
    """The lines after `Example:` in an analysis' docstring."""
    _, _, after = inspect.cleandoc(_load(entry).__doc__ or "").partition("\nExample:\n")
    return [line.strip() for line in after.splitlines() if line.strip()]


def _examples(*lines: str) -> str:
    """Lines to be copied; long ones continue after a backslash, so that the terminal does not break them."""
    return "Examples:\n\n" + "\n".join(
        " \\\n".join(textwrap.wrap(line, 76, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False))
        for line in lines
    )


def _print_report(report: Report, folder: Path) -> None:
    console = _console()
    console.print(report.title, style="bold")
    console.print(report.summary)
    if report.tables:
        console.print(_grid(next(iter(report.tables.values())), console.width))
    for warning in report.cautions:
        console.print(f"WARNING: {warning}", style="bold yellow")
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    for name in report.dictionaries:
        console.print(f"Dictionary: {folder / name}.safetensors", soft_wrap=True)


def _print_run(run: Run) -> None:
    import pandas as pd

    console = _console()
    keys = [k for k in ("l0", "explained_variance", "ce_increase", "dead") if k in run.dictionaries[0].metadata.metrics]
    if keys:
        rows = [{"dictionary": d.name, **{k: d.metadata.metrics[k] for k in keys}} for d in run.dictionaries]
        console.print(_grid(Table(pd.DataFrame(rows), ""), console.width))
        measures = "L0, explained variance and CE increase" if "ce_increase" in keys else "L0 and explained variance"
        on = "the rows trained on" if run.config.on else "held-out data; dead latents on training data"
        console.print(f"{measures} on {on}.")
    for name, step in run.diverged.items():
        console.print(f"{name} was given up at step {step}: its loss was no finite number.", style="yellow")
    console.print(f"Run: {run.folder}", soft_wrap=True)
    if run.stopped:
        done = run.dictionaries[0].metadata.tokens or 0
        console.print(f"Stopped after {done:,} of {run.config.tokens:,} tokens: {run.stopped}.", style="yellow")
        console.print(f"Go on with: dictlab train --resume {run.folder}", style="yellow", soft_wrap=True)


def _grid(table: Table, width: int) -> Grid:
    """The first rows and as many columns as fit the terminal; the files hold the rest."""
    if len(table.frame) == 1:
        return _fields(table)
    head = table.frame.head(SHOWN)
    cells = {str(name): [_cell(value) for value in head[name]] for name in head.columns}
    widths = {name: max(map(len, [*name.split(), *column])) + 2 for name, column in cells.items()}
    kept = [name for name, used in zip(widths, accumulate(widths.values()), strict=True) if used <= width]
    kept = kept or list(widths)[:1]
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in kept:
        grid.add_column(name.replace(" ", "\n"), overflow="fold", min_width=widths[name] - 2)
    room, following = width - sum(widths[name] for name in kept), list(widths)[len(kept) : len(kept) + 1]
    if following and room >= WRAPPED and head[following[0]].map(lambda cell: isinstance(cell, str)).all():
        grid.add_column(following[0], overflow="fold")  # text can take several lines
        kept.append(following[0])
    for row in zip(*(cells[name] for name in kept), strict=True):
        grid.add_row(*row)
    left_out = [
        f"{count} more {what}"
        for count, what in ((len(table.frame) - len(head), "rows"), (len(widths) - len(kept), "columns"))
        if count
    ]
    if left_out:
        grid.caption = f"{' and '.join(left_out)} in the files"
    return grid


def _fields(table: Table) -> Grid:
    """A table of one row, a line for each of its columns."""
    grid = Grid(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, value in table.frame.iloc[0].items():
        grid.add_row(str(name), _cell(value))
    return grid


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
