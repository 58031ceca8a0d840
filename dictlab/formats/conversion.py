"""From one library's file to another's, and a proof that nothing was lost on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from dictlab import seeds
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.formats.loading import format_of, formats, load

PROBES = 64  # random activations that both are tried on
TOLERANCE = 1e-4  # of the largest value: folding in float32 leaves about 1e-6


def write(dictionary: Dictionary, path: str | Path, format: str, *, force: bool = False) -> Path:
    """Write a dictionary in a library's format, and read it back: it must be the same function.

    Args:
        dictionary: What to write.
        path: A `.safetensors` file for dictlab's own format, a folder for the others.
        format: The name of a format.
        force: Replace what is already there.

    Raises:
        DictlabError: The format is unknown or is only read, cannot express the dictionary, or the path is taken. What
            was there before stays.
    """
    path, module = Path(path), format_of(format)
    if not hasattr(module, "write"):
        raise DictlabError(f"{path}: format {format!r} is only read; written are {', '.join(_written())}.")
    if path.exists() and not force:
        raise DictlabError(f"{path} exists already; choose another name, or write --force to replace it.")
    beside = path.with_name(f".{path.stem}.partial{path.suffix}")
    _remove(beside)
    try:
        module.write(dictionary, beside)
        _check_same(dictionary, load(beside, format=format), format)
        _remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.rename(path)
    except DictlabError as error:
        raise DictlabError(f"{path}: not written: {str(error).removeprefix(f'{beside}: ')}") from error
    finally:
        _remove(beside)
    return path


def _written() -> list[str]:
    return [name for name, module in formats().items() if hasattr(module, "write")]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@torch.no_grad()
def _check_same(dictionary: Dictionary, back: Dictionary, format: str) -> None:
    """Both on random activations, in the units of the input: a constant scale may have been folded."""
    one, other = dictionary.to("cpu", torch.float32).in_input_units(), back.in_input_units()
    x = torch.randn(PROBES, one.d_in, generator=seeds.generator(0, "conversion"))
    x = x * one.W_dec.norm(dim=1).mean() + one.b_out
    (codes, x_hat), (codes_back, x_hat_back) = one(x), other(x)
    difference = float((x_hat - x_hat_back).abs().max() / x_hat.abs().max().clamp(min=1.0))
    moved = int((codes.firings() - codes_back.firings()).abs().sum())
    if not difference <= TOLERANCE or moved > TOLERANCE * int(codes.l0().sum()) + 1:  # 1: a value at its threshold
        raise DictlabError(
            f"read back from the {format} file, reconstructions of random activations differ by {difference:.2g} of "
            f"the largest, and {moved} firings: a property of the dictionary was lost."
        )
