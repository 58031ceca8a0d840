"""A plain state dict, by saying which tensor is what.

    W_enc=encoder_linear.weight.T  W_dec=decoder_linear.weight.T  b_enc=encoder_linear.bias  b_pre=zero
    b_out=decoder_linear.bias  activation=relu  normalisation=none  site=blocks.19.hook_resid_post

A name is that of a tensor in the file, `outer/inner` where dictionaries are nested, with `.T` behind it to transpose.
Everything that the function needs has to be said, `zero` where there is no bias: nothing is guessed.

    tensors         W_enc [d_in, n_latents], b_enc [n_latents], W_dec [n_latents, d_in], b_pre [d_in], b_out [d_in], or
                    b_dec [d_in] in place of the last two where one bias is both; threshold (of each latent or one for
                    all), b_gate, r_mag, b_mag [n_latents]
    activation      relu, jumprelu (with threshold), jumprelu:0.3, gated (with b_gate, r_mag, b_mag), topk:32,
                    abstopk:32, batchtopk:32, groupmax:32
    normalisation   none, layer_norm, constant_norm, scale:2.5
    unit_decoder    yes to bring decoder directions to unit length, the codes as they are; no by default
    site, model, convention (huggingface or transformer_lens)    where it was trained, if you want it known
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import Activation
from dictlab.dictionary.activation_records import expected_names, from_name
from dictlab.dictionary.normalisation import ConstantNorm, LayerNorm, NoNormalisation, Normalisation, Scale
from dictlab.dictionary.tensor_checks import PRECISIONS
from dictlab.errors import DictlabError
from dictlab.formats.libraries.fields import listed, short
from dictlab.formats.reading.source import Source
from dictlab.site_names import hub_model, site_in_blocks

ZERO = "zero"
DEPTH = 3  # of nested dictionaries
EPS = 1e-12  # of unit_decoder
NEEDED = ("W_enc", "b_enc", "W_dec")
OWN = {"jumprelu": ("threshold",), "gated": ("b_gate", "r_mag", "b_mag")}  # tensors of activation functions
OF_ACTIVATIONS = tuple(name for names in OWN.values() for name in names)
OPTIONS = ("activation", "normalisation", "unit_decoder", "site", "model", "convention")
KEYS = (*NEEDED, "b_pre", "b_out", "b_dec", *OF_ACTIVATIONS, *OPTIONS)
NORMALISATIONS = ("none", "layer_norm", "constant_norm", "scale:FACTOR")
CONVENTIONS = ("huggingface", "transformer_lens")


def read(source: Source, map: Mapping[str, str]) -> Dictionary:
    """The dictionary that a mapping describes.

    Args:
        source: The file.
        map: From the keys above to what they are.

    Raises:
        DictlabError: A key is unknown, missing, contradicts another or names what is not there, or a tensor has another
            shape than its key wants. The message names the key, what was found and the tensors of the file.
    """
    tensors = flattened(source)
    try:
        return _read(source, tensors, map)
    except DictlabError as error:
        raise DictlabError(f"map: {error} Tensors in the file: {listed(tensors)}.") from None


def flattened(source: Source) -> dict[str, Tensor]:
    """All tensors of a file, those of nested dictionaries under `outer/inner`."""
    return {**_inner(source.entries, "", DEPTH), **source.tensors}


def _inner(entries: Mapping[Any, Any], prefix: str, depth: int) -> dict[str, Tensor]:
    found = {}
    for name, value in entries.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, dict) and depth:
            found |= _inner(value, f"{prefix}{name}/", depth - 1)
    return found


def _read(source: Source, tensors: Mapping[str, Tensor], map: Mapping[str, str]) -> Dictionary:
    kind, argument = _check(source, map)
    decoder = _matrix(tensors, map, "W_dec", None)
    n_latents, d_in = decoder.shape
    encoder = _matrix(tensors, map, "W_enc", (d_in, n_latents))
    b_pre, b_out = ("b_dec", "b_dec") if "b_dec" in map else ("b_pre", "b_out")
    if _option(map, "unit_decoder", ("yes", "no")) == "yes":
        decoder = normalize(decoder if decoder.dtype == torch.float64 else decoder.float(), dim=1, eps=EPS)
    model, site = map.get("model"), map.get("site")
    return Dictionary(
        W_enc=encoder,
        b_enc=_vector(tensors, "b_enc", map["b_enc"], n_latents, encoder),
        W_dec=decoder,
        b_pre=_vector(tensors, b_pre, map[b_pre], d_in, encoder),
        b_out=_vector(tensors, b_out, map[b_out], d_in, encoder),
        activation=_activation(kind, argument, tensors, map, encoder),
        normalisation=_normalisation(map["normalisation"]),
        metadata=Metadata(
            model=hub_model(model) if model else None,
            site=site_in_blocks(site) if site else None,
            convention=_option(map, "convention", CONVENTIONS),
            foreign={"map": dict(map)},
            notes=_notes(tensors, map),
        ),
    )


def _check(source: Source, map: Mapping[str, str]) -> tuple[str, str]:
    """Refuse a mapping that says too little, too much, or two things at once; returns its activation function."""
    for key, value in map.items():
        if key not in KEYS:
            raise DictlabError(f"the key {short(key)!r} is unknown; known are {', '.join(KEYS)}.")
        if not isinstance(value, str) or not value:
            raise DictlabError(f"{key} is {short(value)!r}; expected a text.")
    if source.part is not None or source.scale is not None:
        what = f"#{short(source.part)}" if source.part is not None else f"a scale of {source.scale}"
        raise DictlabError(
            f"{what} is given beside it; name the tensors (outer/inner), and normalisation=scale:FACTOR."
        )
    if "b_dec" in map and ("b_pre" in map or "b_out" in map):
        raise DictlabError("b_dec stands for both b_pre and b_out; leave it out, or them.")
    biases = ("b_dec",) if "b_dec" in map else ("b_pre", "b_out")
    kind, _, argument = map.get("activation", "").partition(":")
    own = () if argument else OWN.get(kind, ())
    for key in (*NEEDED, *biases, "activation", "normalisation", *own):
        if key not in map:
            raise DictlabError(f"{key} is missing{_hint(key)}.")
    for key in OF_ACTIVATIONS:
        if key in map and key not in own:
            raise DictlabError(f"{key} is {short(map[key])!r}, and activation={short(map['activation'])} has none.")
    return kind, argument


def _hint(key: str) -> str:
    if key == "activation":
        return f"; say one of {expected_names()}"
    if key == "normalisation":
        return f"; say one of {', '.join(NORMALISATIONS)}"
    if key in ("b_pre", "b_out"):
        return f"; name a tensor, or say {key}={ZERO} (b_dec stands for both b_pre and b_out)"
    return "" if key in ("W_enc", "W_dec", "threshold") else f"; name a tensor, or say {key}={ZERO}"


def _option(map: Mapping[str, str], key: str, known: tuple[str, ...]) -> str | None:
    value = map.get(key)
    if value is not None and value not in known:
        raise DictlabError(f"{key} is {short(value)!r}; expected {' or '.join(known)}.")
    return value


def _found(tensors: Mapping[str, Tensor], key: str, value: str) -> Tensor:
    """The tensor that a key names, transposed if it says so."""
    bare = value.removesuffix(".T")
    name = value if value in tensors else bare
    if name not in tensors:
        raise DictlabError(f"{key} is {short(value)!r}, and the file has no such tensor.")
    tensor = tensors[name]
    if tensor.dtype not in PRECISIONS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DictlabError(f"{key} is {short(value)!r}, which holds {kind}; expected floating-point numbers.")
    if name == value:
        return tensor
    if tensor.ndim != 2:
        raise DictlabError(f"{key} is {short(value)!r}; .T is for a matrix, and this has shape {list(tensor.shape)}.")
    return tensor.T


def _matrix(tensors: Mapping[str, Tensor], map: Mapping[str, str], key: str, shape: tuple[int, int] | None) -> Tensor:
    """A weight: W_dec [n_latents, d_in], or W_enc of the shape that follows from it."""
    tensor = _found(tensors, key, map[key])
    found = f"{key} is {short(map[key])!r}, of shape {list(tensor.shape)}"
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise DictlabError(f"{found}; expected a matrix{'' if shape else ' [n_latents, d_in]'}.")
    if shape is not None and tuple(tensor.shape) != shape:
        turned = "; transposed it would fit: change .T" if tuple(tensor.shape) == shape[::-1] else ""
        raise DictlabError(f"{found}; expected [d_in, n_latents] = {list(shape)}, as W_dec has it{turned}.")
    return tensor


def _vector(tensors: Mapping[str, Tensor], key: str, value: str, length: int, like: Tensor) -> Tensor:
    """A bias, or what an activation function keeps; zeros where there is none."""
    if value == ZERO:
        return like.new_zeros(length)
    tensor = _found(tensors, key, value)
    if list(tensor.shape) != [length]:
        raise DictlabError(f"{key} is {short(value)!r}, of shape {list(tensor.shape)}; expected [{length}].")
    return tensor


def _activation(
    kind: str, argument: str, tensors: Mapping[str, Tensor], map: Mapping[str, str], like: Tensor
) -> Activation:
    n_latents = like.shape[1]
    if kind == "jumprelu" and not argument:
        return from_name(map["activation"], {"threshold": _threshold(tensors, map, n_latents)}, n_latents)
    own = {} if argument else {key: _vector(tensors, key, map[key], n_latents, like) for key in OWN.get(kind, ())}
    return from_name(map["activation"], own, n_latents)


def _threshold(tensors: Mapping[str, Tensor], map: Mapping[str, str], n_latents: int) -> Tensor:
    """Of each latent; one number in the file is that of all."""
    tensor = _found(tensors, "threshold", map["threshold"])
    return (
        tensor.reshape(1).expand(n_latents)
        if tensor.numel() == 1
        else _vector(tensors, "threshold", map["threshold"], n_latents, tensor)
    )


def _normalisation(value: str) -> Normalisation:
    kind, _, argument = value.partition(":")
    fixed: dict[str, Normalisation] = {
        "none": NoNormalisation(),
        "layer_norm": LayerNorm(1e-5),
        "constant_norm": ConstantNorm(),
    }
    if kind in fixed and value == kind:
        return fixed[kind]
    if kind != "scale":
        raise DictlabError(f"normalisation is {short(value)!r}; expected {', '.join(NORMALISATIONS)}.")
    factor = _number(argument, "normalisation", value)
    if factor < torch.finfo(torch.float32).tiny:
        raise DictlabError(f"normalisation is {short(value)!r}; expected a factor above 0.")
    return Scale(factor)


def _number(argument: str, key: str, value: str) -> float:
    try:
        number = float(argument)
    except ValueError:
        number = math.nan
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise DictlabError(f"{key} is {short(value)!r}; expected a number behind the colon.")
    return number


def _notes(tensors: Mapping[str, Tensor], map: Mapping[str, str]) -> tuple[str, ...]:
    """What the mapping leaves aside."""
    used = {name for key, value in map.items() if key not in OPTIONS for name in (value, value.removesuffix(".T"))}
    left = {name: tensor for name, tensor in tensors.items() if name not in used}
    return (f"tensors of the file that the mapping does not name: {listed(left)}.",) if left else ()
