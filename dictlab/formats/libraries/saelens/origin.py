"""Where does a dictionary of SAELens come from, and whose activations does it read?

SAELens opens the model by itself. Before version 3.19.2 it did so with TransformerLens' processing of the weights,
since then without (SAELens, pull request 279); `model_from_pretrained_kwargs` holds what was asked for besides.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from dictlab import site_names
from dictlab.dictionary import Metadata
from dictlab.formats.libraries import token_settings, writing
from dictlab.formats.libraries.defaults import numbers
from dictlab.formats.libraries.saelens.config import TRANSCODERS, field_of, origin_in, renamed
from dictlab.formats.reading.source import Source
from dictlab.token_selection import RECORD

LAYOUT = "6.54.12"  # the version whose layout is written
UNPROCESSED_SINCE = (3, 19, 2)
PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")  # TransformerLens' default
# What SAELens keeps under `metadata` when it opens a configuration of a version before 6.
KEPT = (
    *("model_name", "model_class_name", "model_from_pretrained_kwargs", "hook_name", "hf_hook_name", "context_size"),
    *("prepend_bos", "seqpos_slice", "exclude_special_tokens", "dataset_path", "neuronpedia_id"),
    "sae_lens_training_version",
)


def read_metadata(raw: dict[str, Any], source: Source, notes: tuple[str, ...] = ()) -> Metadata:
    """Where a dictionary comes from: what dictlab has written of it, else what SAELens has.

    Raises:
        DictlabError: A field is not of the type that its name promises.
    """
    config = renamed(raw)
    origin, transcodes = origin_in(config), config.get("architecture") in TRANSCODERS
    own = writing.from_record(origin)
    if own is not None:
        foreign = {**raw, "metadata": own.foreign} if "metadata" in raw else own.foreign
        return replace(own, foreign=foreign, notes=tuple(dict.fromkeys((*own.notes, *notes))))
    settings = {**source.configs.get("runner_cfg.json", {}), **config, **origin}
    selection, unfollowed = token_settings.read(settings, token_settings.SAELENS)
    version, model = _version(config), field_of(origin, "model_name", str, None)
    # In a checkpoint, the settings of the run say what was still to come.
    run = {} if "activation_scaler.json" in source.configs else source.configs.get("runner_cfg.json", {})
    return Metadata(
        model=site_names.hub_model(model) if model else None,
        site=_site(origin, transcodes),
        writes=_written_site(origin) if transcodes else None,
        objective="local" if version else None,
        seed=_first_int(config.get("seed"), run.get("seed")),
        tokens=_first_int(
            config.get("training_tokens"), config.get("total_training_tokens"), run.get("training_tokens")
        ),
        training=_training(config, origin) | selection,
        metrics=_metrics(origin.get("l0")),
        library=f"sae_lens {version}" if version else "sae_lens",
        convention=_convention(config),
        foreign=raw,
        notes=(*notes, *unfollowed, *(_doubts(origin) if transcodes else ())),
    )


def write_metadata(metadata: Metadata) -> dict[str, Any]:
    """`metadata` as SAELens has it. What another file said there stays where it is still true."""
    before = renamed(metadata.foreign) if "d_sae" in metadata.foreign else {}
    old = origin_in(before)
    origin = {name: value for name, value in old.items() if "metadata" in before or name in KEPT}
    if site_names.hub_model(str(old.get("model_name"))) != metadata.model:
        origin["model_name"] = metadata.model
    transcodes = before.get("architecture") in TRANSCODERS
    if _site(origin, transcodes) != metadata.site:
        origin["hook_name"] = metadata.site and metadata.site.removesuffix(":out")
        origin.pop("hf_hook_name", None)
    if metadata.writes is not None and _written_site(origin) != metadata.writes:
        origin["hook_name_out"] = metadata.writes.removesuffix(":out")
        origin.pop("hf_hook_name_out", None)
    if old.get("model_from_pretrained_kwargs") is None or _convention(before) != metadata.convention:
        origin |= _opened(metadata)
    if token_settings.read({**before, **old}, token_settings.SAELENS)[0] != _selection(metadata):
        origin |= token_settings.written_for_saelens(metadata)
    if type(metadata.training.get("context")) is int:
        origin["context_size"] = metadata.training["context"]
    if type(metadata.metrics.get("l0")) in (int, float):
        origin["l0"] = metadata.metrics["l0"]
    return {
        "sae_lens_training_version": None,
        **origin,
        "hook_head_index": None,
        "sae_lens_version": LAYOUT,
        writing.OWN: writing.to_record(metadata),
    }


def _selection(metadata: Metadata) -> dict[str, Any]:
    """The entry of the metadata's record of the training that says which tokens counted."""
    return {name: value for name, value in metadata.training.items() if name == RECORD}


def _training(config: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    details = origin.get("training_architecture_details")
    settings = {**config, **(details if isinstance(details, dict) else {})}
    known = {
        "architecture": origin.get("training_architecture"),
        "context": field_of(origin, "context_size", int, None),
        "l1": settings.get("l1_coefficient"),
        "l0": settings.get("l0_coefficient"),
        "lr": settings.get("lr"),
        "dataset": origin.get("dataset_path"),
        "k": settings.get("k"),
    }
    return {name: value for name, value in known.items() if value is not None}


def _metrics(l0: Any) -> dict[str, Any]:
    return {"l0": float(l0)} if type(l0) in (int, float) and math.isfinite(l0) else {}


def _site(origin: dict[str, Any], transcodes: bool = False) -> str | None:
    """Where it reads. Of transcoders, the name of a Hugging Face module goes before that of TransformerLens.

    SAELens names the input of Gemma 3's transcoders `hook_mlp_in`, which in TransformerLens is the residual stream
    before the norm; the weights want the norm's output, which `hf_hook_name` has (SAELens, pull request 624).
    """
    module = field_of(origin, "hf_hook_name", str, None) if transcodes else None
    if module is not None:
        return _module_site(module)
    hook: str | None = field_of(origin, "hook_name", str, None)
    if transcodes and hook is not None and hook.endswith("hook_mlp_in"):
        return hook.replace("hook_mlp_in", "hook_resid_mid")  # what it is in TransformerLens
    if hook is None:
        return None
    hook = hook.replace("{layer}", str(origin.get("hook_layer", "{layer}")))  # versions 0 and 1
    site = site_names.site_in_blocks(hook)
    if site == hook and ":" not in hook and origin.get("model_class_name") == "AutoModelForCausalLM":
        return f"{hook}:out"  # a module: what it returns
    return site


def _written_site(origin: dict[str, Any]) -> str | None:
    """Where a transcoder writes."""
    module, hook = (field_of(origin, name, str, None) for name in ("hf_hook_name_out", "hook_name_out"))
    if module is not None:
        return _module_site(module)
    return _site({**origin, "hook_name": hook}) if hook is not None else None


def _module_site(module: str) -> str:
    """`model.layers.3.mlp.output` as a site."""
    return site_names.site_in_blocks(re.sub(r"\.(in|out)put$", r":\1", module))


def _doubts(origin: dict[str, Any]) -> tuple[str, ...]:
    """What may be wrong with the sites that a transcoder's configuration names."""
    hook = field_of(origin, "hook_name", str, None) or ""
    if hook.endswith("hook_mlp_in") and origin.get("hf_hook_name") is None:
        return (
            f"its configuration names {hook}, which in TransformerLens is the residual stream before the norm; SAELens "
            "has named the norm's output so by mistake. dictlab verify measures which of the two it reads.",
        )
    return ()


def _convention(config: dict[str, Any]) -> str | None:
    """Of which version's way to open a model the activations are. None where the file does not tell."""
    origin = origin_in(config)
    opened = origin.get("model_class_name") or "HookedTransformer"
    if opened != "HookedTransformer":
        return "huggingface" if opened == "AutoModelForCausalLM" else None
    asked, version = field_of(origin, "model_from_pretrained_kwargs", dict, None), _version(config)
    at_heads = str(origin.get("hook_name")).endswith("hook_z")
    flag = (asked or {}).get("fold_value_biases" if at_heads else "center_writing_weights")
    if type(flag) is bool:
        return "transformer_lens" if flag else "huggingface"
    if version and numbers(version) < UNPROCESSED_SINCE:
        return "transformer_lens"
    if asked is not None:
        return "huggingface"
    oldest = version is None and "metadata" not in config and "hook_name" in config
    return "transformer_lens" if oldest else None


def _opened(metadata: Metadata) -> dict[str, Any]:
    """How SAELens is to open the model for a dictionary of this convention."""
    if metadata.convention == "transformer_lens":
        asked: dict[str, bool] = dict.fromkeys(PROCESSING, True)
        return {"model_class_name": "HookedTransformer", "model_from_pretrained_kwargs": asked}
    if (metadata.site or "").endswith(":out"):
        return {"model_class_name": "AutoModelForCausalLM", "model_from_pretrained_kwargs": {}}
    if metadata.convention == "huggingface":
        asked = {"center_writing_weights": False}
        return {"model_class_name": "HookedTransformer", "model_from_pretrained_kwargs": asked}
    return {}


def _version(config: dict[str, Any]) -> str | None:
    """Which version trained it, or else wrote it."""
    found = (origin_in(config).get(name) for name in ("sae_lens_training_version", "sae_lens_version"))
    return next((version for version in found if isinstance(version, str) and numbers(version)), None)


def _first_int(*values: Any) -> int | None:
    return next((value for value in values if type(value) is int), None)
