"""Dictionaries that are known and not read: named, with what to do.

Tensors and configurations as the libraries' own sources have them: OpenMOSS Language-Model-SAEs (lm_saes,
llamascopium), Qwen-Scope's model cards, and SAELens' loader of these.
"""

from __future__ import annotations

from collections.abc import Callable

from dictlab.formats.source import Source

BIASES = "b_enc=b_enc b_pre=zero b_out=b_dec normalisation=none"


def reason_for_refusal(source: Source) -> str | None:
    """What a file is that no format reads, and what can be done; None where nobody here knows it."""
    return next((reason for is_it, reason in KNOWN if is_it(source)), None)


def _llamascopium(source: Source) -> bool:
    return source.has("W_E", "W_D", "b_E")


def _llama_scope(source: Source) -> bool:
    settings = ("jump_relu_threshold", "dataset_average_activation_norm")
    stated = any(name in config for config in source.configs.values() for name in settings)
    return source.has("encoder.weight", "decoder.weight") and stated


def _qwen_scope(source: Source) -> bool:
    if not source.has("W_enc", "W_dec", "b_enc", "b_dec") or source.configs or len(source.tensors) != 4:
        return False
    W_enc, W_dec = source.tensors["W_enc"], source.tensors["W_dec"]
    turned = W_enc.ndim == W_dec.ndim == 2 and W_enc.shape == W_dec.shape[::-1]
    return turned and [len(W_enc)] == list(source.tensors["b_enc"].shape)


KNOWN: tuple[tuple[Callable[[Source], bool], str], ...] = (
    (
        _llamascopium,
        "it is a dictionary of OpenMOSS' llamascopium (lm_saes), whose input norms are those of a data set and whose "
        "selection may count decoder norms; it is not read. Export it with that library, or, if norm_activation is "
        "'inference' and sparsity_include_decoder_norm false, use --map W_enc=W_E b_enc=b_E W_dec=W_D b_pre=zero "
        "b_out=b_D normalisation=none activation=...",
    ),
    (
        _llama_scope,
        "it is a dictionary of Llama Scope (an older lm_saes), whose threshold and input norm stand in "
        "hyperparams.json; it is not read. Work out the scale sqrt(d_in) / the average norm there, and use --map with "
        "normalisation=scale:FACTOR activation=jumprelu:THRESHOLD.",
    ),
    (
        _qwen_scope,
        "its matrices are turned and no configuration says its k, as in Qwen-Scope, whose k is in the repository's "
        f"name (L0_50: 50). If it is one: --map W_enc=W_enc.T W_dec=W_dec.T {BIASES} activation=topk:K",
    ),
)
