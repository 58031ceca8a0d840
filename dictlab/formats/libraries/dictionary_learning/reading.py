"""Dictionaries of dictionary_learning (Marks, Karvonen, Mueller): `ae.pt`, and beside it `config.json`.

    AutoEncoder             f = max((x - bias) W_enc + b_enc, 0)                               x_hat = f W_dec + bias
    AutoEncoderNew          f = max(x W_enc + b_enc, 0)                                        x_hat = f W_dec + b_dec
    GatedAutoEncoder        p = (x - b) W_enc;  f = [p + gate > 0] max(exp(r) p + mag, 0)      x_hat = f W_dec + b
    AutoEncoderTopK         the k largest of max((x - b) W_enc + b_enc, 0) of each token       x_hat = f W_dec + b
    BatchTopKSAE            z = max((x - b) W_enc + b_enc, 0);  f = z [z > threshold]          x_hat = f W_dec + b
    MatryoshkaBatchTopKSAE  the same, its groups of latents being a matter of training
    JumpReluAutoEncoder     f = max(z [z > threshold], 0), z = x W_enc + b_enc                 x_hat = f W_dec + b_dec

Source: the library's classes, version 0.1.0. Its linear layers keep W_enc and W_dec transposed; Matryoshka's and
JumpReLU's do not.

Tensors are taken as they are. The library's `AutoEncoder.from_pretrained` moves the decoder's norms into the encoder
unless it is told not to (`normalize_decoder=False`): its activations then differ from those here by these norms where
they are not 1, which is so after StandardTrainerAprilUpdate; reconstructions are the same.

A threshold below 0 says that training ended before one was estimated. The library would then emit every positive
pre-activation; here the rule of training takes its place, the k n largest of a batch of n tokens.

An interrupted run leaves `ae.pt` with the state of training around the tensors, biases still in the units of
normalised activations: the file's `norm_factor` becomes a constant input scale.

Written with an additional field `dictlab` in `config.json`, which the library passes over. Constant scales and biases
are folded where that is exact; anything else that these classes cannot express is refused. A dictionary of a
TransformerLens model is written as it is, and is then still for that model's activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from dictlab.dictionary.activation_records import whole
from dictlab.dictionary.normalisation import NoNormalisation, Scale
from dictlab.errors import DictlabError
from dictlab.formats.libraries.defaults import DICTIONARY_LEARNING, default
from dictlab.formats.libraries.dictionary_learning import config as configuration
from dictlab.formats.libraries.dictionary_learning.config import ALSO, CLASSES, NO_PRE_BIAS, bias_of, trainer
from dictlab.formats.libraries.fields import listed, refuse_part, refuse_scale, refuse_unknown, shaped, short
from dictlab.formats.reading.source import Source

BACKUP = ("step", "ae", "optimizer", "config", "norm_factor")
TELLING = {"bias", "decoder_bias", "k", "group_sizes"}  # names of tensors that no other library uses
NORMS = (1e-30, 1e30)


class _State(NamedTuple):
    """The tensors of one dictionary, and what training left around them."""

    tensors: Mapping[str, Tensor]
    around: Mapping[str, Any]  # of a backup; empty otherwise


def recognise(source: Source) -> bool:
    """Whether the tensors are those of a class, and the run's configuration or their names say that it is this library.

    Linear layers that are called encoder and decoder are anybody's.
    """
    state = _state(source)
    fitting = [name for name in CLASSES if not _missing(name, state.tensors)]
    if state.around or configuration.found(source, state.around) is not None:
        return bool(fitting)
    names = state.tensors.keys()
    if source.config("model_kind", "feature_input_hook") is not None:  # circuit-tracer, whose `k` is called so as well
        return False
    return bool(TELLING & names) and any(names <= _known(name) for name in fitting)


def read(source: Source) -> Dictionary:
    """The dictionary in a file of dictionary_learning's.

    Raises:
        DictlabError: A tensor is missing, unknown or of another shape, or a field of the configuration is.
    """
    refuse_part(source)
    refuse_scale(source)
    state = _state(source)
    config = configuration.found(source, state.around)
    if config is None and "config.json" in source.damaged:
        raise DictlabError(f"config.json beside it: {source.damaged['config.json']}")
    configuration.check_fields(config, source.ignore)
    name = _class(state.tensors, config)
    tensors = _fitting(name, state.tensors, source.ignore)
    weights = _weights(name, tensors)
    n_latents, d_in = weights["W_dec"].shape
    configuration.check_sizes(config, d_in, n_latents)
    activation, training, notes = _activation(name, tensors, config, n_latents)
    normalisation = _normalisation(state.around, source.ignore)
    if isinstance(normalisation, Scale):
        notes += ("a backup of a run on normalised activations: inputs are divided by its norm_factor.",)
    metadata = configuration.metadata(config, source, state.around, training)
    return Dictionary(
        W_enc=weights["W_enc"],
        b_enc=weights["b_enc"],
        W_dec=weights["W_dec"],
        b_pre=torch.zeros_like(weights["b_out"]) if name in NO_PRE_BIAS else weights["b_out"],
        b_out=weights["b_out"],
        activation=activation,
        normalisation=normalisation,
        metadata=replace(metadata, notes=tuple(dict.fromkeys((*metadata.notes, *notes)))),
    )


def _state(source: Source) -> _State:
    inner = source.entries.get("ae")
    if not isinstance(inner, dict):
        return _State(source.tensors, {})
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    return _State(tensors, {"step": None, **source.entries, **source.tensors})


def _missing(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    return [key for key in CLASSES[name] if key not in tensors]


def _known(name: str) -> set[str]:
    return {*CLASSES[name], *ALSO.get(name, ())}


def _class(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> str:
    """Which class it is: the configuration says it, or the tensors do."""
    stated = trainer(config).get("dict_class")
    if stated is not None:
        if not isinstance(stated, str) or stated not in CLASSES:
            raise DictlabError(f"config.json: trainer.dict_class is {short(stated)}; known are {', '.join(CLASSES)}.")
        return stated
    fitting = [name for name in CLASSES if not _missing(name, tensors)]
    exact = [name for name in fitting if tensors.keys() <= _known(name)] or fitting
    if not exact:
        raise DictlabError(f"its tensors are of no class of dictionary_learning's; found {listed(tensors)}.")
    if exact == ["MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"]:  # a threshold for each latent is JumpReLU's
        return exact[1] if tensors["threshold"].ndim else exact[0]
    if len(exact) > 1:
        raise DictlabError(
            f"its tensors are those of {' and '.join(exact)}. Which it is stands in the run's config.json, as "
            "trainer.dict_class: put that file beside it."
        )
    return exact[0]


def _fitting(name: str, tensors: Mapping[str, Tensor], ignore: tuple[str, ...]) -> Mapping[str, Tensor]:
    """The tensors, if they are those of the class."""
    refuse_unknown(tensors, _known(name), f"{name}: the tensor", ignore)
    first = "encoder.weight" if "encoder.weight" in CLASSES[name] else "W_enc"
    sizes = dict(zip(CLASSES[name][first], shaped(tensors, first, None, None).shape, strict=True))
    for key, letters in CLASSES[name].items():
        shaped(tensors, key, *(sizes[letter] for letter in letters))
    for key in ("k", "threshold"):
        if key in tensors and key not in CLASSES[name]:
            _number(tensors, key)
    return tensors


def _number(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of one number: k, which is whole, or a threshold, which is not."""
    if name == "threshold":
        return shaped(tensors, name)
    tensor = tensors[name]
    if tensor.ndim or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise DictlabError(f"the tensor {listed({name: tensor})} holds {tensor.dtype}; expected one whole number.")
    return tensor


def _weights(name: str, t: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of the file's tensors; nothing is read."""
    if "W_enc" in CLASSES[name]:
        return {"W_enc": t["W_enc"], "W_dec": t["W_dec"], "b_enc": t["b_enc"], "b_out": t["b_dec"]}
    b_enc = t["encoder.bias"] if "encoder.bias" in t else torch.zeros_like(t["gate_bias"])
    weights = {"W_enc": t["encoder.weight"].T, "W_dec": t["decoder.weight"].T}
    return {**weights, "b_enc": b_enc, "b_out": t[bias_of(name)]}


def _activation(
    name: str, t: Mapping[str, Tensor], config: Mapping[str, Any] | None, n_latents: int
) -> tuple[Activation, dict[str, Any], tuple[str, ...]]:
    """The activation function, what else of training the tensors tell, and notes."""
    if name in ("AutoEncoder", "AutoEncoderNew"):
        return ReLU(), {}, configuration.about_norms(config)
    if name == "GatedAutoEncoder":
        return Gated(b_gate=t["gate_bias"], r_mag=t["r_mag"], b_mag=t["mag_bias"]), {}, ()
    if name == "JumpReluAutoEncoder":
        return JumpReLU(t["threshold"]), {}, ()
    k, notes = _k(t, config, n_latents)
    training: dict[str, Any] = {"k": k}
    if "group_sizes" in t:
        training["group_sizes"] = _group_sizes(t["group_sizes"], n_latents)
    threshold = float(t["threshold"]) if "threshold" in t else default(DICTIONARY_LEARNING, "threshold")
    if name == "AutoEncoderTopK":
        return TopK(k), training | ({"threshold": threshold} if threshold >= 0 else {}), notes
    if threshold < 0:
        note = (
            "no inference threshold was estimated in training: the k n largest of a batch of n tokens are active, so "
            "codes depend on what a token is encoded with."
        )
        return BatchTopK(k), training, (*notes, note)
    return JumpReLU(torch.full((n_latents,), threshold)), training, notes


def _k(t: Mapping[str, Tensor], config: Mapping[str, Any] | None, n_latents: int) -> tuple[int, tuple[str, ...]]:
    stated = trainer(config).get("k")
    if "k" not in t and stated is None:
        raise DictlabError("k is neither among its tensors nor in a config.json beside it (trainer.k): add one there.")
    k = whole(int(t["k"]) if "k" in t else stated, "k")
    if k > n_latents:
        raise DictlabError(f"k is {k}; it has {n_latents} latents.")
    if stated is not None and whole(stated, "config.json: trainer.k") != k:
        return k, (f"config.json says k = {stated}; the tensors' own k = {k} is used.",)
    return k, ()


def _group_sizes(sizes: Tensor, n_latents: int) -> list[int]:
    counts = sizes.ndim == 1 and 0 < len(sizes) <= n_latents and sizes.dtype in (torch.int64, torch.int32)
    found = [int(size) for size in sizes] if counts else []
    if not found or min(found) < 1 or sum(found) != n_latents:
        raise DictlabError(
            f"group_sizes are {short(found)}; expected whole numbers that add up to {n_latents} latents."
        )
    return found


def _normalisation(around: Mapping[str, Any], ignore: tuple[str, ...]) -> Scale | NoNormalisation:
    """What a backup's tensors read: activations divided by the run's norm factor, where it has one."""
    refuse_unknown(around, BACKUP, "the entry", ignore)
    factor = around.get("norm_factor")
    if factor is None:
        return NoNormalisation()
    value = float(shaped({"norm_factor": factor}, "norm_factor")) if isinstance(factor, Tensor) else factor
    if type(value) not in (int, float) or not NORMS[0] < value < NORMS[1]:
        raise DictlabError(f"norm_factor is {short(value)}; expected a positive number.")
    return Scale(1 / float(value)) if value != 1 else NoNormalisation()
