"""Warm starts: training that begins from a dictionary that can be loaded, whatever library trained it.

Training has one form: a bias that is subtracted before the encoder and added after the decoder, and units in which a
coordinate of the activations has variance 1. A dictionary is brought into it without a change of its function:

    h = s x                                            b_enc, b_pre, b_out and thresholds times s
    b_pre = b_out = b                                  b_enc := b_enc + (b_out - b_pre) W_enc
    unit rows of W_dec, n their lengths                W_enc, b_enc and thresholds times n

The last is done where each latent is active by its own rule. Where latents compete it would change which of them win;
there rows keep the lengths that they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary, activation_functions
from dictlab.dictionary.normalisation import Centred, NoNormalisation, Scale
from dictlab.errors import DictlabError
from dictlab.evaluation.sites import check_plain
from dictlab.evaluation.transformer_lens import adapted
from dictlab.formats.loading import load
from dictlab.formats.names import with_distinct_names
from dictlab.model.language_model import LanguageModel
from dictlab.training.variants import BY_NAME, PerTokenVariant, Variant, VariantSettings

SAVED_AS = {  # the activation function of the file that each variant leaves
    "topk": activation_functions.TopK,
    "multitopk": activation_functions.TopK,
    "matryoshka-topk": activation_functions.TopK,
    "batchtopk": activation_functions.JumpReLU,
    "matryoshka-batchtopk": activation_functions.JumpReLU,
    "jumprelu": activation_functions.JumpReLU,
    "prolu": activation_functions.JumpReLU,
    "relu": activation_functions.ReLU,
    "gated": activation_functions.Gated,
}


def load_for_model(paths: Sequence[str], model: LanguageModel, site: str) -> list[Dictionary]:
    """Load the dictionaries that training starts from, adapted to the activations of this model at this site.

    Raises:
        DictlabError: A file cannot be read, or belongs to another model or site.
    """
    dictionaries = []
    for path in paths:
        dictionary = load(path)
        check_plain([dictionary], "training from `start=...`")
        about = dictionary.metadata
        if not model.allow_other_weights and about.model_fingerprint not in (None, model.fingerprint):
            raise DictlabError(
                f"{path}: trained on {about.model} with fingerprint {about.model_fingerprint}; "
                f"{model.name} has other weights ({model.fingerprint}). For a fine-tuned child of that model, give "
                "`allow_other_weights=True`."
            )
        if about.site and not model.same_site(about.site, site):
            raise DictlabError(f"{path}: trained at {about.site}; this run is at {site}. Give its own site.")
        dictionaries.append(adapted(dictionary, model).in_input_units())
    return with_distinct_names(dictionaries)


def load_for_array(paths: Sequence[str], data: str, d_in: int) -> list[Dictionary]:
    """Load the dictionaries that training on an array of activations starts from.

    Args:
        paths: The dictionaries.
        data: What the array is called.
        d_in: Its width.

    Raises:
        DictlabError: A file cannot be read, or belongs to activations of another width.
    """
    dictionaries = []
    for path in paths:
        dictionary = load(path)
        check_plain([dictionary], "training from `start=...`")
        if dictionary.d_in != d_in:
            raise DictlabError(f"{path}: reads activations of width {dictionary.d_in}; those of {data} have {d_in}.")
        dictionaries.append(dictionary.in_input_units())
    return with_distinct_names(dictionaries)


def variants_for(dictionary: Dictionary, config: VariantSettings) -> list[Variant]:
    """The variants that training continues with: the one that made the dictionary, where its metadata names it and the
    file's activation function fits; else one by the activation function. One for each sparsity coefficient of `config`.
    """
    function, about = dictionary.activation, dictionary.metadata.training
    k = getattr(function, "k", about.get("k"))
    name = about.get("activation")
    known = isinstance(name, str) and isinstance(function, SAVED_AS.get(name, ()))
    if not known or (name == "prolu" and bool(dictionary.b_enc.any())):
        name = function.kind
    if name not in BY_NAME or ("topk" in str(name) and k is None):
        return [PerTokenVariant(config.aux_k, function)]
    return BY_NAME[name](config, [k] if k is not None else [])


@torch.no_grad()
def in_training_units(dictionary: Dictionary, factor: float) -> Dictionary:
    """The same function, of inputs times `factor`, with one bias and (where that changes nothing) unit rows."""
    if dictionary.normalisation in (NoNormalisation(), Centred()):
        scaled = Scale(factor)
        dictionary = replace(
            dictionary,
            b_enc=dictionary.b_enc * factor,
            b_pre=dictionary.b_pre * factor,
            b_out=dictionary.b_out * factor,
            activation=dictionary.activation.scaled(factor),
            normalisation=Centred(scaled) if isinstance(dictionary.normalisation, Centred) else scaled,
        )
    moved = dictionary.b_enc + (dictionary.b_out - dictionary.b_pre) @ dictionary.W_enc
    dictionary = replace(dictionary, b_enc=moved, b_pre=dictionary.b_out)
    return _with_unit_rows(dictionary) if dictionary.activation.elementwise else dictionary


def _with_unit_rows(dictionary: Dictionary) -> Dictionary:
    length = dictionary.W_dec.norm(dim=1)
    length = torch.where(length > 0, length, 1.0)
    return replace(
        dictionary,
        W_enc=dictionary.W_enc * length,
        b_enc=dictionary.b_enc * length,
        W_dec=dictionary.W_dec / length[:, None],
        activation=_stretched(dictionary.activation, length),
    )


def _stretched(activation: activation_functions.Activation, length: Tensor) -> activation_functions.Activation:
    """The function g for which g(n z) = n f(z), latent by latent."""
    if isinstance(activation, activation_functions.JumpReLU):
        return activation_functions.JumpReLU(activation.threshold * length)
    if isinstance(activation, activation_functions.Gated):
        return activation_functions.Gated(activation.b_gate * length, activation.r_mag, activation.b_mag * length)
    assert isinstance(activation, activation_functions.ReLU), activation.kind
    return activation
