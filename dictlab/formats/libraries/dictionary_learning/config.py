"""What the `config.json` of dictionary_learning says: `{"trainer": {...}, "buffer": {...}}`.

The trainer's part names the class, its sizes, the model (`lm_name`) and the place (`layer`, `submodule_name`); the
buffer's part says how activations were collected, from the module's input or output (`io`). The library collects them
through nnsight from the model as Hugging Face has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dictlab import site_names
from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import BatchTopK, TopK
from dictlab.errors import DictlabError
from dictlab.formats.libraries import token_settings, writing
from dictlab.formats.libraries.defaults import DICTIONARY_LEARNING, default
from dictlab.formats.libraries.fields import refuse_unknown, short
from dictlab.formats.reading.source import Source
from dictlab.token_selection import RECORD

LINEAR = {"encoder.weight": "md", "decoder.weight": "dm"}
PLAIN = {"W_enc": "dm", "b_enc": "m", "W_dec": "md", "b_dec": "d"}
# Tensors of each class with their shapes: d inputs, m latents.
CLASSES = {
    "AutoEncoder": {**LINEAR, "encoder.bias": "m", "bias": "d"},
    "AutoEncoderNew": {**LINEAR, "encoder.bias": "m", "decoder.bias": "d"},
    "GatedAutoEncoder": {**LINEAR, "decoder_bias": "d", "gate_bias": "m", "r_mag": "m", "mag_bias": "m"},
    "AutoEncoderTopK": {**LINEAR, "encoder.bias": "m", "b_dec": "d"},
    "BatchTopKSAE": {**LINEAR, "encoder.bias": "m", "b_dec": "d"},
    "MatryoshkaBatchTopKSAE": PLAIN,
    "JumpReluAutoEncoder": {**PLAIN, "threshold": "m"},
}
ALSO = {  # what a class has or has not, by the version
    "AutoEncoderTopK": ("k", "threshold"),
    "BatchTopKSAE": ("k", "threshold"),
    "MatryoshkaBatchTopKSAE": ("k", "threshold", "group_sizes"),
}
NO_PRE_BIAS = ("AutoEncoderNew", "JumpReluAutoEncoder")
# Fields that this reader honours, and fields that only say how training went.
PARTS = {"trainer", "buffer", writing.OWN}
TRAINER = {
    *("trainer_class", "dict_class", "activation_dim", "dict_size", "k", "layer", "lm_name", "submodule_name"),
    *("seed", "steps", "lr", "device", "wandb_name", "warmup_steps", "decay_start", "resample_steps"),
    *("l1_penalty", "sparsity_penalty", "sparsity_warmup_steps", "sparsity_function", "sparsity_queue_length"),
    *("p_start", "p_end", "anneal_start", "anneal_end", "n_sparsity_updates", "initial_sparsity_penalty"),
    *("auxk_alpha", "top_k_aux", "threshold_beta", "threshold_start_step", "k_anneal_steps"),
    *("group_fractions", "group_weights", "group_sizes", "bandwidth", "target_l0", "norm_factor"),
}
BUFFER = {
    *("d_submodule", "io", "n_ctxs", "ctx_len", "refresh_batch_size", "out_batch_size", "device"),
    *("layer", "add_special_tokens", *token_settings.DICTIONARY_LEARNING),
}
# Names that the library's users give to places.
LABELS = (
    (r"resid_(?:post|out)_?layer_?(\d+)", "hook_resid_post"),
    (r"resid_pre_?layer_?(\d+)", "hook_resid_pre"),
    (r"mlp_out_?layer_?(\d+)", "hook_mlp_out"),
    (r"attn_out_?layer_?(\d+)", "hook_attn_out"),
)
KEPT = {  # settings worth showing, under the names that dictlab gives them
    "trainer_class": "trainer",
    "steps": "steps",
    "lr": "lr",
    "l1_penalty": "l1",
    "sparsity_penalty": "sparsity_penalty",
    "target_l0": "target_l0",
    "warmup_steps": "warmup",
    "auxk_alpha": "auxk_alpha",
}


def found(source: Source, around: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run's configuration: beside the file, in the folder above, or within a backup."""
    for config in source.configs.values():
        inner = config.get("trainer")
        if isinstance(inner, dict) and ("dict_class" in inner or "trainer_class" in inner):
            return config
    return _plain(around.get("config"))


def _plain(config: Any) -> dict[str, Any] | None:
    """A backup's configuration as JSON would give it; None if it is none. A pickle can hold anything."""
    try:
        plain = json.loads(json.dumps(config, default=lambda value: type(value).__name__))
    except (ValueError, TypeError, RecursionError):
        return None
    return {"trainer": plain} if isinstance(plain, dict) else None


def bias_of(name: str) -> str:
    """What a class calls the bias of its output."""
    return next(key for key, letters in CLASSES[name].items() if letters == "d")


def trainer(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The trainer's part; empty where there is none."""
    return _part(config, "trainer")


def check_fields(config: Mapping[str, Any] | None, ignore: tuple[str, ...]) -> None:
    """Refuse what might change the function and is not understood.

    Raises:
        DictlabError: A field is unknown, or says that this is no autoencoder.
    """
    refuse_unknown(config or {}, PARTS, "config.json: the field", ignore)
    refuse_unknown(trainer(config), TRAINER, "config.json: the field of trainer", ignore)
    refuse_unknown(_part(config, "buffer"), BUFFER, "config.json: the field of buffer", ignore)
    if _part(config, "buffer").get("io") == "in_and_out":
        raise DictlabError(
            "config.json: buffer.io is 'in_and_out': a transcoder, which reads the input of a module and writes its "
            "output. Expected 'in' or 'out': a dictionary reads and writes one place."
        )


def check_sizes(config: Mapping[str, Any] | None, d_in: int, n_latents: int) -> None:
    """Refuse tensors of other sizes than the configuration states.

    Raises:
        DictlabError: They differ.
    """
    for name, size in (("activation_dim", d_in), ("dict_size", n_latents)):
        stated = trainer(config).get(name)
        if stated is not None and (type(stated) is not int or stated != size):
            raise DictlabError(f"config.json: trainer.{name} is {short(stated)}; the tensors have {size}.")


def about_norms(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A note where the trainer is one that leaves decoder norms free."""
    if trainer(config).get("trainer_class") != "StandardTrainerAprilUpdate":
        return ()
    return (
        "decoder directions were trained without a constraint on their length: activations are those of the file's "
        "tensors, as the library's from_pretrained(normalize_decoder=False) gives them.",
    )


def metadata(
    config: Mapping[str, Any] | None, source: Source, around: Mapping[str, Any], more: Mapping[str, Any]
) -> Metadata:
    """Where the dictionary came from.

    Args:
        config: The run's configuration.
        source: The file.
        around: What a backup holds beside the tensors.
        more: Settings that the tensors tell.
    """
    own = writing.from_record(config)
    if own is not None:
        return own
    run, buffer = trainer(config), _part(config, "buffer")
    site, notes = _site(run, buffer)
    selection, unfollowed = token_settings.read(buffer, token_settings.DICTIONARY_LEARNING)
    step = _step(source, around)
    training = {ours: run[theirs] for theirs, ours in KEPT.items() if type(run.get(theirs)) in (int, float, str)}
    for theirs, ours in (("ctx_len", "context"), ("out_batch_size", "batch")):
        if _count(buffer.get(theirs)) is not None:
            training[ours] = buffer[theirs]
    steps = _count(run.get("steps")) if step is None else step
    batch = _count(buffer.get("out_batch_size"))
    model = run.get("lm_name")
    return Metadata(
        model=site_names.hub_model(model) if isinstance(model, str) and model else None,
        site=site,
        objective="local",
        seed=run["seed"] if type(run.get("seed")) is int else None,
        tokens=None if steps is None or batch is None else steps * batch,
        training=training | ({} if step is None else {"step": step}) | dict(more) | selection,
        library="dictionary_learning",
        convention="huggingface",
        foreign=dict(config or {}),
        notes=(*notes, *unfollowed),
    )


def written(dictionary: Dictionary, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration to write: the one that was read, if one was, made to fit the dictionary as it is now.

    Args:
        dictionary: What is written.
        name: As which class.
        tensors: Of that class.

    Raises:
        DictlabError: The metadata is no JSON.
    """
    about = dictionary.metadata
    old, buffer = trainer(about.foreign), _part(about.foreign, "buffer")
    layer, label = _label(about.site)
    place = {"seed": about.seed, "lm_name": about.model, "layer": layer, "submodule_name": label}
    if old and about.site == _site(old, buffer)[0]:
        place |= {key: old[key] for key in ("layer", "submodule_name") if key in old}
    now: dict[str, Any] = {"dict_class": name, "activation_dim": dictionary.d_in, "dict_size": dictionary.n_latents}
    if "k" in tensors:
        now["k"] = int(tensors["k"])
    if "group_sizes" in tensors:
        now["group_sizes"] = tensors["group_sizes"].tolist()
    kept = {key: value for key, value in old.items() if key not in ("k", "group_sizes")}
    context = _count(about.training.get("context"))
    if not buffer and context is not None:
        buffer = {"d_submodule": dictionary.d_in, "io": "out", "ctx_len": context}
    selection = {name: value for name, value in about.training.items() if name == RECORD}
    if token_settings.read(buffer, token_settings.DICTIONARY_LEARNING)[0] != selection:
        buffer = {**buffer, **token_settings.written_for_dictionary_learning(about)}
    parts: dict[str, Any] = {"trainer": {**kept, **now, **place}, "buffer": buffer}
    return {**parts, writing.OWN: writing.to_record(about)}


def known_k(dictionary: Dictionary) -> int | None:
    """The k of the activation function, or else the k that it was trained with."""
    if isinstance(dictionary.activation, TopK | BatchTopK):
        return dictionary.activation.k
    k = _count(dictionary.metadata.training.get("k"))
    return k if k and k <= dictionary.n_latents else None


def known_threshold(dictionary: Dictionary) -> float:
    """The threshold that was estimated beside a TopK dictionary; -1 where none was."""
    value = dictionary.metadata.training.get("threshold")
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e30 else -1.0


def group_sizes(dictionary: Dictionary) -> list[int] | None:
    """The groups of a Matryoshka dictionary, where it was one."""
    sizes = dictionary.metadata.training.get("group_sizes")
    if not isinstance(sizes, list) or not sizes or not all(_count(size) for size in sizes):
        return None
    return list(sizes) if sum(sizes) == dictionary.n_latents else None


def _part(config: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    part = (config or {}).get(name)
    return part if isinstance(part, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _step(source: Source, around: Mapping[str, Any]) -> int | None:
    """The step of training at which a backup or a checkpoint was written; None for the end."""
    if around:
        return _count(around.get("step"))
    match = re.fullmatch(r"ae_(\d{1,12})", source.path.stem)
    return int(match[1]) if match and source.path.absolute().parent.name == "checkpoints" else None


def _site(run: Mapping[str, Any], buffer: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """The site, and a note where the configuration does not tell it."""
    label, layer, io = (
        run.get("submodule_name"),
        run.get("layer"),
        buffer.get("io", default(DICTIONARY_LEARNING, "buffer.io")),
    )
    if not isinstance(label, str) or not label:
        note = f"config.json names layer {layer} and no submodule (trainer.submodule_name): the site is unknown."
        return None, (note,) if type(layer) is int else ()
    for pattern, hook in LABELS:
        match = re.fullmatch(pattern, label)
        if match and (io != "out" or (type(layer) is int and layer != int(match[1]))):
            return label, (
                f"config.json: {label!r} does not go with layer {layer} and the side {str(io)[:20]!r} of its module; "
                "the name is kept as it is.",
            )
        if match:
            return f"blocks.{int(match[1])}.{hook}", ()
    if label.startswith("blocks."):
        return label, ()
    site = site_names.site_in_blocks(f"{label}:in" if io == "in" else label)
    return site, ()


def _label(site: str | None) -> tuple[int | None, str | None]:
    """The layer and the name that the library's users would give to a site."""
    match = re.fullmatch(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|mlp_out|attn_out)", site or "")
    return (int(match[1]), f"{match[2]}_layer_{match[1]}") if match else (None, site)
