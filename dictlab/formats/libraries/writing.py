"""What the writers of other libraries' formats share: exact rewrites, and folders that appear whole or not at all.

    a scale s into the weights     W_enc' = s W_enc,  b_pre' = b_pre / s,  W_dec' = W_dec / s,  b_out' = b_out / s
    one bias for both ends         b_enc' = b_enc + (b_out - b_pre) W_enc,  b_pre' = b_out
    no bias on the input           b_enc' = b_enc - b_pre W_enc,  b_pre' = 0

All three leave codes and reconstructions as they are, up to rounding. A transcoder's output is not in the units of its
input: of the first, its W_dec and b_out stay as they are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.normalisation import NoNormalisation, Scale
from dictlab.errors import DictlabError
from dictlab.formats.native.header import metadata_of
from dictlab.runtime import atomic_files

OWN = "dictlab"  # the field of a configuration that holds what the other library has no place for
COLUMNS = 1 << 14  # of the encoder, held in float64 at once
UNIT = 1e-3  # rows of a decoder this close to length 1 count as unit


def unscaled(dictionary: Dictionary, target: str) -> Dictionary:
    """The same codes and reconstructions with no input normalisation: a constant scale goes into the weights.

    Raises:
        DictlabError: Its normalisation looks at each token, which `target` cannot express.
    """
    if dictionary.normalisation == NoNormalisation():
        return dictionary
    if not isinstance(dictionary.normalisation, Scale):
        raise DictlabError(
            f"{target} cannot express its input normalisation ({dictionary.normalisation.kind}): only a constant scale "
            "can be folded into the weights."
        )
    s, d = dictionary.normalisation.factor, precise(dictionary)
    by = 1.0 if d.transcodes else s
    return replace(
        d,
        W_enc=d.W_enc * s,
        b_pre=d.b_pre / s,
        W_dec=d.W_dec / by,
        b_out=d.b_out / by,
        normalisation=NoNormalisation(),
    )


def one_bias(dictionary: Dictionary) -> Dictionary:
    """The same function with b_pre = b_out."""
    if torch.equal(dictionary.b_pre, dictionary.b_out):
        return dictionary
    d = precise(dictionary)
    return replace(d, b_enc=d.b_enc + _through(d.b_out.double() - d.b_pre.double(), d.W_enc), b_pre=d.b_out)


def no_pre_bias(dictionary: Dictionary) -> Dictionary:
    """The same function with b_pre = 0."""
    if not dictionary.b_pre.any():
        return dictionary
    d = precise(dictionary)
    return replace(d, b_enc=d.b_enc - _through(d.b_pre.double(), d.W_enc), b_pre=torch.zeros_like(d.b_pre))


def precise(dictionary: Dictionary) -> Dictionary:
    """In float32, unless it is more precise already."""
    return dictionary if dictionary.W_enc.dtype == torch.float64 else dictionary.to(dtype=torch.float32)


def unit_decoder(dictionary: Dictionary) -> bool:
    """Whether all decoder directions have the length 1."""
    return bool(((dictionary.W_dec.float().norm(dim=1) - 1).abs() <= UNIT).all())


def alone(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same numbers in memory of their own, in order: of a view, files would keep all that it is a view of."""
    return tensor.detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format)


def _through(vector: Float[Tensor, " d_in"], W_enc: Float[Tensor, "d_in n_latents"]) -> Float[Tensor, " n_latents"]:
    return torch.cat([vector @ block.double() for block in W_enc.split(COLUMNS, dim=1)]).to(W_enc.dtype)


def to_record(metadata: Metadata) -> dict[str, Any]:
    """What a configuration keeps of a dictionary's metadata, as JSON. The raw configuration it has itself.

    Raises:
        DictlabError: It cannot be written as JSON.
    """
    try:
        written = json.dumps({name: value for name, value in asdict(metadata).items() if name != "foreign"})
    except (TypeError, ValueError) as error:
        raise DictlabError(f"its metadata is no JSON ({error}).") from error
    record: dict[str, Any] = json.loads(written)
    return record


def from_record(config: Mapping[str, Any] | None) -> Metadata | None:
    """The metadata that dictlab left in a configuration, if it wrote it; `foreign` is then the rest of it.

    Raises:
        DictlabError: The record is damaged.
    """
    if config is None or OWN not in config:
        return None
    if not isinstance(config[OWN], dict):
        raise DictlabError(f"configuration: {OWN} is {str(config[OWN])[:40]!r}; expected a JSON object.")
    return replace(metadata_of(config[OWN]), foreign={name: value for name, value in config.items() if name != OWN})


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which is given its name when all is done.

    Raises:
        DictlabError: There is something at `path` already, or the body raised one, whose message gets the path.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DictlabError(f"{path}: it exists already; name a new folder.")
    whole = path.absolute()
    whole.parent.mkdir(parents=True, exist_ok=True)
    partial = whole.with_name(f".{whole.name}.{token_hex(4)}.partial")
    partial.mkdir()
    try:
        yield partial
        atomic_files.synchronise(partial)
        os.replace(partial, whole)
        atomic_files.synchronise_folder(whole.parent)
    except DictlabError as error:
        raise DictlabError(f"{path}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
