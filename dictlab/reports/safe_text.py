"""Text from files, users and tokenizers, shown so that it can neither steer a terminal nor pass for what it is not.

Control characters (escape sequences begin with one), NUL, bidirectional marks, surrogates and line separators are
written as their codes, `\\x1b` or `\\u202e`. In CSV files a text that a spreadsheet would take for a formula gets an
apostrophe in front. Halves of surrogate pairs, which no file can hold as text, are codes in every file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
FORMULA = re.compile(r"[=+\-@\t\r]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)


def safe(text: str) -> str:
    """The text with what is unsafe to show as codes; line ends and tabs stay."""
    return UNSAFE.sub(lambda match: _code(ord(match[0])), text)


def _code(number: int) -> str:
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def encodable(text: str) -> str:
    """The text with halves of surrogate pairs as codes, so that it can be written as UTF-8; all else stays."""
    return text.encode("utf-8", "backslashreplace").decode()


def encodable_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every text in it, names of columns included, such that it can be written as UTF-8."""
    import pandas as pd

    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    plain = frame.assign(**{name: frame[name].map(_encodable) for name in texts}) if texts else frame
    return plain.rename(columns=_encodable)


def _encodable(value: Any) -> Any:
    return encodable(value) if isinstance(value, str) else value


def for_csv(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with every text, column names included, such that no spreadsheet takes it for a formula."""
    import pandas as pd

    plain = frame.rename(columns=_no_formula)
    texts = [name for name in plain.columns if not pd.api.types.is_numeric_dtype(plain[name])]
    return plain.assign(**{name: plain[name].map(_no_formula) for name in texts})


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str) or not FORMULA.match(value) or NUMBER.fullmatch(value):
        return value
    return f"'{value}"
