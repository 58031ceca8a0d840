"""From one library's file to another's, and a proof that nothing was lost on the way."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.codes import Codes
from dictlab.errors import DictlabError
from dictlab.formats.loading import format_of, formats, load
from dictlab.numerics import seeds
from dictlab.runtime import atomic_files
from dictlab.site_names import may_be_one_site

PROBES = 32  # random activations of each size that both are tried on
# In lengths of a decoder direction: biases show in small activations, high thresholds in large ones.
SIZES = (0.01, 0.1, 1, 10, 100, 1000)
TOLERANCE = 1e-4  # of a reconstruction's largest value: folding in float32 leaves about 1e-6
FLIPS = 1e-6  # share of all codes that may fall on the other side of a threshold by rounding


def write(dictionary: Dictionary, path: str | Path, format: str, *, force: bool = False) -> Path:
    """Write a dictionary in a library's format, and read it back: it must be the same function, at the same place.

    Args:
        dictionary: What to write.
        path: A `.safetensors` file for dictlab's own format, a folder for the others.
        format: The name of a format.
        force: Replace what is already there. A folder is replaced only if it holds nothing else than such a dictionary.

    Raises:
        DictlabError: The format is unknown or is only read, cannot express the dictionary, or the path is taken. What
            was there before stays.
    """
    path, module = Path(path), format_of(format)
    if not hasattr(module, "write"):
        raise DictlabError(f"{path}: format {format!r} is only read; written are {', '.join(_written())}.")
    if not dictionary.plain and not getattr(module, "WRITES_TWO_PLACES", False):
        able = ", ".join(name for name in _written() if getattr(format_of(name), "WRITES_TWO_PLACES", False))
        what = "a transcoder" if dictionary.transcodes else "a dictionary with a linear skip"
        raise DictlabError(f"{path}: {what} is not written in the format {format!r}; these can hold one: {able}.")
    if path.name in ("", ".."):
        raise DictlabError(f"{path}: expected the name of a file or folder to make.")
    if path.exists() and not force:
        raise DictlabError(f"{path} exists already; choose another name, or write `force=True` to replace it.")
    absent = [folder for folder in path.parents if not folder.exists()]
    beside = path.with_name(f".{path.name}.partial")
    new = beside / path.name  # under its own name: some formats read from it where they belong
    try:
        with atomic_files.locked_folder(beside):
            module.write(dictionary, new)
            _check_same(dictionary, load(new, format=format), format)
            _check_replaceable(new, path)
            atomic_files.put(new, path)
        absent = []
    except DictlabError as error:
        reason = str(error).replace(str(new), str(path)).removeprefix(f"{path}: ")
        raise DictlabError(f"{path}: not written: {reason}") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DictlabError(f"{path}: not written: {reason}. What was there before stays.") from error
    finally:
        with suppress(OSError):
            for folder in absent:
                folder.rmdir()
    return path


def _written() -> list[str]:
    return [name for name, module in formats().items() if hasattr(module, "write")]


def _check_replaceable(new: Path, path: Path) -> None:
    """Refuse to replace a folder that holds anything but an older dictionary.

    Raises:
        DictlabError: It does.
    """
    if not path.is_dir() or path.is_symlink():
        return
    others = (other for other in path.rglob("*") if not (new.is_dir() and (new / other.relative_to(path)).exists()))
    foreign = next(others, None)
    if foreign is not None or not new.is_dir():
        what = f"a folder that holds {foreign.relative_to(path)} as well" if foreign else "a folder"
        raise DictlabError(f"it is {what}; nothing in it was touched. Choose another name.")


@torch.no_grad()
def _check_same(dictionary: Dictionary, back: Dictionary, format: str) -> None:
    """Both on random activations, in the units of the input: a constant scale may have been folded."""
    _check_place(dictionary.metadata, back.metadata, format)
    one, other = dictionary.to("cpu", torch.float32).in_input_units(), back.in_input_units()
    for ours, theirs in ((one.W_enc, other.W_enc), (one.W_dec, other.W_dec)):
        if ours.shape != theirs.shape:
            shapes = f"{list(theirs.shape)}, not {list(ours.shape)}"
            raise DictlabError(f"read back from the {format} file, it has the shape {shapes}.")
    if one.transcodes != other.transcodes:
        raise DictlabError(f"read back from the {format} file, it is {'' if other.transcodes else 'no '}transcoder.")
    _check_skip(one.W_skip, other.W_skip, format)
    one, other = replace(one, W_skip=None), replace(other, W_skip=None)  # beside a large skip, latents would not show
    x = _probes(one)
    (codes, x_hat), (codes_back, x_hat_back) = one(x), other(x)
    flipped = _flipped(codes, codes_back)
    same = torch.ones(len(x), dtype=torch.bool).index_fill_(0, flipped // one.n_latents, False)
    off = (x_hat - x_hat_back).abs().amax(dim=1) / x_hat.abs().amax(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    difference = float(off[same].max()) if same.any() else float("inf")
    if not difference <= TOLERANCE or len(flipped) > FLIPS * len(x) * one.n_latents + 2:  # 2: a tie between latents
        raise DictlabError(
            f"read back from the {format} file, reconstructions of random activations differ by {difference:.2g} of "
            f"the largest value, and {len(flipped)} codes are active in one of the two alone: a property of the "
            "dictionary was lost."
        )


def _check_skip(one: Tensor | None, back: Tensor | None, format: str) -> None:
    """Whether the skip is the same matrix, or absent from both."""
    if one is None or back is None:
        if one is not back:
            raise DictlabError(f"read back from the {format} file, it has {'no' if back is None else 'a'} linear skip.")
    elif not torch.allclose(one, back, rtol=TOLERANCE, atol=TOLERANCE * float(one.abs().max())):
        raise DictlabError(f"read back from the {format} file, its linear skip is another matrix.")


def _check_place(one: Metadata, back: Metadata, format: str) -> None:
    """Codes are the same only where the activations are."""
    if one.site and back.site and not may_be_one_site(one.site, back.site):
        raise DictlabError(f"read back from the {format} file, its site is {back.site}, not {one.site}.")
    if one.writes and back.writes and not may_be_one_site(one.writes, back.writes):
        raise DictlabError(f"read back from the {format} file, it writes {back.writes}, not {one.writes}.")
    ours, theirs = one.convention, back.convention
    if ours != theirs and "transformer_lens" in (ours, theirs) and ours is not None:
        raise DictlabError(
            f"read back from the {format} file, it reads the activations of {theirs or 'an unnamed library'}, not of "
            f"{ours}: the format cannot express that."
        )


def _probes(dictionary: Dictionary) -> Float[Tensor, "tokens d_in"]:
    """Random activations of several sizes about the output bias, so that latents with a high threshold fire too.

    A transcoder's decoder and output bias tell nothing of the size of its input: there a length is that of an input of
    which the encoder makes 1, and the centre is the input bias.
    """
    noise = torch.randn(len(SIZES), PROBES, dictionary.d_in, generator=seeds.generator(0, "conversion"))
    length, centre = dictionary.W_dec.norm(dim=1).mean(), dictionary.b_out
    if dictionary.transcodes:
        length, centre = 1 / dictionary.W_enc.norm(dim=0).mean().clamp(min=1e-12), dictionary.b_pre
    sizes = length * torch.tensor(SIZES)
    x: Tensor = (noise * sizes[:, None, None]).flatten(0, 1) + centre
    return x


def _flipped(a: Codes, b: Codes) -> Int[Tensor, " flipped"]:
    """Entries (token times latents plus latent) that are active in one of the two alone."""
    active = [codes.rows[on] * codes.n_latents + codes.indices[on] for codes in (a, b) for on in [codes.values != 0]]
    entries, times = torch.cat(active).unique(return_counts=True)
    flipped: Tensor = entries[times == 1]
    return flipped
