"""How is a dictionary written for dictionary_learning, so that its own classes open the same function?

    a constant input scale s     W_enc' = s W_enc, W_dec' = W_dec / s, b' = b / s; codes and thresholds stay
    b_pre other than b_out       b_enc' = b_enc + (b_out - b_pre) W_enc, where a class has one bias for both ends
    any b_pre                    b_enc' = b_enc - b_pre W_enc, where it has none on the input (AutoEncoderNew, JumpReLU)
    b_enc of a gated one         gate_bias = b_gate + b_enc, mag_bias = b_mag + exp(r_mag) b_enc

All are exact but for rounding. The library's loader moves an AutoEncoder's decoder norms into its encoder and leaves an
AutoEncoderNew's alone, so a ReLU dictionary is written as the latter where its decoder directions are of other lengths.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import BatchTopK, Gated, JumpReLU, ReLU, TopK
from dictlab.dictionary.normalisation import Scale
from dictlab.errors import DictlabError
from dictlab.formats.libraries import writing
from dictlab.formats.libraries.dictionary_learning import config as configuration
from dictlab.formats.libraries.dictionary_learning.config import ALSO, CLASSES, NO_PRE_BIAS, bias_of
from dictlab.formats.reading.checks import check
from dictlab.runtime import atomic_files

BATCH, MATRYOSHKA = "BatchTopKSAE", "MatryoshkaBatchTopKSAE"


def write(dictionary: Dictionary, path: Path) -> Path:
    """Write a folder with `ae.pt` and `config.json`, as the library does.

    Args:
        path: A folder that does not exist yet, or is empty.

    Raises:
        DictlabError: There is something in that place, the dictionary holds NaN or infinite values, its metadata is no
            JSON, or no class of the library can express it.
    """
    path = Path(path)
    with writing.new_folder(path) as folder:
        check(dictionary)
        name = _class(dictionary)
        tensors = _tensors(name, dictionary)
        config = configuration.written(dictionary, name, tensors)
        (folder / "config.json").write_text(json.dumps(config, indent=4) + "\n", "utf-8")
        atomic_files.save_pickled({key: writing.alone(tensor) for key, tensor in tensors.items()}, folder / "ae.pt")
    return path


def _class(dictionary: Dictionary) -> str:
    """The class that can express it: the one that it was, where that one still can."""
    was = configuration.trainer(dictionary.metadata.foreign).get("dict_class")
    activation = dictionary.activation
    if isinstance(activation, ReLU):
        one = torch.equal(dictionary.b_pre, dictionary.b_out) and writing.unit_decoder(dictionary)
        scaled = isinstance(dictionary.normalisation, Scale)
        return "AutoEncoder" if not scaled and (one or was == "AutoEncoder") else "AutoEncoderNew"
    if isinstance(activation, Gated):
        return "GatedAutoEncoder"
    if isinstance(activation, TopK):
        return "AutoEncoderTopK"
    batch = MATRYOSHKA if configuration.group_sizes(dictionary) else BATCH
    if isinstance(activation, BatchTopK):
        return batch
    if isinstance(activation, JumpReLU):
        threshold = activation.threshold
        one = bool((threshold == threshold[0]).all()) and float(threshold[0]) >= 0
        kept = was in (BATCH, MATRYOSHKA) and one and configuration.known_k(dictionary) is not None
        return batch if kept else "JumpReluAutoEncoder"
    raise DictlabError(
        f"dictionary_learning cannot express its activation function ({activation.kind}): it has relu, jumprelu, "
        "gated, topk and batchtopk."
    )


def _tensors(name: str, dictionary: Dictionary) -> dict[str, Tensor]:
    """The tensors of that class which make the same function."""
    d = writing.unscaled(dictionary, "dictionary_learning")
    d = writing.no_pre_bias(d) if name in NO_PRE_BIAS else writing.one_bias(d)
    activation = d.activation
    if isinstance(activation, Gated):
        return _gated(d, activation)
    if "W_enc" in CLASSES[name]:
        made = {"W_enc": d.W_enc, "b_enc": d.b_enc, "W_dec": d.W_dec, "b_dec": d.b_out}
    else:
        made = {"encoder.weight": d.W_enc.T, "encoder.bias": d.b_enc, "decoder.weight": d.W_dec.T}
        made |= {bias_of(name): d.b_out}
    if isinstance(activation, JumpReLU) and name not in ALSO:
        return made | {"threshold": activation.threshold}
    if name not in ALSO:
        return made
    threshold = float(activation.threshold[0]) if isinstance(activation, JumpReLU) else -1.0
    if isinstance(activation, TopK):
        threshold = configuration.known_threshold(dictionary)
    made |= {
        "k": torch.tensor(configuration.known_k(dictionary), dtype=torch.int),
        "threshold": torch.tensor(threshold),
    }
    return made | ({"group_sizes": torch.tensor(configuration.group_sizes(dictionary))} if name == MATRYOSHKA else {})


def _gated(d: Dictionary, activation: Gated) -> dict[str, Tensor]:
    """The library has no bias before both paths."""
    b_gate, b_mag = activation.b_gate, activation.b_mag
    if d.b_enc.any():
        d = writing.precise(d)
        b_enc, r_mag = d.b_enc.double(), activation.r_mag.double()
        b_gate = (b_gate.double() + b_enc).to(d.b_enc.dtype)
        b_mag = (b_mag.double() + r_mag.exp() * b_enc).to(d.b_enc.dtype)
    weights = {"encoder.weight": d.W_enc.T, "decoder.weight": d.W_dec.T, "decoder_bias": d.b_out}
    return {**weights, "r_mag": activation.r_mag, "gate_bias": b_gate, "mag_bias": b_mag}
