"""Dictionaries of Gemma Scope 1 and 2 (Lieberum et al. 2024; Google DeepMind 2025), read only.

    z     = x W_enc + b_enc                  no pre-bias
    f     = relu(z) [z > threshold]
    x_hat = f W_dec + b_dec
    y_hat = f W_dec + b_dec + x affine_skip_connection    a transcoder of Gemma Scope 2; the skip where it has one

Gemma Scope 1 is `params.npz`, and everything else is in the path: `gemma-scope-2b-pt-res/layer_20/width_16k/
average_l0_71/`. Gemma Scope 2 is `params.safetensors` with names in small letters, beside `config.json`. Crosscoders
and cross-layer transcoders, which write several places, are refused, and so are dictionaries of embeddings: whether
those read rows of the embedding table, or rows times sqrt(d_in) as the model does, no file says.

Transcoders write what the MLP adds to the residual stream, behind the norm that follows it. Those of Gemma Scope 1 read
the output of the norm before the MLP without its gain (README of the release, commit 50eec2f; arXiv 2408.05147v2),
those of Gemma Scope 2 with it.

Source: the releases' tutorial, whose formula SAELens and SAEBench use alike; not checked against released files.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import JumpReLU
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

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
SKIP = "affine_skip_connection"
FIELDS = (
    *("architecture", "model_name", "hf_hook_point_in", "hf_hook_point_out", "affine_connection", "type"),
    *("width", "l0"),
)
FIRST = re.compile(r"(?:models--google--)?gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)(?:-canonical)?")
SECOND = re.compile(r"(?:models--google--)?gemma-scope-2-(\d+[mb])-(pt|it)")
KIND = re.compile(r"(resid_post|attn_out|mlp_out|transcoder|clt|crosscoder)(?:_all)?")
FOLDERS = re.compile(r"(?:layer_(?P<layer>\d+))?_?(?:width_(?P<width>\d+[km]))?_?(?:(?:average_)?l0_(?P<l0>\w+))?")
SITES = {
    **{"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"},
    **{"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z"},
}
TRANSCODERS = {"transcoders": "ln2.hook_normalized", "transcoder": "ln2.hook_out"}  # of release 1 and 2: what is read
NORM_BEFORE = re.compile(r"(?:.*\.)?layers\.(\d+)\.pre_feedforward_layernorm\.output")
MLP_NORM = re.compile(r"(?:.*\.)?layers\.(\d+)\.post_feedforward_layernorm\.output")
WIDTHS = {"k": 1 << 10, "m": 1 << 20}


@dataclass(frozen=True)
class ReleasePath:
    """What a path tells of a dictionary; None where it does not.

    Attributes:
        repository: The release's name.
        model: Of the Hub.
        kind: What the dictionary reads, in the release's words.
    """

    repository: str | None = None
    model: str | None = None
    kind: str | None = None
    layer: int | None = None
    width: str | None = None
    l0: str | None = None

    @property
    def site(self) -> str | None:
        sites = SITES | TRANSCODERS
        return f"blocks.{self.layer}.{sites[self.kind]}" if self.kind in sites and self.layer is not None else None

    @property
    def writes(self) -> str | None:
        transcodes = self.kind in TRANSCODERS and self.layer is not None
        return f"blocks.{self.layer}.hook_mlp_out" if transcodes else None


def recognise(source: Source) -> bool:
    """Whether its arrays have these names: in small letters in a safetensors file, in either way in numpy's archive."""
    if not all(name in _named(source) for name in TENSORS):
        return False
    small = all(name in source.tensors for name in ("w_enc", "w_dec"))
    container = _container(source)
    return container == "npz" or (small and container == "safetensors")


def read(source: Source) -> Dictionary:
    """The dictionary in a file of a release.

    Raises:
        DictlabError: Something is missing, of the wrong shape or unknown, what its tensors, its configuration and its
            path say contradict each other, or it is a crosscoder or a dictionary of embeddings.
    """
    refuse_extras(source)
    tensors, config = _named(source), _config(source)
    place = place_of(source.path.absolute().parts[:-1])
    _refuse_others(tensors, config or {}, place)
    transcodes = _transcodes(config or {}, place)
    affine = _affine(tensors, config or {}, source, transcodes)
    refuse_unknown(tensors, (*TENSORS, "scaling_factor", *([SKIP] if affine else [])), "the tensor", source.ignore)
    encoder = shaped(tensors, "W_enc", None, None)
    d_in, n_latents = encoder.shape
    _check_scaling(tensors, n_latents)
    bias = shaped(tensors, "b_dec", None if transcodes else d_in)
    (d_out,) = bias.shape
    return Dictionary(
        W_enc=encoder,
        b_enc=shaped(tensors, "b_enc", n_latents),
        W_dec=shaped(tensors, "W_dec", n_latents, d_out),
        b_pre=torch.zeros(d_in, dtype=bias.dtype),
        b_out=bias,
        activation=JumpReLU(shaped(tensors, "threshold", n_latents)),
        W_skip=shaped(tensors, SKIP, d_in, d_out) if affine else None,
        transcodes=transcodes,
        metadata=_metadata(config, place, n_latents, source.ignore, transcodes),
    )


def place_of(folders: tuple[str, ...]) -> ReleasePath:
    """What the folders that a file lies in tell of it: those of a release, or of a Hub's cache of it.

    Args:
        folders: From the root on.
    """
    at = max((i for i, name in enumerate(folders) if FIRST.fullmatch(name) or SECOND.fullmatch(name)), default=None)
    inner = folders[-4:] if at is None else folders[at + 1 :]
    told: dict[str, Any] = {}
    for name in inner:
        match = FOLDERS.fullmatch(name.removesuffix("_affine")) if name else None
        told |= {key: value for key, value in (match.groupdict() if match else {}).items() if value is not None}
    if "layer" in told:
        told["layer"] = int(told["layer"])
    kind = next((match[1] for name in reversed(inner) if (match := KIND.fullmatch(name))), None)
    if at is None:
        return ReleasePath(kind=kind, **told)
    repository = folders[at].removeprefix("models--google--")
    told |= {"repository": f"google/{repository}"}
    if first := FIRST.fullmatch(folders[at]):
        size, tuned, kind = first.groups()
        kind = "embedding" if "embedding" in inner else kind
        return ReleasePath(model=f"google/gemma-2-{size}{'-it' * (tuned == 'it')}", kind=kind, **told)
    return ReleasePath(model=_gemma_3(repository.replace("gemma-scope-2", "gemma-3")), kind=kind, **told)


def _gemma_3(name: str) -> str:
    """A model's name on the Hub, where the smallest pretrained one has no ending."""
    model = hub_model(name.replace("-v3", "-3"))
    return model.removesuffix("-pt") if "-270m" in model else model


def _named(source: Source) -> dict[str, Tensor]:
    """Tensors under one spelling of their names."""
    return {f"W{name[1:]}" if name.startswith("w_") else name: tensor for name, tensor in source.tensors.items()}


def _container(source: Source) -> str | None:
    """How the file is packed, told from its content."""
    try:
        with source.path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":
            return "safetensors"
        if start[:4] != b"PK\x03\x04":
            return None
        with zipfile.ZipFile(source.path) as archive:
            return "npz" if all(name.endswith(".npy") for name in archive.namelist()) else None
    except (OSError, zipfile.BadZipFile, ValueError):
        return None


def _config(source: Source) -> dict[str, Any] | None:
    return None if _container(source) == "npz" else source.config("architecture", "hf_hook_point_in")


def _refuse_others(tensors: Mapping[str, Tensor], config: Mapping[str, Any], place: ReleasePath) -> None:
    """Refuse what writes several places of the model, and what reads embeddings."""
    what = None
    if "W_dec" in tensors and tensors["W_dec"].ndim == 3:
        what = "a cross-layer transcoder or crosscoder (its w_dec writes to several layers)"
    elif (kind := config.get("type", "sae")) not in ("sae", "transcoder"):
        what = f"of the type {short(kind)!r}"
    elif place.kind in ("clt", "crosscoder"):
        what = f"one of the {place.kind}s, as its path tells"
    elif place.kind == "embedding":
        raise DictlabError(
            "it is a dictionary of token embeddings, and no file says whether it reads rows of the table or rows times "
            "sqrt(d_in). If you know, read it with a mapping and the normalisation none or scale:FACTOR."
        )
    if what is not None:
        raise DictlabError(f"it is {what}; expected a dictionary that writes one site.")


def _transcodes(config: Mapping[str, Any], place: ReleasePath) -> bool:
    """Whether it is a transcoder: by its configuration or, without one, by its path.

    Raises:
        DictlabError: Its type and its two hook points contradict each other, or it and its path do.
    """
    kind, point_in, point_out = (text(config, name) for name in ("type", "hf_hook_point_in", "hf_hook_point_out"))
    apart = point_out is not None and point_out != point_in
    by_path = place.kind in TRANSCODERS
    if not config:
        return by_path
    transcodes = kind == "transcoder" or (kind is None and apart)
    if transcodes != apart:
        raise DictlabError(
            f"configuration: type is {short(kind)!r}, and it reads {short(point_in)} and writes {short(point_out)}; "
            "expected two hook points of a transcoder, and one of an SAE."
        )
    if by_path and not transcodes:
        raise DictlabError(
            "it is one of the transcoders, as its path tells, and its configuration says that it is none."
        )
    return transcodes


def _affine(tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: Source, transcodes: bool) -> bool:
    """Whether there is a skip connection, which its tensors, its configuration and its folder's name must agree on.

    Raises:
        DictlabError: They do not, or it is no transcoder.
    """
    affine = SKIP in tensors
    said = flag(config, "affine_connection", affine)
    if affine != said or (not affine and source.path.absolute().parent.name.endswith("_affine")):
        raise DictlabError(
            f"whether it is a transcoder with an affine skip connection: the tensor {SKIP} is "
            f"{'there' if affine else 'missing'}, and its configuration or the path says otherwise."
        )
    if affine and not transcodes:
        raise DictlabError("it has an affine skip connection and is no transcoder by its configuration and path.")
    return affine


def _check_scaling(tensors: Mapping[str, Tensor], n_latents: int) -> None:
    """Refuse factors of the codes, which some exports carry, unless each is 1."""
    if "scaling_factor" in tensors and bool((shaped(tensors, "scaling_factor", n_latents) != 1).any()):
        raise DictlabError("scaling_factor holds other numbers than 1, and what they multiply is not known.")


def _metadata(
    config: Mapping[str, Any] | None, place: ReleasePath, n_latents: int, ignore: tuple[str, ...], transcodes: bool
) -> Metadata:
    site, writes, model = place.site, place.writes, place.model
    l0 = float(place.l0) if place.l0 and place.l0.isdecimal() else None  # or a word: small, medium, big
    if config is not None:
        refuse_unknown(config, FIELDS, "configuration: the field", ignore)
        if config["architecture"] != "jump_relu":
            raise DictlabError(
                f"configuration: architecture is {short(config['architecture'])!r}; expected 'jump_relu'."
            )
        if (width := number(config, "width", int)) not in (None, n_latents):
            raise DictlabError(f"configuration: width is {width}; w_enc has {n_latents} latents.")
        name = text(config, "model_name")
        site, model = _site(text(config, "hf_hook_point_in")) or site, _gemma_3(name) if name else model
        writes = _site(text(config, "hf_hook_point_out")) or writes
        l0 = number(config, "l0")
    return Metadata(
        model=model,
        site=site,
        writes=writes if transcodes else None,
        objective="local",
        metrics=without_none(l0=l0),
        library=place.repository or "Gemma Scope",
        convention="huggingface",
        foreign=dict(config) if config else without_none(layer=place.layer, width=place.width, l0=place.l0),
        notes=tuple(_notes(site, place, n_latents)),
    )


def _site(point: str | None) -> str | None:
    """A hook point of the configurations, as a site."""
    if point is None:
        return None
    if match := NORM_BEFORE.fullmatch(point):
        return f"blocks.{match[1]}.ln2.hook_out"
    if match := MLP_NORM.fullmatch(point):
        return f"blocks.{match[1]}.hook_mlp_out"
    return site_in_blocks(re.sub(r"\.(?:(in)put|(out)put)$", lambda end: f":{end[1] or end[2]}", point))


def _notes(site: str | None, place: ReleasePath, n_latents: int) -> list[str]:
    notes = []
    if site is None:
        notes.append("the path names no folder of a release: the site, and that it is no transcoder, are not known.")
    if place.width and int(place.width[:-1]) * WIDTHS[place.width[-1]] != n_latents:
        notes.append(f"the path says width {place.width}; the file holds {n_latents} latents.")
    return notes
