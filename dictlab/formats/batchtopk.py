"""Dictionaries of bartbussmann/BatchTopK (Bussmann et al. 2024), read only.

    h     = x, or (x - mean) / (std + 1e-5) with input_unit_norm; std over n - 1
    vanilla    f = relu((h - b_dec) W_enc + b_enc)
    topk       f = the k largest of relu((h - b_dec) W_enc) of each token            b_enc takes no part
    batchtopk  f = the k n largest of the same in a batch of n tokens                neither here
    jumprelu   r = relu(h W_enc + b_enc), f = r [r > exp(jumprelu.log_threshold)]    no pre-bias
    x_hat = y = f W_dec + b_dec, or y std + mean

Source: sae.py and config.py, commit b9aab1c. A checkpoint is `sae.pt` beside `config.json`. No threshold to use
BatchTopK with is kept anywhere.
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
from dictlab.formats.fields import (
    flag,
    number,
    refuse_extras,
    refuse_unknown,
    shaped,
    short,
    text,
    without_none,
)
from dictlab.formats.source import Source
from dictlab.site_names import hub_model, site_in_blocks

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
THRESHOLD = "jumprelu.log_threshold"
FUNCTION = ("act_size", "dict_size", "sae_type", "top_k", "input_unit_norm")
HARMLESS = (
    *("seed", "batch_size", "lr", "num_tokens", "l1_coeff", "l1_warmup_frac", "beta1", "beta2", "max_grad_norm"),
    *("seq_len", "dtype", "model_name", "site", "layer", "hook_point", "device", "model_batch_size"),
    *("num_batches_in_buffer", "dataset_path", "wandb_project", "perf_log_freq", "checkpoint_freq"),
    *("n_batches_to_dead", "top_k_aux", "aux_penalty", "bandwidth", "name"),
)
NO_THRESHOLD = (
    "no threshold in the file: the codes of a token depend on the tokens that are encoded with it. One to use instead "
    "is the smallest active code of a batch, on average over batches."
)


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
    if "group_sizes" in config or "matryoshka" in str(kind):
        raise DictlabError(
            f"configuration: sae_type is {short(kind)!r}, of bartbussmann/matryoshka_sae, whose selection over groups "
            "and batches is not known here. If you know what its encoder does, say it with --map."
        )
    refuse_unknown(config, (*FUNCTION, *HARMLESS), "configuration: the field", source.ignore)
    own = (THRESHOLD,) if kind == "jumprelu" else ()
    refuse_unknown(source.tensors, (*TENSORS, *own), "the tensor", source.ignore)
    refuse_unknown(source.entries, (), "the entry", source.ignore)
    d_in, n_latents = (whole(config[name], f"configuration: {name}") for name in ("act_size", "dict_size"))
    W_enc = shaped(source.tensors, "W_enc", d_in, n_latents)
    b_enc = shaped(source.tensors, "b_enc", n_latents)
    b_dec = shaped(source.tensors, "b_dec", d_in)
    return Dictionary(
        W_enc=W_enc,
        b_enc=torch.zeros_like(b_enc) if kind in ("topk", "batchtopk") else b_enc,
        W_dec=shaped(source.tensors, "W_dec", n_latents, d_in),
        b_pre=torch.zeros_like(b_dec) if kind == "jumprelu" else b_dec,
        b_out=b_dec,
        activation=_activation(source, config, n_latents),
        normalisation=LayerNorm(1e-5) if flag(config, "input_unit_norm", False) else NoNormalisation(),
        metadata=_metadata(config),
    )


def _activation(source: Source, config: Mapping[str, Any], n_latents: int) -> Activation:
    kind = config["sae_type"]
    if kind == "vanilla":
        return ReLU()
    if kind == "jumprelu":
        return JumpReLU(shaped(source.tensors, THRESHOLD, n_latents).float().exp())
    if kind not in ("topk", "batchtopk"):
        raise DictlabError(
            f"configuration: sae_type is {short(kind)!r}; expected 'vanilla', 'topk', 'batchtopk' or 'jumprelu'."
        )
    k = whole(config.get("top_k"), "configuration: top_k")
    if k > n_latents:
        raise DictlabError(f"configuration: top_k is {k}; expected at most {n_latents}, the number of latents.")
    return TopK(k) if kind == "topk" else BatchTopK(k)


def _metadata(config: Mapping[str, Any]) -> Metadata:
    model, site = text(config, "model_name"), text(config, "hook_point")
    return Metadata(
        model=hub_model(model) if model else None,
        site=site_in_blocks(site) if site else None,
        objective="local",
        seed=number(config, "seed", int),
        training=without_none(l1=number(config, "l1_coeff"), context=number(config, "seq_len", int)),
        library="bartbussmann/BatchTopK",
        convention="transformer_lens",
        foreign=dict(config),
        notes=(NO_THRESHOLD,) if config["sae_type"] == "batchtopk" else (),
    )
