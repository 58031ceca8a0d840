"""Tensors out of zip archives and pickles: what torch.save and numpy.savez write, looked at before it is opened.

Members that are stored as they are, and not compressed, are mapped: their numbers are read where they are used.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from dictlab.errors import DictlabError
from dictlab.formats.reading import pickles
from dictlab.formats.reading.configs import line, plain

EXPANDED = 64  # a compressed archive may unpack to this many times its size
MEMBERS = 20_000  # one a storage, and a few besides
KINDS = (Tensor, torch.Size, torch.dtype, torch.device)  # what may lie in a .pt file beside plain values


def archive(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a zip archive holds: torch.save's, or numpy.savez's if all in it are arrays.

    Raises:
        DictlabError: It is damaged, is neither, or claims more than it can hold.
    """
    count = _stated_members(path)
    if count > MEMBERS:
        raise DictlabError(f"{path}: refused: an archive of {count} members; a dictionary's has at most {MEMBERS}.")
    try:
        with zipfile.ZipFile(path) as file:
            members, start = file.infolist(), file.start_dir
    except Exception as error:  # a damaged archive fails in any way it likes
        raise DictlabError(f"{path}: a damaged archive, perhaps truncated ({line(error)}).") from error
    unsafe = next((m.filename for m in members if ".." in Path(m.filename).parts or m.filename[:1] in "/\\"), None)
    if unsafe is not None:
        raise DictlabError(f"{path}: refused: the archive's member {unsafe[:80]!r} points outside of it.")
    if sum(m.file_size for m in members) > EXPANDED * path.stat().st_size:
        raise DictlabError(f"{path}: refused: the archive claims to unpack to more than {EXPANDED} times its size.")
    if not _one_directory(path, start) or len({m.filename.lower() for m in members}) < len(members):
        raise DictlabError(f"{path}: refused: a damaged archive, which readers could understand in different ways.")
    if members and all(m.filename.endswith(".npy") for m in members):
        return _arrays(path, members), {}
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise DictlabError(f"{path}: refused: a compressed archive, which torch.save does not write.")
    return saved_by_torch(path, members)


def saved_by_torch(
    path: Path, members: list[zipfile.ZipInfo] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a file of torch.save, and what it holds besides.

    Args:
        path: The file.
        members: Of the archive, where it is one; before version 1.6 it was none.

    Raises:
        DictlabError: It holds more than tensors and plain containers, or claims more than it can hold.
    """
    try:
        with path.open("rb") as file:
            if members is None:
                pickles.check_legacy(file, path.stat().st_size)
            else:
                pickles.check_pickle(_pickle_in(file, members))
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=members is not None)
    except Exception as error:  # a damaged or hostile pickle fails in any way it likes
        raise DictlabError(
            f"{path}: refused: not a file of tensors alone, or damaged ({line(error)}). Loading anything more could "
            "run its code. If you trust it, open it with its own library and save its state_dict()."
        ) from error
    if not isinstance(content, dict):
        raise DictlabError(f"{path}: it holds a {type(content).__name__}; expected a dictionary of named tensors.")
    try:
        content = plain(content, KINDS)
        tensors = {name: _sound(value, path) for name, value in content.items() if isinstance(value, Tensor)}
        entries = {name: _sounds(value, path) for name, value in content.items() if name not in tensors}
    except ValueError as error:
        raise DictlabError(f"{path}: refused: {line(error)}.") from error
    return tensors, entries


def _pickle_in(file: IO[bytes], members: list[zipfile.ZipInfo]) -> IO[bytes]:
    """The one pickle of an archive."""
    found = [m for m in members if m.filename.lower().endswith(".pkl")]
    if len(found) != 1 or found[0].file_size > pickles.BYTES:
        raise ValueError(f"{len(found)} pickles in it; expected one, of at most {pickles.BYTES} bytes")
    with zipfile.ZipFile(file) as archive:
        return io.BytesIO(archive.read(found[0]))


def _sounds(value: Any, path: Path) -> Any:
    """The tensors somewhere inside an entry, checked."""
    if isinstance(value, dict):
        return {name: _sounds(inner, path) for name, inner in without_prefix(path, value).items()}
    if isinstance(value, list):
        return [_sounds(inner, path) for inner in value]
    return _sound(value, path) if isinstance(value, Tensor) else value


def _sound(tensor: Tensor, path: Path) -> Tensor:
    """A tensor of numbers that are really in the file, one for each element.

    Raises:
        ValueError: It is another kind of tensor, or strides that visit the same number twice make it look larger.
    """
    if type(tensor) not in (Tensor, Parameter) or tensor.is_nested or tensor.layout is not torch.strided:
        raise ValueError(f"a tensor in it is a {type(tensor).__name__} of an uncommon kind")
    if tensor.is_quantized or tensor.is_meta:
        raise ValueError("a tensor in it is quantised, or has no numbers")
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise ValueError(f"a tensor in it claims to be larger than the file ({list(tensor.shape)})")
    return tensor.detach()


def without_prefix(path: Path, named: Mapping[str, Any]) -> dict[str, Any]:
    """The same names without what torch.compile puts before a module's.

    Raises:
        DictlabError: Two names are the same then.
    """
    found = {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): value for name, value in named.items()}
    if len(found) < len(named):
        raise DictlabError(f"{path}: refused: it holds the same name with and without the prefix '_orig_mod.'.")
    return found


def _arrays(path: Path, members: list[zipfile.ZipInfo]) -> dict[str, Tensor]:
    """Arrays of numpy.savez: mapped where they are stored as they are, unpacked where they are compressed."""
    try:
        with zipfile.ZipFile(path) as file:
            return {m.filename.removesuffix(".npy"): torch.from_numpy(_array(path, file, m)) for m in members}
    except Exception as error:  # as above
        raise DictlabError(f"{path}: a damaged archive of arrays, or not of numbers alone ({line(error)}).") from error


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    with archive.open(member) as file:
        shape, fortran, dtype = _npy_header(file)
        header, count = file.tell(), math.prod(shape)
        if dtype.kind not in "fiub" or not 0 < count * dtype.itemsize <= member.file_size - header:
            raise ValueError(f"{member.filename[:80]!r} is no plain array, or truncated")
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


def _stated_members(path: Path) -> int:
    """How many members the archive's last record claims, read without reading the directory; 0 where there is none."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 98))
        tail = file.read()
    record, end = tail[-98:-42], tail[-22:]
    count = int.from_bytes(end[10:12], "little") if end[:4] == b"PK\x05\x06" else 0
    large = count == 0xFFFF and record[:4] == b"PK\x06\x06"
    return int.from_bytes(record[32:40], "little") if large else count


def _one_directory(path: Path, start: int) -> bool:
    """Whether the archive's last bytes point at the directory that was read.

    This one finds it by its distance from the end, torch by what the end says: they must not differ.
    """
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 98))
        tail = file.read()
    record, locator, end = tail[-98:-42], tail[-42:-22], tail[-22:]  # the first two in archives of more than 4 GB
    if end[:4] != b"PK\x05\x06":  # a comment follows
        return False
    if locator[:4] != b"PK\x06\x07":
        return int.from_bytes(end[16:20], "little") == start
    where, directory = int.from_bytes(locator[8:16], "little"), int.from_bytes(record[48:56], "little")
    return record[:4] == b"PK\x06\x06" and where == size - 98 and directory == start
