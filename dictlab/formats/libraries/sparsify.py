"""Dictionaries of sparsify (EleutherAI; formerly `sae`): a folder with `sae.safetensors` and `cfg.json` a hook point.

    r = max((x - b_dec) W_enc + b_enc, 0)
    f = the k largest r                          activation "topk", which is what older files without the field mean
    f = the largest r of each of k groups        activation "groupmax"
    f = the k largest |(x - b_dec) W_enc + b_enc|, with their signs      older files with "signed"
    x_hat = f W_dec + b_dec                      with skip_connection, + x W_skip^T
    transcode                                    x in place of x - b_dec; x is a module's input, y = f W_dec + b_dec
                                                 (+ x W_skip^T) what it puts out

Source: the library's `SparseCoder`, version 1.3.3, and earlier ones for `signed`. The encoder is kept transposed, the
decoder is not. `num_latents` 0 stands for d_in times `expansion_factor`. `normalize_decoder` and `multi_topk` are
matters of training; under the latter the library's `forward` gives the reconstruction from 4 k latents that the loss
needs, its `encode` and `decode` those from k, and these are followed.

The hook point is the path of a module within the base model of a Hugging Face model, and means what it puts out; of a
transcoder, what it reads as well. It is
nowhere but in the folder's name: `<run>/layers.6/sae.safetensors`, with several seeds `<run>/layers.6/seed1/...`. The
model is named by the run's `config.json`, where it was kept.

Between November 2024 and February 2025, whether a run trained transcoders stood in its `config.json` only, so that
file is read as well. Where neither says, a skip alone is read as the library reads it, as that of an autoencoder, with
a note; but released transcoders lack the field, so under a folder whose name says transcoder it has to be filled in.
Written with an additional field `dictlab` in `cfg.json`, which the library passes over. `signed` is not written: the
library knows it no more, and would silently compute something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dictlab import site_names
from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import AbsTopK, Activation, GroupMax, TopK
from dictlab.dictionary.activation_records import whole
from dictlab.errors import DictlabError
from dictlab.formats.libraries import writing
from dictlab.formats.libraries.defaults import SPARSIFY, default
from dictlab.formats.libraries.fields import flag, refuse_part, refuse_scale, refuse_unknown, shaped, short
from dictlab.formats.reading.checks import check
from dictlab.formats.reading.configs import read_config
from dictlab.formats.reading.source import Source
from dictlab.runtime import atomic_files

WRITES_TWO_PLACES = True
TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
FIELDS = {
    *("activation", "k", "signed", "num_latents", "expansion_factor", "d_in", "transcode", "skip_connection"),
    *("normalize_decoder", "multi_topk", writing.OWN),
}
KEPT = {"lr": "lr", "optimizer": "optimizer", "dataset": "text", "batch_size": "batch", "auxk_alpha": "auxk_alpha"}
OBJECTIVES = {"fvu": "local", "ce": "e2e", "kl": "e2e"}
# What a hook point's name looks like: a path with a block's number in it, or one of the embeddings.
HOOK_POINT = re.compile(r"(?:\w+\.)+\d+(?:\.\w+)*|embed_tokens|embed_in|wte|word_embeddings")
SEED = re.compile(r"seed(\d{1,9})")
NO_RUN = (
    "its cfg.json is of a version that says only in the run's config.json whether it is a transcoder, and that file is "
    "not in a folder above: it is read as a dictionary of one place."
)
SKIP_ALONE = (
    "its cfg.json has skip_connection and does not say transcode: it is read as the library reads it, as an "
    'autoencoder of one site with a skip. If it is a transcoder, write "transcode": true into cfg.json.'
)
ABOVE = 4  # folders between a file and its run's configuration, at most


class _Run(NamedTuple):
    """The run's configuration, and the path from its folder to the dictionary's."""

    config: dict[str, Any]
    inner: tuple[str, ...]


def recognise(source: Source) -> bool:
    """Whether there is a transposed encoder beside a decoder that is not, under this library's names."""
    return source.has(*TENSORS)


def read(source: Source) -> Dictionary:
    """The dictionary in a file of sparsify's.

    Raises:
        DictlabError: A tensor is missing, unknown or of another shape, a field of the configuration is, or whether it
            is a transcoder is not said where its folder's name says so.
    """
    refuse_part(source)
    refuse_scale(source)
    run, t = _run(source), source.tensors
    config = _config(source)
    refuse_unknown(config, FIELDS, "cfg.json: the field", source.ignore)
    transcodes, skip = (_said_anywhere(name, config, run.config) for name in ("transcode", "skip_connection"))
    notes = _unsaid(source, config, run) if skip and not transcodes else ()
    refuse_unknown(t, (*TENSORS, "W_skip") if skip else TENSORS, "the tensor", source.ignore)
    n_latents, d_in = shaped(t, "encoder.weight", None, None).shape
    shaped(t, "encoder.bias", n_latents)
    shaped(t, "W_dec", n_latents, d_in)
    shaped(t, "b_dec", d_in)
    _check_sizes(config, d_in, n_latents)
    return Dictionary(
        W_enc=t["encoder.weight"].T,
        b_enc=t["encoder.bias"],
        W_dec=t["W_dec"],
        b_pre=torch.zeros_like(t["b_dec"]) if transcodes else t["b_dec"],
        b_out=t["b_dec"],
        activation=_activation(config, n_latents),
        W_skip=shaped(t, "W_skip", d_in, d_in).T if skip else None,
        transcodes=transcodes,
        metadata=_metadata(config, run, transcodes, notes),
    )


def write(dictionary: Dictionary, path: Path) -> Path:
    """Write the folder of a hook point, as the library does.

    Args:
        path: A folder that does not exist yet, or is empty. The library takes its name for the hook point's.

    Raises:
        DictlabError: There is something in that place, or the library cannot express the dictionary.
    """
    path = Path(path)
    with writing.new_folder(path) as folder:
        check(dictionary)
        activation = dictionary.activation
        if not isinstance(activation, TopK | GroupMax):
            why = (
                "its current version passes over `signed`"
                if activation.kind == "abstopk"
                else "it has topk and groupmax"
            )
            raise DictlabError(f"sparsify cannot express its activation function ({activation.kind}): {why}.")
        if dictionary.d_in != dictionary.d_out:
            raise DictlabError(
                f"it reads a width of {dictionary.d_in} and writes {dictionary.d_out}; sparsify has one width for both."
            )
        d = writing.unscaled(dictionary, "sparsify")
        d = writing.no_pre_bias(d) if d.transcodes else writing.one_bias(d)
        tensors = {"encoder.weight": d.W_enc.T, "encoder.bias": d.b_enc, "W_dec": d.W_dec, "b_dec": d.b_out}
        if d.W_skip is not None:
            tensors["W_skip"] = d.W_skip.T
        # One precision: the library takes the first tensor's for all.
        alone = {name: writing.alone(tensor, d.W_enc.dtype) for name, tensor in tensors.items()}
        atomic_files.save_tensors(alone, folder / "sae.safetensors")
        (folder / "cfg.json").write_text(json.dumps(_written(d, activation)), "utf-8")
    return path


def _config(source: Source) -> dict[str, Any]:
    found = source.config("k", "d_in") or source.config("k", "expansion_factor")
    if found is None:
        why = source.damaged.get("cfg.json", "expected a cfg.json beside it, with k and d_in.")
        raise DictlabError(f"its configuration is missing: {why}")
    return found


def _said_anywhere(name: str, config: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether a field is true in cfg.json, in the run's configuration, or in that of its dictionaries."""
    settings = run.get("sae")
    return any(flag(fields, name, default(SPARSIFY, name)) for fields in (config, run, settings or {}))


def _unsaid(source: Source, config: Mapping[str, Any], run: _Run) -> tuple[str, ...]:
    """The doubt about a skip without a word on `transcode`.

    Raises:
        DictlabError: The name of a folder says that it is a transcoder.
    """
    if "transcode" in config or "transcode" in run.config or "transcode" in (run.config.get("sae") or {}):
        return ()
    folder = next(
        (part for part in source.path.absolute().parts[-1 - ABOVE : -1] if "transcoder" in part.lower()), None
    )
    if folder is not None:
        raise DictlabError(
            f"cfg.json has skip_connection and does not say transcode, and the folder {short(folder)} is named as one "
            'of transcoders: whether b_dec is subtracted from the input depends on it. Write "transcode": true or '
            "false into cfg.json."
        )
    return (SKIP_ALONE,)


def _check_sizes(config: Mapping[str, Any], d_in: int, n_latents: int) -> None:
    if "d_in" in config and whole(config["d_in"], "cfg.json: d_in") != d_in:
        raise DictlabError(f"cfg.json: d_in is {config['d_in']}; the tensors have {d_in}.")
    stated = config.get("num_latents", default(SPARSIFY, "num_latents"))
    if stated == 0 and type(stated) is int:
        stated = d_in * whole(config.get("expansion_factor", n_latents // d_in), "cfg.json: expansion_factor")
    if whole(stated, "cfg.json: num_latents") != n_latents:
        raise DictlabError(
            f"cfg.json: num_latents is {config.get('num_latents', 0)} and expansion_factor "
            f"{config.get('expansion_factor')}, that is {stated} latents; the tensors have {n_latents}."
        )


def _activation(config: Mapping[str, Any], n_latents: int) -> Activation:
    kind, k = config.get("activation", default(SPARSIFY, "activation")), whole(config["k"], "cfg.json: k")
    signed = flag(config, "signed", default(SPARSIFY, "signed"))
    if k > n_latents:
        raise DictlabError(f"cfg.json: k is {k}; it has {n_latents} latents.")
    if kind == "groupmax" and not signed:
        if n_latents % k:
            raise DictlabError(f"cfg.json: {n_latents} latents do not divide into k = {k} groups (groupmax).")
        return GroupMax(k)
    if kind != "topk":
        signs = " with signed true" if signed else ""
        raise DictlabError(f"cfg.json: activation is {short(kind)}{signs}; expected 'topk' or 'groupmax'.")
    return AbsTopK(k) if signed else TopK(k)


def _metadata(config: Mapping[str, Any], run: _Run, transcodes: bool, notes: tuple[str, ...]) -> Metadata:
    own = writing.from_record(config)
    if own is not None:
        return own
    about = run.config
    kept = {ours: about[theirs] for theirs, ours in KEPT.items() if type(about.get(theirs)) in (int, float, str)}
    if type(about.get("ctx_len")) is int:
        kept["context"] = about["ctx_len"]
    settings = {name: config[name] for name in ("multi_topk", "normalize_decoder") if type(config.get(name)) is bool}
    model, loss = about.get("model"), about.get("loss_fn")
    return Metadata(
        model=site_names.hub_model(model) if isinstance(model, str) and model else None,
        site=_site(run, ":in" if transcodes else ""),
        writes=_site(run, ":out") if transcodes else None,
        objective=OBJECTIVES.get(loss) if isinstance(loss, str) else None,
        seed=_seed(run),
        training={**kept, **settings},
        library="sparsify",
        convention="huggingface",
        foreign=dict(config),
        notes=notes or (() if "transcode" in config or about else (NO_RUN,)),
    )


def _run(source: Source) -> _Run:
    """The nearest folder above that a run was kept in; without one, the two folders that the file lies in."""
    folder = source.path.absolute().parent
    for above in (folder, *folder.parents)[:ABOVE]:
        config = _run_config(above)
        if config is not None:
            return _Run(config, folder.relative_to(above).parts)
    return _Run({}, folder.parts[-2:])


def _run_config(folder: Path) -> dict[str, Any] | None:
    """A run's configuration, if it lies here. Other files of that name are no business of this one."""
    try:
        config = read_config(folder / "config.json")
    except DictlabError:
        return None
    return config if isinstance(config.get("hookpoints"), list) and isinstance(config.get("sae"), dict) else None


def _site(run: _Run, side: str) -> str | None:
    """The hook point, or a side of its module: the last folder that is named like one."""
    points = run.config.get("hookpoints", [])
    inner = [part for part in run.inner if not SEED.fullmatch(part)][-1:]
    found = [part for part in inner if part in points or HOOK_POINT.fullmatch(part)]
    return site_names.site_in_blocks(found[0] + side) if found else None


def _seed(run: _Run) -> int | None:
    """From the folder's name, where there are several; or the only one of the run."""
    match = SEED.fullmatch(run.inner[-1]) if run.inner else None
    if match:
        return int(match[1])
    seeds = run.config.get("init_seeds")
    return seeds[0] if isinstance(seeds, list) and len(seeds) == 1 and type(seeds[0]) is int else None


def _written(d: Dictionary, activation: TopK | GroupMax) -> dict[str, Any]:
    """The configuration to write. What was only a matter of training stays as it was read."""
    foreign = d.metadata.foreign
    native = "d_in" in foreign and "k" in foreign
    trained = {"normalize_decoder": writing.unit_decoder(d), "multi_topk": False}
    if native:
        trained |= {name: foreign[name] for name in trained if type(foreign.get(name)) is bool}
    return {
        "activation": activation.kind,
        "expansion_factor": max(1, d.n_latents // d.d_in),
        **trained,
        "num_latents": d.n_latents,
        "k": activation.k,
        "skip_connection": d.W_skip is not None,
        "transcode": d.transcodes,
        "d_in": d.d_in,
        writing.OWN: writing.to_record(d.metadata),
    }
