"""The one exception that is the user's to mend: its message is the whole story, no traceback needed."""

from __future__ import annotations


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
