"""`dictlab train`: the settings of a run as arguments and options."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import docstring_parser
from cyclopts import Parameter

from dictlab.cli.printing import print_run
from dictlab.errors import DictlabError


def train_command() -> Callable[..., None]:
    """`dictlab train`: the fields of TrainConfig as arguments and options. None of them says its default itself, so
    that what was given can be told from what was not: flags win over a file's settings, and those over defaults.
    """
    from dictlab.training import TrainConfig, configfile, resume, train

    described = {p.arg_name: p.description or "" for p in docstring_parser.parse(TrainConfig.__doc__ or "").params}
    kinds = get_type_hints(TrainConfig)
    own = [_setting(field, kinds[field.name], described.get(field.name, "")) for field in fields(TrainConfig)]
    extra = {
        "out": (Path, "Folder of the run; runs/... by default."),
        "resume": (
            Path,
            "Folder of a run to go on with, stopped or killed. Of other settings it takes shards and trust-remote-code "
            "alone.",
        ),
        "force": (bool, "Write into a folder that already holds a run."),
    }
    own += [_optional(name, kind, text) for name, (kind, text) in extra.items()]

    def command(**given: Any) -> None:
        out, folder, force = (given.pop(name, None) for name in extra)
        given = {name: value for name, value in given.items() if value is not None}
        if folder is not None:
            shards = given.pop("shards", None)  # says who does the work, not what it is
            trusted = given.pop("trust_remote_code", False)  # the user decides that, not a folder
            if given or out or force:
                raise DictlabError(f"--resume {folder}: goes on with the settings of that run; leave out the others.")
            run = resume(folder, shards=shards, trust_remote_code=trusted)
        else:
            file = given.pop("model") if str(given.get("model", "")).endswith(".toml") else None
            known = configfile.read(file) if file else {}
            run = train(TrainConfig(**(known | given)), out=out, force=bool(force))
        if os.environ.get("RANK", "0") == "0":  # of several processes that torchrun started, the first one speaks
            print_run(run)
        if run.exit_code:
            raise SystemExit(run.exit_code)

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
