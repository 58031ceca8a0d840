"""Dictionaries of bartbussmann/BatchTopK and bartbussmann/matryoshka_sae (Bussmann et al. 2024, 2025), read only.

    h     = x, or (x - mean) / (std + 1e-5) with input_unit_norm; std over n - 1
    vanilla    f = relu((h - b_dec) W_enc + b_enc)
    topk       f = the k largest of relu((h - b_dec) W_enc) of each token            b_enc takes no part
    batchtopk  f = the k n largest of the same in a batch of n tokens                neither here
    jumprelu   r = relu(h W_enc + b_enc), f = r [r > exp(jumprelu.log_threshold)]    no pre-bias
    batch-topk, global-matryoshka-topk    r = relu((h - b_dec) W_enc), f = r [r > threshold]    of matryoshka_sae
    x_hat = y = f W_dec + b_dec, or y std + mean

Sources: sae.py and config.py of BatchTopK, commit b9aab1c, which keeps no threshold to use BatchTopK with; sae.py and
main.py of matryoshka_sae, whose classes keep one (`threshold`, which `encode` uses outside of training). Groups of a
Matryoshka dictionary are a matter of training. A checkpoint is `sae.pt` beside `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import Activation, BatchTopK, JumpReLU, ReLU, TopK
from dictlab.dictionary.activation_records import whole
from dictlab.dictionary.normalisation import LayerNorm, NoNormalisation
from dictlab.errors import DictlabError
from dictlab.formats.libraries.fields import (
    flag,
    number,
    refuse_extras,
    refuse_unknown,
    shaped,
    short,
    text,
    without_none,
)
from dictlab.formats.reading.source import Source
from dictlab.site_names import hub_model, site_in_blocks

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
THRESHOLD = "jumprelu.log_threshold"
WITH_THRESHOLD = ("batch-topk", "global-matryoshka-topk")  # of matryoshka_sae
KINDS = ("vanilla", "topk", "batchtopk", "jumprelu", *WITH_THRESHOLD)
FUNCTION = ("act_size", "dict_size", "sae_type", "top_k", "input_unit_norm", "group_sizes")
HARMLESS = (
    *("seed", "batch_size", "lr", "num_tokens", "l1_coeff", "l1_warmup_frac", "beta1", "beta2", "max_grad_norm"),
    *("seq_len", "dtype", "model_name", "site", "layer", "hook_point", "device", "model_batch_size"),
    *("num_batches_in_buffer", "dataset_path", "wandb_project", "perf_log_freq", "checkpoint_freq"),
    *("n_batches_to_dead", "top_k_aux", "aux_penalty", "bandwidth", "name"),
    *("model_dtype", "top_k_matryoshka"),
)
NO_THRESHOLD = (
    "no threshold in the file: the codes of a token depend on the tokens that are encoded with it. One to use instead "
    "is the smallest active code of a batch, on average over batches."
)
NOT_ESTIMATED = "threshold is 0: none was estimated yet, so every latent with a positive pre-activation is active."


def recognise(source: Source) -> bool:
    """Whether the tensors and the configuration beside them are those of a checkpoint."""
    return source.has(*TENSORS) and source.config("act_size", "dict_size", "sae_type") is not None


def read(source: Source) -> Dictionary:
    """The dictionary in a checkpoint.

    Raises:
        DictlabError: There is no configuration, or something is missing, of the wrong shape or unknown.
    """
    refuse_extras(source)
    config = source.config("act_size", "dict_size", "sae_type")
    if config is None:
        raise DictlabError("no configuration with act_size, dict_size and sae_type lies beside it.")
    kind = config["sae_type"]
    if kind not in KINDS:
        raise DictlabError(f"configuration: sae_type is {short(kind)!r}; expected one of {', '.join(KINDS)}.")
    refuse_unknown(config, (*FUNCTION, *HARMLESS), "configuration: the field", source.ignore)
    thresholds = {"jumprelu": (THRESHOLD,), **dict.fromkeys(WITH_THRESHOLD, ("threshold",))}.get(kind, ())
    refuse_unknown(source.tensors, (*TENSORS, *thresholds), "the tensor", source.ignore)
    refuse_unknown(source.entries, (), "the entry", source.ignore)
    d_in, n_latents = (whole(config[name], f"configuration: {name}") for name in ("act_size", "dict_size"))
    W_enc = shaped(source.tensors, "W_enc", d_in, n_latents)
    b_enc = shaped(source.tensors, "b_enc", n_latents)
    b_dec = shaped(source.tensors, "b_dec", d_in)
    activation = _activation(source, config, n_latents)
    return Dictionary(
        W_enc=W_enc,
        b_enc=b_enc if kind in ("vanilla", "jumprelu") else torch.zeros_like(b_enc),
        W_dec=shaped(source.tensors, "W_dec", n_latents, d_in),
        b_pre=torch.zeros_like(b_dec) if kind == "jumprelu" else b_dec,
        b_out=b_dec,
        activation=activation,
        normalisation=LayerNorm(1e-5) if flag(config, "input_unit_norm", False) else NoNormalisation(),
        metadata=_metadata(config, activation),
    )


def _activation(source: Source, config: Mapping[str, Any], n_latents: int) -> Activation:
    kind = config["sae_type"]
    if kind == "vanilla":
        return ReLU()
    if kind == "jumprelu":
        return JumpReLU(shaped(source.tensors, THRESHOLD, n_latents).float().exp())
    if kind in WITH_THRESHOLD:
        threshold = shaped(source.tensors, "threshold").float()
        return JumpReLU(threshold.expand(n_latents).clone())
    k = whole(config.get("top_k"), "configuration: top_k")
    if k > n_latents:
        raise DictlabError(f"configuration: top_k is {k}; expected at most {n_latents}, the number of latents.")
    return TopK(k) if kind == "topk" else BatchTopK(k)


def _metadata(config: Mapping[str, Any], activation: Activation) -> Metadata:
    model, site, groups = text(config, "model_name"), text(config, "hook_point"), config.get("group_sizes")
    kind = config["sae_type"]
    notes = (NO_THRESHOLD,) if kind == "batchtopk" else ()
    if kind in WITH_THRESHOLD and isinstance(activation, JumpReLU) and not bool(activation.threshold.any()):
        notes = (NOT_ESTIMATED,)
    return Metadata(
        model=hub_model(model) if model else None,
        site=site_in_blocks(site) if site else None,
        objective="local",
        seed=number(config, "seed", int),
        training=without_none(
            l1=number(config, "l1_coeff"),
            context=number(config, "seq_len", int),
            k=number(config, "top_k", int) if kind in WITH_THRESHOLD else None,
            group_sizes=groups if kind == "global-matryoshka-topk" and isinstance(groups, list) else None,
        ),
        library="bartbussmann/matryoshka_sae" if kind in WITH_THRESHOLD else "bartbussmann/BatchTopK",
        convention="huggingface" if kind in WITH_THRESHOLD else "transformer_lens",
        foreign=dict(config),
        notes=notes,
    )
