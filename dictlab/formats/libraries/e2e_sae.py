"""Dictionaries of ApolloResearch/e2e_sae (Braun et al. 2024), read only.

    f     = relu(x encoder.0.weight^T + encoder.0.bias)                       no pre-bias
    W_dec = decoder.weight^T, each row divided by max(its norm, 1e-12)        in every forward, so at reading here
    x_hat = f W_dec + decoder.bias

Source: e2e_sae/models/sparsifiers.py, release 2.1.1. A checkpoint `samples_<n>.pt` holds the dictionaries of one or
several sites, each under its hook point's name with hyphens for dots; `final_config.yaml` beside it describes the run.
Its authors also publish single dictionaries (e2e_sae/scripts/upload_to_hf.py), `<name>.pt` beside `<name>.yaml`: names
begin with `encoder.` and `decoder.` there, and the decoder has been normalised already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import ReLU
from dictlab.errors import DictlabError
from dictlab.formats.libraries.fields import (
    number,
    refuse_part,
    refuse_scale,
    refuse_unknown,
    shaped,
    short,
    text,
    without_none,
)
from dictlab.formats.reading.source import Source
from dictlab.site_names import hub_model, site_in_blocks

EPS = 1e-12  # of the decoder's normalisation
CHECKPOINT = ("encoder.0.weight", "encoder.0.bias", "decoder.weight", "decoder.bias")
PUBLISHED = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
# Fields of a run that leave the function as it is.
RUN = (
    *("wandb_project", "wandb_run_name", "wandb_run_name_prefix", "seed", "tlens_model_name", "tlens_model_path"),
    *("save_dir", "n_samples", "save_every_n_samples", "eval_every_n_samples", "eval_n_samples", "batch_size"),
    *("effective_batch_size", "lr", "lr_schedule", "min_lr_factor", "warmup_samples", "cooldown_samples"),
    *("max_grad_norm", "log_every_n_grad_steps", "collect_act_frequency_every_n_samples", "act_frequency_n_tokens"),
    *("loss", "train_data", "eval_data", "saes"),
    # in earlier versions
    *("adam_beta1", "collect_output_metrics_every_n_samples", "collect_discrete_metrics_every_n_samples"),
    *("discrete_metrics_n_tokens",),
)
SAES = ("type_of_sparsifier", "dict_size_to_input_ratio", "k", "pretrained_sae_paths", "retrain_saes", "sae_positions")


def recognise(source: Source) -> bool:
    """Whether it is a checkpoint of this library's, or a published dictionary beside the configuration of its run."""
    sites = [site for site in _sites(source) if source.has(*(f"{site}.{name}" for name in CHECKPOINT))]
    if sites:
        return any("hook_" in site for site in sites) or _config(source) is not None
    return set(source.tensors) == set(PUBLISHED) and _config(source) is not None


def read(source: Source) -> Dictionary:
    """One dictionary of a checkpoint: the only one, or that of the site `source.part`.

    Raises:
        DictlabError: The checkpoint holds several and none was named, or something is missing, of the wrong shape or
            unknown, or no dictionary of this kind (a codebook).
    """
    refuse_scale(source)
    config = _config(source) or {}
    _check(config, source.ignore)
    site = _site(source) if _sites(source) else None
    encoder, encoder_bias, decoder, decoder_bias = _tensors(source, site)
    run = _run(source, config)
    if site is not None:
        decoder = normalize(decoder if decoder.dtype == torch.float64 else decoder.float(), dim=0, eps=EPS)
    zeros = torch.zeros_like(decoder_bias)
    stated = site.replace("-", ".") if site is not None else _position(config)
    return Dictionary(
        W_enc=encoder.T,
        b_enc=encoder_bias,
        W_dec=decoder.T,
        b_pre=zeros,
        b_out=decoder_bias,
        activation=ReLU(),
        metadata=Metadata(site=None if stated is None else site_in_blocks(stated), **run),
    )


def _sites(source: Source) -> list[str]:
    """The dictionaries in a checkpoint, as they are named there."""
    ending = f".{CHECKPOINT[0]}"
    return [name.removesuffix(ending) for name in source.tensors if re.fullmatch(rf"[^.]+{re.escape(ending)}", name)]


def _site(source: Source) -> str:
    """The one that is meant."""
    sites = _sites(source)
    if source.part is None and len(sites) == 1:
        return sites[0]
    wanted = None if source.part is None else source.part.replace(".", "-")
    if wanted in sites:
        return str(wanted)
    names = ", ".join(f"{source.path.name}#{short(site.replace('-', '.'))}" for site in sites)
    if wanted is None:
        raise DictlabError(f"this checkpoint holds {len(sites)} dictionaries; name one of them: {names}.")
    raise DictlabError(f"this checkpoint holds no dictionary called {short(source.part)!r}; it holds {names}.")


def _tensors(source: Source, site: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encoder [n_latents, d_in] and bias, decoder [d_in, n_latents] and bias."""
    if site is None:
        refuse_part(source)
    known = [f"{prefix}.{name}" for prefix in _sites(source) for name in CHECKPOINT] or PUBLISHED
    names = PUBLISHED if site is None else [f"{site}.{name}" for name in CHECKPOINT]
    refuse_unknown(source.tensors, known, "the tensor", source.ignore)
    refuse_unknown(source.entries, (), "the entry", source.ignore)
    encoder = shaped(source.tensors, names[0], None, None)
    n_latents, d_in = encoder.shape
    return (
        encoder,
        shaped(source.tensors, names[1], n_latents),
        shaped(source.tensors, names[2], d_in, n_latents),
        shaped(source.tensors, names[3], d_in),
    )


def _config(source: Source) -> dict[str, Any] | None:
    """The run's configuration: under the file's own name or the run's, or else the only one there is."""
    runs = {name: config for name, config in source.configs.items() if _is_run(config)}
    stem = source.path.stem
    own = next((runs[name] for name in (f"{stem}.yaml", f"{stem}.yml", "final_config.yaml") if name in runs), None)
    return own or (next(iter(runs.values())) if len(runs) == 1 else None)


def _is_run(config: Mapping[str, Any]) -> bool:
    named = "tlens_model_name" in config or "tlens_model_path" in config
    return named and isinstance(config.get("saes"), dict) and isinstance(config.get("loss"), dict)


def _check(config: Mapping[str, Any], ignore: tuple[str, ...]) -> None:
    """Refuse a run that made another kind of dictionary, or that cannot be understood."""
    saes = config.get("saes", {})
    refuse_unknown(config, RUN, "configuration: the field", ignore)
    refuse_unknown(saes, SAES, "configuration: the field saes:", ignore)
    if saes.get("type_of_sparsifier", "sae") not in ("sae", None):
        raise DictlabError(
            f"configuration: type_of_sparsifier is {short(saes['type_of_sparsifier'])!r}; expected 'sae', "
            "the kind that has an encoder."
        )


def _run(source: Source, config: Mapping[str, Any]) -> dict[str, Any]:
    """What metadata can be told of the run."""
    if not config:
        damaged = "".join(f" ({name}: {reason})" for name, reason in source.damaged.items())
        note = f"no configuration of the run lies beside the file{damaged}: model, objective and seed are unknown."
        return {"library": "e2e_sae", "convention": "transformer_lens", "notes": (note,)}
    model, own = text(config, "tlens_model_name"), text(config, "tlens_model_path")
    context = number(_section(config, "train_data"), "n_ctx", int)
    seen = re.fullmatch(r"samples_(\d{1,18})", source.path.stem)
    sparsity = _section(config["loss"], "sparsity")
    trained = without_none(l1=number(sparsity, "coeff"), p_norm=number(sparsity, "p_norm"), context=context)
    return {
        "model": hub_model(model) if model else own,
        "objective": _objective(config["loss"]),
        "seed": number(config, "seed", int),
        "tokens": int(seen[1]) * context if seen and context else None,
        "training": trained,
        "library": "e2e_sae",
        # A model of their own is opened without processing its weights.
        "convention": "transformer_lens" if model else None,
        "foreign": dict(config),
    }


def _objective(loss: Mapping[str, Any]) -> str | None:
    """What the run was trained for, told from the terms of its loss that have a weight."""
    kl = (number(_section(loss, "logits_kl"), "coeff") or 0) > 0
    downstream = (number(_section(loss, "in_to_orig"), "total_coeff") or 0) > 0
    local = any((number(_section(loss, name), "coeff") or 0) > 0 for name in ("out_to_in", "out_to_orig"))
    if kl:
        return ("e2e+ds" if downstream else "e2e") + ("+local" if local else "")
    return "local" if local and not downstream else None


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a configuration; empty where it is absent or null."""
    section = config.get(name)
    if section is not None and not isinstance(section, dict):
        raise DictlabError(f"configuration: {name} is {short(section)}; expected fields.")
    return section or {}


def _position(config: Mapping[str, Any]) -> str | None:
    """The site of a published dictionary: its run had one position, written in full."""
    positions = config["saes"].get("sae_positions") if config else None
    named = [positions] if isinstance(positions, str) else positions
    whole = isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) and "." in named[0]
    return named[0] if whole else None  # type: ignore[index]
