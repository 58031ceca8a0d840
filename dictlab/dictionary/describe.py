"""What a researcher wants to know of a dictionary at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dictlab.dictionary.metadata import Metadata

if TYPE_CHECKING:
    from dictlab.dictionary.dictionary import Dictionary

WORLDS = {
    "huggingface": "the model as Hugging Face runs it",
    "transformer_lens": "the model as TransformerLens processes it",
}


def describe(dictionary: Dictionary) -> list[tuple[str, str]]:
    """A dictionary's shape, origin and quality, as (name, text). Its weights are not read."""
    from dictlab.dictionary.normalisation import to_record

    return description(
        dictionary.name,
        dictionary.n_latents,
        dictionary.d_in,
        dictionary.activation.record(),
        to_record(dictionary.normalisation),
        dictionary.metadata,
        str(dictionary.W_dec.dtype).removeprefix("torch."),
        emitting=dictionary.n_emitting,
        d_out=dictionary.d_out,
        transcodes=dictionary.transcodes,
        skip=dictionary.W_skip is not None,
    )


def description(
    name: str,
    n_latents: int,
    d_in: int,
    activation: Mapping[str, Any],
    normalisation: Mapping[str, Any],
    about: Metadata,
    dtype: str,
    *,
    emitting: int,
    d_out: int | None = None,
    transcodes: bool = False,
    skip: bool = False,
) -> list[tuple[str, str]]:
    """The same from its parts: shape, the records of a file's header, and precision; `d_out` is `d_in` by default."""
    metrics = about.metrics
    unknown = "not recorded"
    competing = n_latents - emitting
    rows = [
        ("dictionary", name),
        (
            "shape",
            f"{n_latents} latents x {d_in}"
            + (f" to {d_out}" if d_out not in (None, d_in) else "")
            + (f" ({competing} only compete)" if competing else ""),
        ),
        (
            "activation function",
            _activation(activation),
        ),
        ("input normalisation", _record(normalisation)),
        ("model", f"{about.model} (fingerprint {about.model_fingerprint})" if about.model else unknown),
        ("reads" if transcodes else "site", about.site or unknown),
        ("writes", (about.writes or unknown) if transcodes else ""),
        ("linear skip", "output = what latents write + input W_skip" if skip else ""),
        ("objective", about.objective or unknown),
        ("made from", ", ".join(about.sources)),
        ("trained as", _trained_as(about, str(activation["kind"]))),
        ("sparsity coefficient", next((_number(about.training[c]) for c in ("l1", "l0") if about.training.get(c)), "")),
        ("seed", unknown if about.seed is None else str(about.seed)),
        ("tokens trained on", unknown if about.tokens is None else f"{about.tokens:,}"),
        ("dead latents", _dead(metrics, emitting)),
        ("L0", _metric(metrics, "l0")),
        ("explained variance", _metric(metrics, "explained_variance")),
        ("CE increase", _metric(metrics, "ce_increase", " nats/token")),
        (
            "measured on",
            f"{_count(metrics['evaluation_tokens'])} held-out tokens" if "evaluation_tokens" in metrics else "",
        ),
        ("reads activations of", WORLDS.get(about.convention or "", about.convention or unknown)),
        ("kept in", dtype),
        ("written by", about.library or unknown),
        *(("note", note) for note in about.notes),
    ]
    return [(name, text) for name, text in rows if text]


def _trained_as(about: Metadata, kind: str) -> str:
    """The activation function in training, where it left another one in the file."""
    training = about.training
    name, k = training.get("activation"), training.get("k")
    if not isinstance(name, str) or name == kind:
        return ""
    return f"{name} with k {k}" if k is not None else name


def _dead(metrics: Mapping[str, Any], emitting: int) -> str:
    if not isinstance(metrics.get("dead"), int):
        return "not recorded"
    seen = f" in {_count(metrics['firing_tokens'])} tokens" if "firing_tokens" in metrics else ""
    return f"{metrics['dead']} ({metrics['dead'] / max(1, emitting):.1%}){seen}"


def _metric(metrics: Mapping[str, Any], name: str, unit: str = "") -> str:
    if name not in metrics:
        return "not recorded"
    interval = metrics.get(f"{name}_interval")  # other programs may write a value without one
    between = f" [{', '.join(map(_number, interval))}]" if isinstance(interval, list) else ""
    return f"{_number(metrics[name])}{between}{unit}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _activation(record: Mapping[str, Any]) -> str:
    if "parts" not in record:
        return _record(record)
    return "union: " + ", ".join(f"{width} latents {_record(part)}" for width, part in record["parts"])


def _record(record: Mapping[str, Any]) -> str:
    """A tagged record in words: its kind, then what belongs to it."""
    own = [f"{k} {_record(v) if isinstance(v, dict) else _number(v)}" for k, v in record.items() if k != "kind"]
    return ", ".join([str(record["kind"]), *own])
