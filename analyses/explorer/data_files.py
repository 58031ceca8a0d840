"""The explorer's data as files that a page on disk can load.

A page opened from disk may load scripts, but fetch nothing. So each data file is a script of one call,

    dictlabReceive("latents-0-3", '...JSON...');

whose only argument that came from data is a string of ASCII; the page reads it with JSON.parse. Arrays of numbers are
base64 of their bytes, little-endian: {"float32": "..."}.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    content = np.ascontiguousarray(values, dtype=np.dtype(kind).newbyteorder("<"))
    return {kind: base64.b64encode(content.tobytes()).decode("ascii")}


def unpacked(content: dict[str, str]) -> NDArray[Any]:
    """The array that `packed` wrote."""
    ((kind, text),) = content.items()
    return np.frombuffer(base64.b64decode(text), dtype=np.dtype(kind).newbyteorder("<"))
