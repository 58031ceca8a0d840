"""Where SAELens' `normalize_activations` becomes the dictionary's `normalisation`.

    none, false                          NoNormalisation
    layer_norm                           LayerNorm, eps 1e-5
    constant_norm_rescale                ConstantNorm: inputs of length sqrt(d_in)
    expected_average_only_in, true       Scale: inputs times one number, which lies beside a checkpoint or is given

`Dictionary.in_input_units` folds a Scale into the weights. Source: sae_lens 6.54.12, `saes/sae.py`.
"""

from __future__ import annotations

import torch

from dictlab.dictionary.normalisation import ConstantNorm, LayerNorm, NoNormalisation, Normalisation, Scale
from dictlab.errors import DictlabError
from dictlab.formats.libraries.fields import short
from dictlab.formats.libraries.saelens.config import Meaning
from dictlab.formats.libraries.saelens.writing import EPS
from dictlab.formats.reading.source import Source


def read_normalisation(means: Meaning, source: Source) -> Normalisation:
    """The input normalisation of a file.

    Raises:
        DictlabError: A scale was given although inputs were not scaled, or inputs were scaled and no scale is known.
    """
    if means.normalisation != "expected_average_only_in" and source.scale is not None:
        raise DictlabError(
            f"a scale of {source.scale:g} was given, but normalize_activations is {means.normalisation!r}: its inputs "
            "were not scaled, or the scale is folded in already. Leave `scale=...` away."
        )
    if means.normalisation == "layer_norm":
        return LayerNorm(EPS)
    if means.normalisation == "constant_norm_rescale":
        return ConstantNorm()
    return Scale(read_scale(source)) if means.normalisation == "expected_average_only_in" else NoNormalisation()


def read_scale(source: Source) -> float:
    """What inputs were multiplied by: a checkpoint has it beside it, other files do not tell."""
    beside = source.config("scaling_factor") or {}
    candidates = (source.scale, beside.get("scaling_factor"), source.registered)
    factor = next((candidate for candidate in candidates if candidate is not None), None)
    if factor is None:
        raise DictlabError(
            "normalize_activations is 'expected_average_only_in': inputs were multiplied by a number that no file "
            "here states. Expected activation_scaler.json beside it, or the number with `scale=...`: "
            "sqrt(d_in) divided by "
            "the mean length of an activation."
        )
    tiny, huge = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    if type(factor) not in (int, float) or not tiny <= factor <= huge:
        raise DictlabError(
            f"the scale of its inputs (scaling_factor or `scale=...`) is {short(factor)}; expected above 0."
        )
    return float(factor)
