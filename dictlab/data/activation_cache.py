"""Activations of a model, kept on disk for the next run that asks for the same tokens.

One file for each forward and site, named after the tokens that went in, below a folder for each model, site, context
and precision. A file also holds its tokens, and is used only where they are the very ones that are asked for: another
text, another order or another tokenizer finds nothing. What is found is what the model would compute, bit for bit, so a
run with a cache and one without make the same dictionary.

When the cache is full nothing more is written, and the rest is computed as it is without one. Nothing is thrown out:
runs read the same text from its beginning, so the least recently used file is what the next run wants first.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dictlab.errors import DictlabError
from dictlab.model.language_model import LanguageModel
from dictlab.runtime.atomic_files import WRITING, remove, save_tensors

GIGABYTE = 10**9
ABOUT = "about.json"


class ActivationCache:
    """A model's `capture` that looks on disk first.

    Args:
        folder: Made if it does not exist; several models and sites can share it.
        model: Whose activations.
        sites: Where.
        context: Tokens a context.
        gigabytes: Size the whole folder may grow to, in 10^9 bytes.
        writers: Processes that fill it together, each its own part of what is free now.

    Raises:
        DictlabError: The folder is a file, or one of its own folders belongs to something else.
    """

    def __init__(
        self,
        folder: str | Path,
        model: LanguageModel,
        sites: Sequence[str],
        *,
        context: int,
        gigabytes: float,
        writers: int = 1,
    ) -> None:
        self._model = model
        self.folder, self.hits, self.misses = Path(folder), 0, 0
        if self.folder.exists() and not self.folder.is_dir():
            raise DictlabError(f"cache {folder}: this is a file; expected a folder.")
        self._places = {site: self._place(site, context) for site in sites}
        self.bytes = sum(path.stat().st_size for path in self.folder.rglob("*.safetensors"))
        free = max(0, int(gigabytes * GIGABYTE) - self.bytes)
        self._room = self.bytes + free // writers

    def capture(self, tokens: Int[Tensor, "batch context"]) -> dict[str, Float[Tensor, "batch context d_in"]]:
        """Activations at every site: from the disk where all of them are there, from the model otherwise."""
        name = f"{hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:32]}.safetensors"
        paths = {site: place / name for site, place in self._places.items()}
        if all(path.exists() for path in paths.values()):
            self.hits += 1
            return {site: _read(path, tokens).to(self._model.device) for site, path in paths.items()}
        self.misses += 1
        found = self._model.capture(tokens, list(paths))
        for site, path in paths.items():
            self._write(path, tokens, found[site])
        return found

    def _write(self, path: Path, tokens: Tensor, x: Tensor) -> None:
        """Keep one forward's activations, if there is room."""
        size = x.numel() * x.element_size() + tokens.numel() * 4
        if path.exists() or self.bytes + size > self._room:
            return
        try:
            with _unfinished(path) as partial:
                save_tensors({"tokens": tokens.int(), "activations": x.cpu().contiguous()}, partial)
        except OSError as error:
            raise DictlabError(
                f"cache {self.folder}: {path.name} cannot be written ({error}). "
                "Free space, or set a lower limit with `cache_gb=...`."
            ) from error
        self.bytes += path.stat().st_size

    def _place(self, site: str, context: int) -> Path:
        """The folder of a site, checked to be what its name says."""
        weights = next(self._model.model.parameters())
        about: Mapping[str, Any] = {
            "model": self._model.fingerprint,
            "site": site,
            "context": context,
            "dtype": str(weights.dtype).removeprefix("torch."),
            "device": weights.device.type,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        place = self.folder / digest
        place.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(place)
        written = place / ABOUT
        if not written.exists():
            with _unfinished(written) as partial:
                partial.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        elif written.read_text(encoding="utf-8") != json.dumps(about, indent=2) + "\n":
            raise DictlabError(f"cache {place}: {ABOUT} tells of another model or site; delete this folder.")
        return place


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A name of this process to write a file under, which replaces `path` when the block has ended well.

    It is not synchronised with the disk: what a loss of power tears is refused by name.
    """
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_left_behind(place: Path) -> None:
    """Remove unfinished files of processes of this machine that are gone. Others may be writing theirs just now."""
    for partial in place.glob(f".*.{glob.escape(socket.gethostname())}.*.partial*"):
        number = partial.name.removesuffix(WRITING).split(".")[-2]
        if number.isdecimal() and not _runs(int(number)):
            remove(partial)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's; or no number of a process
        return True
    return True


def _read(path: Path, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context d_in"]:
    try:
        with safe_open(path, framework="pt") as file:
            kept: Tensor = file.get_tensor("tokens")
            x: Tensor = file.get_tensor("activations")
    except (SafetensorError, OSError) as error:
        raise DictlabError(f"cache {path}: damaged ({error}); delete it.") from error
    if not torch.equal(kept, tokens.int()) or x.shape[:2] != tokens.shape:
        raise DictlabError(f"cache {path}: holds other tokens than its name says; delete it.")
    return x
