"""How is a dictionary written for SAELens, so that `sae_lens.SAE.load_from_disk` opens the same function?

    a constant input scale s     W_enc' = s W_enc, W_dec' = W_dec / s, b_dec' = b_out / s; codes and thresholds stay
    b_pre other than b_out       b_enc' = b_enc - b_pre W_enc, and apply_b_dec_to_input is false
    b_enc of a gated one         b_gate' = b_gate + b_enc, b_mag' = b_mag + exp(r_mag) b_enc

All are exact but for rounding.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import AbsTopK, Gated, JumpReLU, ReLU, TopK
from dictlab.dictionary.normalisation import Centred, LayerNorm, Normalisation, Scale
from dictlab.errors import DictlabError
from dictlab.formats.libraries import writing
from dictlab.formats.libraries.saelens.origin import write_metadata
from dictlab.formats.reading.checks import check
from dictlab.runtime import atomic_files

WEIGHTS, CONFIG, SPARSITY = "sae_weights.safetensors", "cfg.json", "sparsity.safetensors"
WRITES_TWO_PLACES = True
NEVER = 1e-10  # added to firing rates before their logarithm is taken
EPS = 1e-5  # of its layer norm
NORMALISATIONS = {"layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}
REASONS = {
    "batchtopk": "BatchTopK without a threshold depends on the batch; SAELens keeps a threshold in its place",
    "groupmax": "SAELens has no architecture in which groups of latents compete",
    "union": "SAELens has no architecture in which parts of a dictionary follow rules of their own",
}


def write(dictionary: Dictionary, path: Path) -> Path:
    """Write the folder that `sae_lens.SAE.load_from_disk` opens, whole or not at all.

    Args:
        path: A folder that does not exist yet, or is empty.

    Raises:
        DictlabError: SAELens cannot express the dictionary, it holds NaN or infinite values, its metadata is no JSON,
            or something is there already.
    """
    path = Path(path)
    with writing.new_folder(path) as folder:
        check(dictionary)
        tensors, fields = _expressed(dictionary)
        (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
        dtype = getattr(torch, fields["dtype"])
        alone = {name: writing.alone(tensor, dtype) for name, tensor in tensors.items()}
        atomic_files.save_tensors(alone, folder / WEIGHTS)
        if dictionary.firing_rate is not None:
            rate = writing.alone(dictionary.firing_rate, torch.float64)
            atomic_files.save_tensors({"sparsity": torch.log10(rate + NEVER).float()}, folder / SPARSITY)
    return path


def _expressed(dictionary: Dictionary) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of SAELens for the same function."""
    d = replace(dictionary, normalisation=_stated(dictionary))
    if isinstance(d.normalisation, Scale):
        d = writing.unscaled(d, "SAELens")
    if d.W_skip is not None and not d.transcodes:
        raise DictlabError("it is an autoencoder with a linear skip; SAELens has a skip in its transcoders alone.")
    shared = not d.transcodes and bool(d.b_pre.any()) and torch.equal(d.b_pre.double(), d.b_out.double())
    fields, tensors = _architecture(d if shared else writing.no_pre_bias(d))
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    return tensors, {
        **fields,
        "d_in": d.d_in,
        **({"d_out": d.d_out} if d.transcodes else {}),
        "d_sae": d.n_latents,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": shared,
        "normalize_activations": NORMALISATIONS.get(d.normalisation.kind, "none"),
        "reshape_activations": "hook_z" if not d.transcodes and (d.metadata.site or "").endswith("hook_z") else "none",
        "metadata": write_metadata(d.metadata),
    }


def _stated(dictionary: Dictionary) -> Normalisation:
    """The normalisation without the centring that goes without saying: where activations, or a layer norm, centre."""
    normalisation = dictionary.normalisation
    if isinstance(normalisation, Centred):
        if dictionary.metadata.convention != "transformer_lens" and not isinstance(normalisation.then, LayerNorm):
            raise DictlabError(
                "its input is centred over coordinates first, which SAELens cannot express on activations "
                "that are not centred already, as those of a TransformerLens model are (the dictionary's convention)."
            )
        normalisation = normalisation.then
    if isinstance(normalisation, LayerNorm) and normalisation.eps != EPS:
        raise DictlabError(f"its layer norm has eps {normalisation.eps:g}; SAELens always takes {EPS:g}.")
    return normalisation


def _architecture(d: Dictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    weights, activation = {"W_enc": d.W_enc, "W_dec": d.W_dec, "b_dec": d.b_out}, d.activation
    if d.transcodes:
        return _transcoder(d, weights)
    if isinstance(activation, ReLU):
        return {"architecture": "standard"}, {**weights, "b_enc": d.b_enc}
    if isinstance(activation, TopK | AbsTopK):
        fields = {"architecture": activation.kind, "k": min(activation.k, d.n_latents)}
        return {**fields, "rescale_acts_by_decoder_norm": False}, {**weights, "b_enc": d.b_enc}
    if isinstance(activation, JumpReLU):
        return {"architecture": "jumprelu"}, {**weights, "b_enc": d.b_enc, "threshold": activation.threshold}
    if isinstance(activation, Gated):  # it has no bias before both paths
        b_enc = writing.precise(d).b_enc
        b_gate, r_mag, b_mag = (tensor.to(b_enc) for tensor in activation.tensors().values())
        paths = {"b_gate": b_gate + b_enc, "r_mag": r_mag, "b_mag": b_mag + b_enc * r_mag.exp()}
        return {"architecture": "gated"}, {**weights, **paths}
    reason = REASONS.get(activation.kind, "SAELens has no such architecture")
    raise DictlabError(f"its activation function is {activation.kind}: {reason}.")


def _transcoder(d: Dictionary, weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    skip = "" if d.W_skip is None else "skip_"
    tensors = {**weights, "b_enc": d.b_enc} | ({} if d.W_skip is None else {"W_skip": d.W_skip.T})
    if isinstance(d.activation, ReLU):
        return {"architecture": f"{skip}transcoder"}, tensors
    if isinstance(d.activation, JumpReLU):
        return {"architecture": f"jumprelu_{skip}transcoder"}, {**tensors, "threshold": d.activation.threshold}
    raise DictlabError(f"its activation function is {d.activation.kind}; SAELens has transcoders of ReLU and JumpReLU.")
