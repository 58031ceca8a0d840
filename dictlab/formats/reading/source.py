"""What lies on disk, before anybody knows whose format it is.

A `Source` is one file of weights, with the configurations that lie beside it. Safetensors and `.pt` files are mapped:
their tensors are read from disk only where they are used. Nothing is unpickled beyond tensors and plain containers, and
sizes are checked against the file's before memory is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from dictlab.errors import DictlabError
from dictlab.formats.names import WEIGHTS, name_of
from dictlab.formats.reading.archives import archive, saved_by_torch, without_prefix
from dictlab.formats.reading.configs import configs_in, line

TENSORS = 10_000  # a checkpoint of many sites has hundreds
HEADER_BYTES = 16 << 20  # of a safetensors file: some hundred bytes a tensor


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
        registered: The same as some registry has it, which may list it for files that need none.
        inner_configs: Configurations that the file itself holds; they go before those beside it.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    entries: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)
    part: str | None = None
    ignore: tuple[str, ...] = ()
    scale: float | None = None
    registered: float | None = None
    inner_configs: Mapping[str, dict[str, Any]] = field(default_factory=dict)

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

    def other(self, path: Path) -> Source:
        """Another file, opened with the same wishes."""
        opened = Source.open(path, part=self.part, ignore=self.ignore, scale=self.scale)
        return replace(opened, registered=self.registered)

    @cached_property
    def _beside(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        own = configs_in(self.path.parent)
        return own if any(own) else configs_in(self.path.absolute().parent.parent)

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """Configurations beside the file, by name; or in the folder above, where there are none beside it."""
        return {**self.inner_configs, **self._beside[0]}

    @property
    def damaged(self) -> dict[str, str]:
        """What is wrong with configurations that cannot be read, by name."""
        return self._beside[1]

    def config(self, *names: str) -> dict[str, Any] | None:
        """The configuration that has all of these fields, if there is one."""
        return next((c for c in self.configs.values() if all(name in c for name in names)), None)

    def has(self, *names: str) -> bool:
        """Whether there are tensors of all of these names."""
        return all(name in self.tensors for name in names)

    def beside(self, name: str) -> Source | None:
        """Another file of weights in the same folder."""
        path = self.path.parent / Path(name).name
        return Source.open(path) if path.is_file() else None

    @property
    def name(self) -> str:
        """What to call the dictionary: the file, or its folder where all files of a format have the same name."""
        return name_of(self.path)


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that lie directly in a folder."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in WEIGHTS and not p.name.startswith("."))


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise DictlabError(f"{path}: cannot be read ({line(error)}).") from error
    if start[8:] == b"{":
        tensors, header = _safetensors(path, int.from_bytes(start[:8], "little"))
        return without_prefix(path, tensors), {}, header
    if start[:4] == b"PK\x03\x04":
        tensors, entries = archive(path)
    elif start[:1] == b"\x80":
        tensors, entries = saved_by_torch(path)
    else:
        raise DictlabError(
            f"{path}: no file of tensors: neither safetensors nor written by torch.save or numpy.savez, or damaged."
        )
    return without_prefix(path, tensors), without_prefix(path, entries), {}


def _safetensors(path: Path, header: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    if header > HEADER_BYTES:
        raise DictlabError(f"{path}: refused: its header claims {header} bytes; expected at most {HEADER_BYTES}.")
    with path.open("rb") as file:  # counted, for reading so many takes seconds
        tensors = file.read(8 + header).count(b'"data_offsets"')
    if tensors > TENSORS:
        raise DictlabError(f"{path}: refused: it holds {tensors} tensors; a dictionary's file has at most {TENSORS}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # a damaged file fails in any way it likes
        raise DictlabError(f"{path}: not a readable safetensors file, truncated or damaged ({line(error)}).") from error
