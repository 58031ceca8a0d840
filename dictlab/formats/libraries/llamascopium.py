"""Dictionaries of OpenMOSS' llamascopium (formerly lm_saes), Llama Scope among them, read only.

    h = c x;   z = h W_E + b_E;   n = lengths of the rows of W_D, or 1 without sparsity_include_decoder_norm
    f = z [z n > 0]                         act_fn "relu"
        z [z n > threshold]                 "jumprelu"
        z where max(z n, 0) is among the k largest of the token ("topk"), or the k N largest of N tokens ("batchtopk")
    x_hat = (f W_D + b_D) / c

    norm_activation    "dataset-wise": c = sqrt(d) / the average norm, which the file keeps;
                       "token-wise": c = sqrt(d) / |x|;   "inference": c = 1, the norms are folded into the weights

Sources: llamascopium 2.0.0b34 (`models/sae.py`, `models/sparse_dictionary.py`), and lm_saes of November 2024 to 2025
(`sae.py`), whose linear layers `encoder` and `decoder` keep both matrices transposed. Layouts:

    config.json, sae_weights.safetensors             W_E, b_E, W_D, b_D, and activation_function.log_jumprelu_threshold
    config.json, sae_weights.safetensors             encoder.*, decoder.*, log_jumprelu_threshold (R1-Distill)
    hyperparams.json, checkpoints/final.safetensors  encoder.*, decoder.*, jump_relu_threshold in the JSON (Llama Scope)

The one threshold of Llama Scope was measured after the norms were folded into the weights and decoder rows brought to
length 1 (lm_saes, `initialize_sae_from_config` in the state "inference"), while the released weights are neither: it
is in the units of raw activations, and here becomes c times as large. SAELens read it as it stands until May 2025
(pull request 483, by an author of the release: "abnormally large L0"), and still passes over the decoder lengths.

Codes are the library's where each latent decides by itself. Under topk, which compares latents by z n, they are the
library's times n, and decoder rows have length 1: SAELens' reading of such files, and the same reconstruction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import Activation, BatchTopK, JumpReLU, ReLU, TopK
from dictlab.dictionary.activation_records import whole
from dictlab.dictionary.normalisation import ConstantNorm, NoNormalisation, Normalisation, Scale
from dictlab.errors import DictlabError
from dictlab.formats.libraries.fields import (
    flag,
    number,
    refuse_part,
    refuse_unknown,
    shaped,
    short,
    text,
    without_none,
)
from dictlab.formats.reading.source import Source
from dictlab.site_names import hub_model, site_in_blocks

PLAIN = {"W_E": "W_E", "b_E": "b_E", "W_D": "W_D", "b_D": "b_D"}
LINEAR = {"W_E": "encoder.weight", "b_E": "encoder.bias", "W_D": "decoder.weight", "b_D": "decoder.bias"}
LOG_THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
NORM = "dataset_average_activation_norm"  # one tensor a hook point, `NORM.blocks.8.hook_resid_post`; or in the JSON
GATED_ENCODER = ("W_E_glu", "b_E_glu", "encoder_glu.weight", "encoder_glu.bias")
FUNCTION = (
    *("sae_type", "d_model", "d_sae", "expansion_factor", "act_fn", "top_k", "jump_relu_threshold", "use_decoder_bias"),
    *("use_glu_encoder", "norm_activation", NORM, "sparsity_include_decoder_norm", "hook_point_in", "hook_point_out"),
    "apply_decoder_bias_to_pre_encoder",
)
HARMLESS = (
    *("device", "seed", "dtype", "bias_init_method", "decoder_exactly_fixed_norm", "init_decoder_norm", "init_search"),
    *("init_encoder_norm", "init_encoder_with_decoder_transpose", "init_encoder_with_decoder_transpose_factor", "lp"),
    *("l1_coefficient", "l1_coefficient_warmup_steps", "k_warmup_steps", "use_batch_norm_mse", "use_ghost_grads"),
    *("tp_size", "ddp_size", "use_triton_kernel", "sparsity_threshold_for_triton_spmm_kernel", "strict_loading"),
    *("jumprelu_threshold_window", "jumprelu_threshold_grad_scale", "sae_pretrained_name_or_path", "initial_k"),
)
KINDS = {  # of sae_type, which are no autoencoders of one site
    "crosscoder": "a crosscoder, which reads several sites at once",
    "clt": "a cross-layer transcoder, which writes the outputs of many layers",
    "lorsa": "a sparse attention layer, whose output at a token depends on the tokens before it",
    "molt": "a mixture of linear transforms, which has no codes",
    "mixcoder": "a dictionary of several kinds of input",
}
ACTIVATIONS = ("relu", "jumprelu", "topk", "batchtopk")
LARGEST = 1e30  # threshold of a latent whose decoder row is zero: it is never active
MODELS = {"Llama3_1-8B-Base": "meta-llama/Llama-3.1-8B"}  # by what folders of a release are called
FOLDED_THRESHOLD = (
    "norm_activation is 'inference': the library folds norms into the weights and leaves thresholds as they were "
    "(standardize_parameters_of_dataset_norm, 2.0.0b34), so L0 may be another than in training. Measure it."
)
RAW_THRESHOLD = (
    "jump_relu_threshold is in the units of raw activations, as released (Llama Scope): it is taken times the scale of "
    "the inputs. SAELens before May 2025 does not, and has a larger L0."
)
NO_THRESHOLD = "no threshold in the file (batchtopk): the codes of a token depend on the tokens encoded with it."


class _Norms(NamedTuple):
    """What the input is multiplied by, and how many times the output's factor is larger than the input's."""

    normalisation: Normalisation
    output_ratio: float


def recognise(source: Source) -> bool:
    """Whether the tensors are those of a layout; of linear layers, only a configuration says whose they are."""
    names = _names(source.tensors)
    return names is PLAIN or (names is LINEAR and _configuration(source) is not None)


def read(source: Source) -> Dictionary:
    """The dictionary in a file of llamascopium's.

    Raises:
        DictlabError: It is no autoencoder of one site, something in it is not understood, or whether its norms are
            folded into its weights cannot be told.
    """
    refuse_part(source)
    config, names = _configuration(source), _names(source.tensors)
    if config is None or names is None:
        raise DictlabError(
            "it is one of llamascopium (lm_saes) by its tensors; expected W_E, b_E, W_D, or encoder.* and decoder.*, "
            "beside a config.json or hyperparams.json with d_model and hook_point_in, which says what they mean."
        )
    _check_kind(config)
    refuse_unknown(config, (*FUNCTION, *HARMLESS), "configuration: the field", source.ignore)
    refuse_unknown(source.entries, ("version",), "the entry", source.ignore)
    tensors = _weights(source, config, names)
    norms = _norms(source, config)
    if norms.output_ratio != 1:
        tensors = tensors | {name: tensors[name].float() * norms.output_ratio for name in ("W_D", "b_D")}
    lengths = tensors["W_D"].float().norm(dim=1) if flag(config, "sparsity_include_decoder_norm", True) else None
    activation = _activation(source, config, len(tensors["W_D"]), norms.normalisation)
    tensors, activation = _selected_by_length(tensors, activation, lengths)
    pre_bias = flag(config, "apply_decoder_bias_to_pre_encoder", False)
    if pre_bias and norms.normalisation != NoNormalisation():
        raise DictlabError(
            "configuration: apply_decoder_bias_to_pre_encoder is true, and versions of the library differ in whether "
            "the bias is subtracted before or after inputs are scaled; expected false, or norm_activation 'inference'."
        )
    return Dictionary(
        W_enc=tensors["W_E"],
        b_enc=tensors["b_E"],
        W_dec=tensors["W_D"],
        b_pre=tensors["b_D"] if pre_bias else torch.zeros_like(tensors["b_D"]),
        b_out=tensors["b_D"],
        activation=activation,
        normalisation=norms.normalisation,
        metadata=_metadata(source, config, activation),
    )


def _configuration(source: Source) -> dict[str, Any] | None:
    return source.config("d_model", "hook_point_in")


def _names(tensors: Mapping[str, Tensor]) -> dict[str, str] | None:
    """What each tensor is called in this layout; None where it is neither."""
    return next((names for names in (PLAIN, LINEAR) if all(names[n] in tensors for n in ("W_E", "b_E", "W_D"))), None)


def _check_kind(config: Mapping[str, Any]) -> None:
    """Refuse what is no autoencoder of one site.

    Raises:
        DictlabError: It is named.
    """
    kind = config.get("sae_type", "sae")
    if kind != "sae":
        what = KINDS.get(kind) if isinstance(kind, str) else None
        raise DictlabError(f"sae_type is {short(kind)}{f': {what}' * bool(what)}; expected 'sae'.")
    read_site, written_site = text(config, "hook_point_in"), text(config, "hook_point_out")
    if written_site is not None and read_site != written_site:
        raise DictlabError(
            f"hook_point_in is {short(read_site)} and hook_point_out {short(written_site)}: a transcoder, which "
            "predicts the activations of another site. Expected one site: a dictionary reads and writes one."
        )
    if flag(config, "use_glu_encoder", False):
        raise DictlabError(
            "use_glu_encoder is true: its pre-activations are a product of two linear maps, and a dictionary's encoder "
            "is one. Expected false."
        )


def _weights(source: Source, config: Mapping[str, Any], names: dict[str, str]) -> dict[str, Tensor]:
    """W_E [d, m], b_E [m], W_D [m, d] and b_D [d], views of the file's tensors where they can be."""
    with_bias = flag(config, "use_decoder_bias", True)
    known = [name for key, name in names.items() if key != "b_D" or with_bias]
    norms = [name for name in source.tensors if name.startswith(f"{NORM}.")]
    thresholds = LOG_THRESHOLDS if _act_fn(config) == "jumprelu" else ()
    refuse_unknown(source.tensors, (*known, *norms, *thresholds), "the tensor", source.ignore)
    d = whole(config.get("d_model"), "configuration: d_model")
    t, transposed = source.tensors, names is LINEAR
    W_E = shaped(t, names["W_E"], *((None, d) if transposed else (d, None)))
    m = W_E.shape[0 if transposed else 1]
    W_D = shaped(t, names["W_D"], *((d, m) if transposed else (m, d)))
    stated = config.get("d_sae", config.get("expansion_factor", 0))
    if type(stated) in (int, float) and stated and m != int(stated if "d_sae" in config else stated * d):
        raise DictlabError(
            f"configuration: d_sae or expansion_factor is {short(stated)}; the tensors have {m} latents."
        )
    return {
        "W_E": W_E.T if transposed else W_E,
        "b_E": shaped(t, names["b_E"], m),
        "W_D": W_D.T if transposed else W_D,
        "b_D": shaped(t, names["b_D"], d) if with_bias else torch.zeros(d, dtype=W_D.dtype),
    }


def _act_fn(config: Mapping[str, Any]) -> str:
    kind = (text(config, "act_fn") or "relu").lower()
    if kind not in ACTIVATIONS:
        raise DictlabError(f"configuration: act_fn is {short(kind)}; expected one of {', '.join(ACTIVATIONS)}.")
    return kind


def _activation(source: Source, config: Mapping[str, Any], n_latents: int, normalisation: Normalisation) -> Activation:
    """The activation function of z n."""
    kind = _act_fn(config)
    if kind == "relu":
        return ReLU()
    if kind == "jumprelu":
        name = next((name for name in LOG_THRESHOLDS if name in source.tensors), None)
        if name is not None:
            return JumpReLU(shaped(source.tensors, name, n_latents).float().exp())
        threshold = number(config, "jump_relu_threshold")
        if threshold is None or not 0 <= threshold < LARGEST:
            raise DictlabError(
                f"configuration: act_fn is jumprelu and jump_relu_threshold {short(threshold)}; expected 0 or more, or "
                f"the tensor {LOG_THRESHOLDS[0]}."
            )
        scale = normalisation.factor if isinstance(normalisation, Scale) else 1.0
        return JumpReLU(torch.full((n_latents,), float(threshold) * scale))
    k = whole(config.get("top_k"), "configuration: top_k")
    if k > n_latents:
        raise DictlabError(f"configuration: top_k is {k}; expected at most {n_latents}, the number of latents.")
    if kind == "topk":
        return TopK(k)
    if "encoder.weight" in source.tensors:
        raise DictlabError("configuration: act_fn is batchtopk, whose rule differed between versions of lm_saes.")
    return BatchTopK(k)


def _selected_by_length(
    tensors: dict[str, Tensor], activation: Activation, lengths: Tensor | None
) -> tuple[dict[str, Tensor], Activation]:
    """The same function with the decoder rows' lengths n, by which the library selects, in the parts of a dictionary.

    ReLU and JumpReLU select each latent by itself: z n > threshold is z > threshold / n. Others compare latents: z n
    becomes the pre-activation, and decoder rows are divided by n.
    """
    if lengths is None:
        return tensors, activation
    if isinstance(activation, JumpReLU):
        threshold = activation.threshold / lengths.clamp_min(torch.finfo(torch.float32).tiny)
        return tensors, JumpReLU(threshold.clamp_max(LARGEST).masked_fill(lengths == 0, LARGEST))
    if isinstance(activation, ReLU):
        if bool((lengths > 0).all()):
            return tensors, activation
        return tensors, JumpReLU(torch.zeros_like(lengths).masked_fill(lengths == 0, LARGEST))
    scaled = {"W_E": tensors["W_E"].float() * lengths, "b_E": tensors["b_E"].float() * lengths}
    rows = tensors["W_D"].float() / lengths.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return tensors | scaled | {"W_D": rows}, activation


def _norms(source: Source, config: Mapping[str, Any]) -> _Norms:
    """What inputs are multiplied by."""
    mode = text(config, "norm_activation") or "dataset-wise"
    if mode != "dataset-wise" and source.scale is not None:
        raise DictlabError(f"a scale of {source.scale:g} was given, but norm_activation is {mode!r}; leave it away.")
    if mode == "inference":
        return _Norms(NoNormalisation(), 1)
    if mode == "token-wise":
        return _Norms(ConstantNorm(), 1)
    if mode != "dataset-wise":
        raise DictlabError(
            f"norm_activation is {short(mode)}; expected 'dataset-wise', 'token-wise' or 'inference' ('batch-wise' "
            "makes codes depend on the batch)."
        )
    if source.scale is not None:
        return _Norms(Scale(source.scale) if source.scale != 1 else NoNormalisation(), 1)
    d = whole(config.get("d_model"), "configuration: d_model")
    site = text(config, "hook_point_in") or ""
    norm_in, norm_out = _norm(source, config, (site, "in")), _norm(source, config, (site, "out"))
    if "W_E" in source.tensors and (source.path.parent / "checkpoints").is_dir():
        raise DictlabError(
            "it lies in the folder of a training run, whose config.json is written before its norms are folded into "
            "the weights, as they are by default: nothing in the files tells. Say it: `scale=1` if they are folded "
            f"(fold_activation_scale, the library's default), else `scale={math.sqrt(d) / norm_in:.6g}`."
        )
    return _Norms(Scale(math.sqrt(d) / norm_in), norm_out / norm_in)


def _norm(source: Source, config: Mapping[str, Any], names: tuple[str, ...]) -> float:
    """The average norm of activations under the first of some names, in the file or the configuration."""
    beside = config.get(NORM)
    stated = beside if isinstance(beside, dict) else {}
    for name in names:
        tensor = source.tensors.get(f"{NORM}.{name}")
        value: Any = tensor.item() if tensor is not None and tensor.ndim == 0 else stated.get(name)
        if type(value) in (int, float) and 1e-6 < value < 1e9:
            return float(value)
    raise DictlabError(
        f"norm_activation is 'dataset-wise', and neither a tensor {NORM}.{short(names[0])} nor {NORM} in the "
        f"configuration gives a norm. Say what inputs are multiplied by: `scale=...`, sqrt(d_model) / the average norm."
    )


def _metadata(source: Source, config: Mapping[str, Any], activation: Activation) -> Metadata:
    site = text(config, "hook_point_in")
    notes: tuple[str, ...] = (NO_THRESHOLD,) if isinstance(activation, BatchTopK) else ()
    if _act_fn(config) == "jumprelu":
        if not any(name in source.tensors for name in LOG_THRESHOLDS):
            notes = (RAW_THRESHOLD,)
        elif config.get("norm_activation") == "inference":
            notes = (FOLDED_THRESHOLD,)
    return Metadata(
        model=_model(source),
        site=site_in_blocks(site) if site else None,
        objective="local",
        seed=number(config, "seed", int),
        training=without_none(
            l1=number(config, "l1_coefficient"),
            k=number(config, "top_k", int) if notes == (RAW_THRESHOLD,) else None,  # thresholds were set for this L0
        ),
        library="llamascopium",
        convention="transformer_lens",
        foreign=dict(config),
        notes=notes,
    )


def _model(source: Source) -> str | None:
    """From lm_config.json beside it, or from what a release calls its folders."""
    beside = source.config("model_name", "prepend_bos") or source.config("model_name", "local_files_only") or {}
    name = text(beside, "model_name")
    if name is not None:
        return hub_model(name)
    known = (model for folder, model in MODELS.items() if re.search(rf"/{folder}-", source.path.absolute().as_posix()))
    return next(known, None)
