"""What lies on disk, before anybody knows whose format it is.

A `Source` is one file of weights, with the configurations that lie beside it. Safetensors and `.pt` files are mapped:
their tensors are read from disk only where they are used. Nothing is unpickled beyond tensors and plain containers, and
sizes are checked against the file's before memory is taken.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dictlab.errors import DictlabError

CONFIG_BYTES = 4 << 20  # a configuration larger than this is none
CONFIG_DEPTH = 40
EXPANDED = 64  # a compressed archive may unpack to this many times its size
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".npz")
CONFIGS = (".json", ".yaml", ".yml")


@dataclass(frozen=True, eq=False)
class Source:
    """One file of weights and what lies beside it.

    Attributes:
        path: The file.
        tensors: By name; mapped, where the file allows it.
        entries: What the file holds besides tensors, by name.
        header: Texts in a safetensors file's header.
        part: Which of several dictionaries in the file is meant.
        ignore: Fields of a configuration that may be passed over although nobody knows what they mean.
        scale: What inputs are multiplied by, where a configuration only says that they are.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    entries: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)
    part: str | None = None
    ignore: tuple[str, ...] = ()
    scale: float | None = None

    @classmethod
    def open(
        cls, path: Path, *, part: str | None = None, ignore: tuple[str, ...] = (), scale: float | None = None
    ) -> Source:
        """Open a file of weights.

        Raises:
            DictlabError: It is no file of tensors, it is damaged, or reading it would run code.
        """
        tensors, entries, header = _contents(path)
        return cls(path, tensors, entries, header, part, ignore, scale)

    @cached_property
    def configs(self) -> dict[str, dict[str, Any]]:
        """Configurations beside the file, by name; or in the folder above, where there are none beside it."""
        found = {
            name: content
            for folder in (self.path.parent, self.path.absolute().parent.parent)
            for name, content in _configs(folder).items()
        }
        own = {name: found[name] for name in _configs(self.path.parent)}
        return own or found

    def config(self, *names: str) -> dict[str, Any] | None:
        """The configuration that has all of these fields, if there is one."""
        return next((c for c in self.configs.values() if all(name in c for name in names)), None)

    def has(self, *names: str) -> bool:
        """Whether there are tensors of all of these names."""
        return all(name in self.tensors for name in names)

    def beside(self, name: str) -> Source | None:
        """Another file of weights in the same folder."""
        path = self.path.parent / name
        return Source.open(path) if path.is_file() else None

    @property
    def name(self) -> str:
        """What to call the dictionary: the file, or its folder where all files of a format have the same name."""
        stem = self.path.stem
        return self.path.absolute().parent.name if stem in ("sae_weights", "sae", "ae", "params") else stem


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that lie directly in a folder."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in WEIGHTS and not p.name.startswith("."))


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04":
        return _archive(path)
    if start[8:] == b"{":
        return _safetensors(path)
    if start[:1] == b"\x80":
        return _torch(path)
    raise DictlabError(
        f"{path}: no file of tensors: neither safetensors nor written by torch.save or numpy.savez, or damaged."
    )


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, {}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise DictlabError(
            f"{path}: not a readable safetensors file, truncated or damaged ({_line(error)})."
        ) from error


def _archive(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """A zip archive: torch.save's if it holds a pickle, numpy.savez's if it holds arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise DictlabError(f"{path}: a damaged archive, perhaps truncated ({_line(error)}).") from error
    unsafe = next((m.filename for m in members if ".." in Path(m.filename).parts or m.filename[:1] in "/\\"), None)
    if unsafe is not None:
        raise DictlabError(f"{path}: refused: the archive's member {unsafe[:80]!r} points outside of it.")
    if sum(m.file_size for m in members) > EXPANDED * path.stat().st_size:
        raise DictlabError(f"{path}: refused: the archive claims to unpack to more than {EXPANDED} times its size.")
    if members and all(m.filename.endswith(".npy") for m in members):
        return _numpy(path, members), {}, {}
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise DictlabError(f"{path}: refused: a compressed archive, which torch.save does not write.")
    return _torch(path)


def _torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    size = path.stat().st_size
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or hostile pickle fails in any way it likes
        raise DictlabError(
            f"{path}: refused: not a file of tensors alone, or damaged ({_line(error)}). Loading anything more would "
            "run its code. If you trust it, open it with its own library and save its state_dict()."
        ) from error
    if not isinstance(content, dict):
        raise DictlabError(f"{path}: it holds a {type(content).__name__}; expected a dictionary of named tensors.")
    named = {str(name).removeprefix("_orig_mod."): value for name, value in content.items()}  # torch.compile's prefix
    for name, tensor in _tensors_in(named):
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.numel() * tensor.element_size() > size:
            raise DictlabError(f"{path}: refused: the tensor {name[:80]!r} claims to be larger than the file.")
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in named.items() if name not in tensors}, {}


def _tensors_in(content: Mapping[Any, Any], depth: int = 0) -> list[tuple[str, Tensor]]:
    found = [(str(name), value) for name, value in content.items() if isinstance(value, Tensor)]
    for value in content.values():
        if isinstance(value, dict) and depth < 3:
            found += _tensors_in(value, depth + 1)
    return found


def _numpy(path: Path, members: list[zipfile.ZipInfo]) -> dict[str, Tensor]:
    """Arrays of numpy.savez: mapped where they are stored as they are, unpacked where they are compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {m.filename.removesuffix(".npy"): torch.from_numpy(_array(path, archive, m)) for m in members}
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, TypeError, EOFError, RuntimeError) as error:
        raise DictlabError(f"{path}: a damaged archive of arrays ({_line(error)}).") from error


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    with archive.open(member) as file:
        shape, fortran, dtype = _npy_header(file)
        header, count = file.tell(), math.prod(shape)
        if dtype.kind not in "fiub" or not 0 < count * dtype.itemsize <= member.file_size - header:
            raise DictlabError(f"{path}: refused: {member.filename[:80]!r} is no plain array, or truncated.")
        order: Literal["F", "C"] = "F" if fortran else "C"
        if member.compress_type == zipfile.ZIP_STORED and dtype.isnative:
            return np.memmap(path, dtype, "c", _data_offset(path, member) + header, shape, order)
        flat = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
        return flat.astype(dtype.newbyteorder("=")).reshape(shape, order=order)


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its own header, whose two lengths may differ from the directory's."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        return file.tell() + int(name) + int(extra)


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype


class _NoAliases(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without references: nested ones can stand for more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it refers to parts of itself")
        return super().compose_node(parent, index)


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The readable configurations in a folder. Others may lie there that are nobody's business."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix in CONFIGS and path.is_file() and path.stat().st_size <= CONFIG_BYTES:
            content = read_config(path)
            if content is not None:
                found[path.name] = content
    return found


def read_config(path: Path) -> dict[str, Any] | None:
    """A JSON object or YAML mapping; None if the file holds something else, or is damaged."""
    try:
        text = path.read_text("utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, _NoAliases)
        ok = isinstance(content, dict) and _depth(content) <= CONFIG_DEPTH
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return {str(name): value for name, value in content.items()} if ok else None


def _depth(content: Any) -> int:
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:160]
    return text or type(error).__name__
