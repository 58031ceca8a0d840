"""Dictionaries of Qwen-Scope, read only: `layer<n>.sae.pt` in a repository whose name says the rest.

    f = the k largest of x W_enc^T + b_enc, then max(., 0);   x_hat = f W_dec^T + b_dec

W_enc is [n_latents, d_in], W_dec [d_in, n_latents]. Model and k stand in the repository's name and nowhere else:
`SAE-Res-Qwen3-1.7B-Base-W32K-L0_50` is of Qwen/Qwen3-1.7B-Base, and k is 50. The site is the residual stream behind
block n. Sources: the repositories' model cards; sae_lens 6.54.12, `qwen_scope_sae_huggingface_loader`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import TopK
from dictlab.errors import DictlabError
from dictlab.formats.libraries.fields import refuse_extras, refuse_unknown, shaped
from dictlab.formats.reading.source import Source

TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")
REPOSITORY = re.compile(r"SAE-Res-(Qwen[\w.-]+?)-W(\d+)K-L0_(\d+)")
FILE = re.compile(r"layer(\d+)\.sae\.pt")


class _Release(NamedTuple):
    """What a repository's name says."""

    model: str
    n_latents: int
    k: int


def recognise(source: Source) -> bool:
    """Whether the four tensors are there, both matrices transposed, without a configuration beside them."""
    if not source.has(*TENSORS) or source.configs or len(source.tensors) != len(TENSORS):
        return False
    W_enc, W_dec = source.tensors["W_enc"], source.tensors["W_dec"]
    transposed = W_enc.ndim == W_dec.ndim == 2 and W_enc.shape == W_dec.shape[::-1]
    return transposed and [len(W_enc)] == list(source.tensors["b_enc"].shape)


def read(source: Source) -> Dictionary:
    """The dictionary in a file of a layer.

    Raises:
        DictlabError: The path holds no repository's name that would say k, or the tensors are not as it says.
    """
    refuse_extras(source)
    refuse_unknown(source.entries, (), "the entry", source.ignore)
    release, layer = _release(source), FILE.fullmatch(source.path.name)
    d_in = len(source.tensors["b_dec"])
    b_dec = shaped(source.tensors, "b_dec", d_in)
    return Dictionary(
        W_enc=shaped(source.tensors, "W_enc", release.n_latents, d_in).T,
        b_enc=shaped(source.tensors, "b_enc", release.n_latents),
        W_dec=shaped(source.tensors, "W_dec", d_in, release.n_latents).T,
        b_pre=torch.zeros_like(b_dec),
        b_out=b_dec,
        activation=TopK(release.k),
        metadata=Metadata(
            model=release.model,
            site=f"blocks.{int(layer[1])}.hook_resid_post" if layer else None,
            objective="local",
            library="Qwen-Scope",
            convention="huggingface",
            notes=() if layer else ("its name is not layer<n>.sae.pt: the site is unknown.",),
        ),
    )


def _release(source: Source) -> _Release:
    """What the folders that a file lies in say of it: the cache of the Hub names the repository.

    Raises:
        DictlabError: They say nothing.
    """
    match = next((m for part in source.path.absolute().parts[::-1] if (m := REPOSITORY.search(part))), None)
    if match is None:
        raise DictlabError(
            "its matrices are transposed and no configuration says its k, as in Qwen-Scope, whose k is in the "
            "repository's name (SAE-Res-...-L0_50: 50), and no folder above it is named so. If it is one: name it as "
            "hf://Qwen/SAE-Res-.../layer<n>.sae.pt, or `map=...` W_enc=W_enc.T W_dec=W_dec.T b_enc=b_enc b_pre=zero "
            "b_out=b_dec normalisation=none activation=topk:K"
        )
    model, thousands, k = match.groups()
    return _Release(f"Qwen/{model}", int(thousands) << 10, int(k))
