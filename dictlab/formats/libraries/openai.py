"""Dictionaries of openai/sparse_autoencoder (Gao et al. 2024), read only.

    h     = x                                    where the activation function is ReLU
            (x - mean) / (std + 1e-5)            where it is TopK; std over n - 1. No field says so: the function does.
    f     = act((h - pre_bias) encoder.weight^T + latent_bias)
    y     = f decoder.weight^T + pre_bias        decoder.weight = encoder.weight^T where they are tied
    x_hat = y, or y std + mean

Source: sparse_autoencoder/model.py, commit 4965b94. A `.pt` file is a state dict with two entries that are no tensors:
`activation` and `activation_state_dict`; the class reads a file without the former as ReLU, and so is it read here. The
released files name layer and location only in their path.

The repository's training loop (train.py) has a class of its own, TopK without layer norm, whose state dict lacks the
statistics of the other's: its k is in no file, and neither is what its activations were normalised by. It is refused,
with what to say instead.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import Activation, ReLU, TopK
from dictlab.dictionary.activation_records import whole
from dictlab.dictionary.normalisation import LayerNorm, NoNormalisation, Normalisation
from dictlab.errors import DictlabError
from dictlab.formats.libraries.fields import refuse_extras, refuse_unknown, shaped, short
from dictlab.formats.reading.source import Source
from dictlab.site_names import hub_model

OF_RELEASE = ("latents_activation_frequency", "latents_mean_square")  # of the released class, not the training loop's
STATISTICS = ("stats_last_nonzero", *OF_RELEASE)
TIED = "decoder.linear.weight"  # the encoder's weight, under the name that a tied decoder gives it
TENSORS = ("pre_bias", "latent_bias", "encoder.weight", "decoder.weight", TIED, *STATISTICS)
# The last two are strays that current torch writes beside the others.
ENTRIES = ("activation", "activation_state_dict", "activation.k", "activation.postact_fn")
LOCATIONS = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_post_mlp": "hook_resid_post",
}
PATH = re.compile(rf"/([^/]+)/({'|'.join(LOCATIONS)})(?:_v\w+)?/autoencoders/(\d+)\.pt$")


def recognise(source: Source) -> bool:
    """Whether the names are those of this library's state dicts."""
    return source.has("pre_bias", "latent_bias", "encoder.weight")


def read(source: Source) -> Dictionary:
    """The dictionary in a state dict.

    Raises:
        DictlabError: Something is missing, of the wrong shape or unknown, the activation function is one that has no
            sparse codes (Identity), or the file does not determine it.
    """
    refuse_extras(source)
    refuse_unknown(source.tensors, TENSORS, "the tensor", source.ignore)
    refuse_unknown(source.entries, ENTRIES, "the entry", source.ignore)
    if "activation" not in source.entries and not source.has(*OF_RELEASE):
        raise DictlabError(
            "it is a state dict of the repository's training loop (train.py), or another's of these names: TopK, most "
            "likely, but its k stands in no file, nor how its activations were normalised. Say both: "
            "`map=...` W_enc=encoder.weight.T b_enc=latent_bias W_dec=decoder.weight.T b_dec=pre_bias "
            "activation=topk:K normalisation=none, or normalisation=layer_norm if each activation was normalised first."
        )
    encoder = shaped(source.tensors, "encoder.weight", None, None)
    n_latents, d_in = encoder.shape
    activation, normalisation = _function(source.entries, n_latents)
    bias = shaped(source.tensors, "pre_bias", d_in)
    site, model = _place(source)
    return Dictionary(
        W_enc=encoder.T,
        b_enc=shaped(source.tensors, "latent_bias", n_latents),
        W_dec=_decoder(source, encoder),
        b_pre=bias,
        b_out=bias,
        activation=activation,
        normalisation=normalisation,
        firing_rate=_firing_rate(source, n_latents),
        metadata=Metadata(
            model=model,
            site=site,
            objective="local",
            library="openai/sparse_autoencoder",
            convention="huggingface",
            foreign=_as_stored(activation),
            notes=() if site else ("the file names neither its model nor its site, and its path does not tell.",),
        ),
    )


def _function(entries: Any, n_latents: int) -> tuple[Activation, Normalisation]:
    """The activation function, and the normalisation that goes with it."""
    name, state = entries.get("activation", "ReLU"), entries.get("activation_state_dict", {})
    if name == "ReLU":
        return ReLU(), NoNormalisation()
    if name != "TopK":
        raise DictlabError(
            f"activation is {short(name)!r}; expected 'ReLU' or 'TopK', the functions that give sparse codes."
        )
    if not isinstance(state, dict) or not {"k", "postact_fn"} <= state.keys():
        raise DictlabError(f"activation_state_dict is {short(state)}; for TopK, 'k' and 'postact_fn' are needed.")
    if state["postact_fn"] != "ReLU":
        raise DictlabError(
            f"activation_state_dict: postact_fn is {short(state['postact_fn'])!r}; only 'ReLU' is known."
        )
    k = whole(state["k"], "activation_state_dict: k")
    if k > n_latents:
        raise DictlabError(f"activation_state_dict: k is {k}; expected at most {n_latents}, the number of latents.")
    return TopK(k), LayerNorm(1e-5)


def _as_stored(activation: Activation) -> dict[str, Any]:
    """The entries of the file that are no tensors."""
    if not isinstance(activation, TopK):
        return {"activation": "ReLU"}
    return {"activation": "TopK", "activation_state_dict": {"k": activation.k, "postact_fn": "ReLU"}}


def _decoder(source: Source, encoder: Tensor) -> Tensor:
    """W_dec [n_latents, d_in]."""
    n_latents, d_in = encoder.shape
    if "decoder.weight" in source.tensors:
        return shaped(source.tensors, "decoder.weight", d_in, n_latents).T
    return shaped(source.tensors, TIED, n_latents, d_in) if TIED in source.tensors else encoder


def _firing_rate(source: Source, n_latents: int) -> Tensor | None:
    """What was measured; in a file where nobody did, each is 1."""
    if "latents_activation_frequency" not in source.tensors:
        return None
    rate = shaped(source.tensors, "latents_activation_frequency", n_latents).float()
    measured = bool(((rate >= 0) & (rate <= 1)).all()) and not bool((rate == 1).all())
    return rate if measured and bool(torch.any(rate > 0)) else None


def _place(source: Source) -> tuple[str | None, str | None]:
    """Site and model, where the path is the released files'."""
    match = PATH.search(source.path.absolute().as_posix())
    if match is None:
        return None, None
    model, location, layer = match.groups()
    return f"blocks.{int(layer)}.{LOCATIONS[location]}", hub_model(model)
