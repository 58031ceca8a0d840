"""Where a dictionary came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metadata:
    """Where a dictionary came from. Fields are None where nobody said.

    Attributes:
        model: The language model's name or folder.
        model_fingerprint: `LanguageModel.fingerprint` of that model.
        site: Where in the model it reads, e.g. `blocks.6.hook_resid_pre`.
        objective: "local", "e2e", "e2e+ds", "stitched", ...
        seed: The seed of its initialisation.
        tokens: Tokens it was trained on.
        training: Settings and cost of its training.
        metrics: Its quality at the end of training, by name; an interval is `[low, high]` under `name_interval`.
        sources: The dictionaries it was made from, by name.
        library: What wrote it, with a version.
        convention: Whose activations of that model it reads: "huggingface" as the model computes them, or
            "transformer_lens" after that library's processing of the weights. See `evaluation.transformer_lens`.
        foreign: The configuration that another library wrote, for writing it back.
        notes: What its reader or writer found worth knowing.
        writes: Where a transcoder writes; None for a dictionary that writes the site that it reads.
    """

    model: str | None = None
    model_fingerprint: str | None = None
    site: str | None = None
    objective: str | None = None
    seed: int | None = None
    tokens: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    library: str | None = None
    convention: str | None = None
    foreign: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    writes: str | None = None


def reads_and_writes(metadata: Metadata) -> str:
    """Both sites of a transcoder in words: "reads blocks.3.ln2.hook_out, writes blocks.3.hook_mlp_out"."""
    unknown = "a site that its file does not name"
    return f"reads {metadata.site or unknown}, writes {metadata.writes or unknown}"
