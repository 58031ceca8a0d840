"""The one exception that is the user's to mend: its message is the whole story, no traceback needed."""

from __future__ import annotations

from typing import get_args


class DictlabError(Exception):
    """A wrong file, option, model or text. The message names it, says what was found and expected, and what to do."""


def check_at_least(least: float, **options: float | None) -> None:
    """Refuse options below a limit; None is no value, and passes.

    Raises:
        DictlabError: One of them is too small; it is named.
    """
    for name, value in options.items():
        if value is not None and not value >= least:
            raise DictlabError(f"{name} is {value}; expected {least} or more.")


def check_choice(choices: object, **options: object) -> None:
    """Refuse options that a `Literal` does not have; None is no value, and passes.

    Raises:
        DictlabError: One of them is something else; it is named, and what it may be.
    """
    for name, value in options.items():
        if value is not None and value not in get_args(choices):
            raise DictlabError(f"{name} is {value!r}; expected one of {', '.join(map(str, get_args(choices)))}.")
