"""The explorer's data as files that a page on disk can load.

A page opened from disk may load scripts, but fetch nothing. So each data file is a script of one call,

    dictlabReceive("latents-0-3", '...JSON...');

whose only argument that came from data is a string of ASCII; the page reads it with JSON.parse. Arrays of numbers are
base64 of their bytes, little-endian: {"float32": "..."}. What lies between -1 and 1 may be {"unit16": ...}, steps of
1/32,767 with -32,768 for NaN; token ids below 65,535 {"id16": ...}, with 65,535 for none.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNIT16, NAN16, NO_ID16 = 32767, -32768, 65535
KINDS = {"f": "float32", "i": "int32", "u": "uint8"}


def write_data(folder: Path, name: str, content: Any) -> int:
    """Write one data file; returns its size in bytes.

    Args:
        folder: Of the data files.
        name: Of the file, without its suffix; the page asks for it by this name.
        content: What JSON can hold. Numbers that are not finite are refused: the caller says what stands for them.
    """
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    script = f"dictlabReceive({json.dumps(name)},'{quoted}');\n"
    (folder / f"{name}.js").write_text(script, encoding="ascii")
    return len(script)


def read_data(folder: Path, name: str) -> Any:
    """What `write_data` wrote."""
    script = (folder / f"{name}.js").read_text(encoding="ascii")
    quoted = script[script.index(",'") + 2 : script.rindex("'")]
    return json.loads(quoted.replace("\\'", "'").replace("\\\\", "\\"))


def packed(values: NDArray[Any]) -> dict[str, str]:
    """An array as bytes in base64: float32, int32 or uint8."""
    kind = KINDS[values.dtype.kind]
    return {kind: _base64(values.astype(np.dtype(kind).newbyteorder("<")))}


def packed_unit(values: NDArray[Any]) -> dict[str, str]:
    """Numbers from -1 to 1, NaN among them, in 16 bits each: to within 1/65,534."""
    steps = np.where(np.isnan(values), NAN16, np.rint(np.clip(values, -1, 1) * UNIT16))
    return {"unit16": _base64(steps.astype("<i2"))}


def packed_ids(ids: NDArray[Any]) -> dict[str, str]:
    """Token ids, -1 for none: in 16 bits each where they fit."""
    if ids.max(initial=0) >= NO_ID16:
        return packed(ids.astype(np.int32))
    return {"id16": _base64(np.where(ids < 0, NO_ID16, ids).astype("<u2"))}


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def unpacked(content: dict[str, str]) -> NDArray[Any]:
    """The array that `packed`, `packed_unit` or `packed_ids` wrote."""
    ((kind, text),) = content.items()
    if kind == "unit16":
        steps = np.frombuffer(base64.b64decode(text), dtype="<i2")
        return np.where(steps == NAN16, np.nan, steps / UNIT16)
    if kind == "id16":
        ids = np.frombuffer(base64.b64decode(text), dtype="<u2").astype(np.int64)
        return np.where(ids == NO_ID16, -1, ids)
    return np.frombuffer(base64.b64decode(text), dtype=np.dtype(kind).newbyteorder("<"))
