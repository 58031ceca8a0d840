"""Options and columns that have another name by now: the old name, typed, is answered with the new one.

One line for each, under the name of its analysis (`train`, `info` and `convert` stand beside the analyses). What is
listed here also stands in CHANGELOG.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from dictlab.analysis_entries import SHORT

# Analysis or command -> old option -> new option, as parameters are spelt. An option that is gone for good has, in
# place of a new name, a sentence that says what to do: it is told apart by its spaces.
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "ablation": {
        "follow": "positions",
        "latents": "latents_per_token",
        "n_positions": "positions",
        "tokens": "contexts",
    },
    "downstream": {"directions": "principal_directions"},
    "explanations": {"longest": "max_pattern_length"},
    "frankenstein": {
        "beside": "baselines",
        "duplicates": "duplicate_threshold",
        "gradient": "gradient_refits",
        "l0": "max_l0",
        "latents": "max_latents",
        "order": "it is gone; the rule goes through the dictionaries by width.",
        "refit": "written_refit",
        "start": "it is gone; the rule begins with the smallest dictionary and keeps all of it.",
        "steps": "gradient_steps",
        "threshold": "max_cosine",
    },
    "geometry": {"points": "umap_points", "umap": "it is gone; give --umap-points 0 for no map."},
    "matching": {"correlation": "correlation_threshold", "fewest": "min_active_tokens", "top": "neighbours"},
    "novelty": {"behaviour": "ce_latents", "choose": "latent_choice", "latents": "which_latents"},
    "pathology": {
        "begin": "prepend_bos",
        "context": "context_length",
        "far": "random_points",
        "follow": "positions_after",
        "n_positions_after": "positions_after",
        "n_random_points": "random_points",
        "occurrences": "min_occurrences",
        "sweep": "sweep_contexts",
    },
    "probes": {
        "examples": "min_examples",
        "found": "min_f1",
        "pool": "pooling",
        "ridge": "inverse_ridge",
        "rows": "max_rows",
    },
    "scaling": {"measure": "remeasure"},
    "shrinkage": {"levels": "l0_levels"},
    "stitching": {
        "at": "it is gone; give --until latents=N.",
        "l0": "max_l0",
        "latents": "max_latents",
    },
}

# Analysis -> old column of its tables -> new column, or a sentence that says where its content is now.
COLUMNS: Mapping[str, Mapping[str, str]] = {}


def option_renamed(command: str, typed: str) -> str | None:
    """What to type in place of an option that has another name by now; None where the option never existed.

    Args:
        command: An analysis, or a command such as `train` or `stitch`.
        typed: The option as it was typed: `--far`, `--far=3` or `--no-far`.
    """
    flag = typed.partition("=")[0]
    name = flag.removeprefix("--").replace("-", "_")
    known = OPTIONS.get(SHORT.get(command, command), {})
    negated = name.startswith("no_") and name not in known
    new = known.get(name.removeprefix("no_") if negated else name)
    if new is None:
        return None
    if " " in new:
        return f"{flag}: {new}"
    return f"{flag} is now --{'no-' if negated else ''}{new.replace('_', '-')}."
