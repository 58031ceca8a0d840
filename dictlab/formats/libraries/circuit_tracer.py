"""Per-layer transcoders of circuit-tracer, read only: `layer_<i>.safetensors` beside `config.yaml`.

    f = max(x W_enc^T + b_enc, 0)                       y_hat = f W_dec + b_dec, with W_skip + x W_skip^T
    f = z [z > activation_function.threshold]           where there is this tensor; z = x W_enc^T + b_enc

W_enc is [n_latents, d], W_dec [n_latents, d]. `config.yaml` says `model_kind: transcoder_set`, the model, and the hooks
of TransformerLens that a layer's transcoder reads and writes; the layer is in the file's name. The library opens models
with `fold_ln` and `center_writing_weights` off, so activations are those of the Hugging Face model.

TopK (`activation: topk`, or a tensor `k`) is refused: the library keeps the k largest pre-activations whatever their
sign, so codes can be negative, which no activation function here is. So are cross-layer transcoders, which write
several sites. Source: circuit-tracer, commit 4bb8c0e; not checked against released files.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import Activation, JumpReLU, ReLU
from dictlab.errors import DictlabError
from dictlab.formats.libraries.fields import refuse_extras, refuse_unknown, shaped, short, text
from dictlab.formats.reading.source import Source
from dictlab.site_names import hub_model, site_in_blocks

KIND = "model_kind"
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
THRESHOLD, SKIP = "activation_function.threshold", "W_skip"
FIELDS = (KIND, "model_name", "feature_input_hook", "feature_output_hook", "transcoders", "activation", "k", "scan")
FILE = re.compile(r"layer_(\d+)")
CROSS_LAYER = re.compile(r"W_(?:enc|dec)_\d+")
NORMALISED = (
    "it reads ln2.hook_normalized: taken for the norm's output without gain, as TransformerLens has it in models with "
    "RMS norm; with layer norm its hook includes the gain. dictlab verify measures which of the two it reads."
)


def recognise(source: Source) -> bool:
    """Whether a configuration beside its tensors is that of a set of transcoders."""
    named = source.has(*TENSORS) or any(CROSS_LAYER.fullmatch(name) for name in source.tensors)
    return named and source.config(KIND, "feature_input_hook") is not None


def read(source: Source) -> Dictionary:
    """The transcoder of one layer.

    Raises:
        DictlabError: Something is missing, of the wrong shape or unknown, its codes can be negative, or it is a
            cross-layer transcoder.
    """
    refuse_extras(source)
    config = source.config(KIND, "feature_input_hook")
    if config is None:
        raise DictlabError(f"no config.yaml with {KIND} and feature_input_hook lies beside it.")
    if config[KIND] != "transcoder_set":
        raise DictlabError(
            f"{KIND} is {short(config[KIND])}; expected transcoder_set: a cross-layer transcoder writes several sites, "
            "and a dictionary here writes one."
        )
    refuse_unknown(config, FIELDS, "configuration: the field", source.ignore)
    tensors = source.tensors
    refuse_unknown(tensors, (*TENSORS, THRESHOLD, SKIP, "k"), "the tensor", source.ignore)
    n_latents, d_in = shaped(tensors, "W_enc", None, None).shape
    b_dec = shaped(tensors, "b_dec", None)
    (d_out,) = b_dec.shape
    return Dictionary(
        W_enc=tensors["W_enc"].T,
        b_enc=shaped(tensors, "b_enc", n_latents),
        W_dec=shaped(tensors, "W_dec", n_latents, d_out),
        b_pre=torch.zeros(d_in, dtype=b_dec.dtype),
        b_out=b_dec,
        activation=_activation(source, config, n_latents),
        W_skip=shaped(tensors, SKIP, d_out, d_in).T if SKIP in tensors else None,
        transcodes=True,
        metadata=_metadata(source, config),
    )


def _activation(source: Source, config: dict[str, Any], n_latents: int) -> Activation:
    kind = text(config, "activation")
    if kind == "topk" or "k" in source.tensors or config.get("k") is not None:
        raise DictlabError(
            "its activation function is topk, and circuit-tracer keeps the k largest pre-activations whatever their "
            "sign; no activation function here gives such codes. Expected relu, or a threshold of each latent."
        )
    if kind not in (None, "relu", "jumprelu"):
        raise DictlabError(f"configuration: activation is {short(kind)}; expected relu.")
    if THRESHOLD in source.tensors:
        threshold = shaped(source.tensors, THRESHOLD, n_latents)
        if bool((threshold < 0).any()):
            raise DictlabError(f"{THRESHOLD} is negative somewhere, where the library's codes are negative as well.")
        return JumpReLU(threshold)
    if kind == "jumprelu":
        raise DictlabError(f"configuration: activation is jumprelu, and the tensor {THRESHOLD} is missing.")
    return ReLU()


def _metadata(source: Source, config: dict[str, Any]) -> Metadata:
    model, layer = text(config, "model_name"), FILE.fullmatch(source.path.stem)
    hooks = [text(config, name) for name in ("feature_input_hook", "feature_output_hook")]
    notes: tuple[str, ...] = (NORMALISED,) if hooks[0] == "ln2.hook_normalized" else ()
    if layer is None:
        notes += ("its name is not layer_<i>.safetensors: the sites are unknown.",)
    reads, writes = (site_in_blocks(f"blocks.{int(layer[1])}.{hook}") if layer and hook else None for hook in hooks)
    return Metadata(
        model=hub_model(model) if model else None,
        site=reads,
        writes=writes,
        objective="local",
        library="circuit-tracer",
        convention="huggingface",
        foreign=dict(config),
        notes=notes,
    )
