"""One thing that is looked at in a dictionary's file, and how it came out."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """One thing looked at.

    Attributes:
        check: What.
        result: "pass", "fail", or "not done".
        found: The figure.
        expected: What passes.
    """

    check: str
    result: str
    found: str
    expected: str


def outcome(passed: bool) -> str:
    """A check's result."""
    return "pass" if passed else "fail"
