"""What does a configuration mean by a field that it lacks? Each library's defaults, by the version that wrote the file.

A library writes every field that it knows of, so a field that is missing is one that the file's version did not have.
Where the version is not said either, a field that later versions always write therefore has its earliest meaning.

Read from the released packages: sae-lens 0.1.0 to 6.54.12 (53 of its releases, `config.py`, `sae*.py`, `saes/*.py`),
eai-sparsify 0.0.1 to 1.3.3 (`config.py`) with the repository before its first release, dictionary-learning 0.1.0.
Fields that all versions agree on have one entry.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

Version = tuple[int, ...]
FIRST: Version = (0,)


class Default(NamedTuple):
    """What a missing field means from a version on, up to the next entry's.

    Attributes:
        since: The first version that it holds for.
        value: The meaning.
    """

    since: Version
    value: Any


# Before 3.8 there was one architecture; before 1.0 (3.0 in the SAE's own configuration) one activation function.
# `scaling_factor` was always multiplied with codes from 0.5.1, where it came in, until 3.0 made that a setting.
# Before 6.14 there was no rescaling by decoder norms; since then training classes have it on, inference classes off.
SAELENS: dict[str, tuple[Default, ...]] = {
    "architecture": (Default(FIRST, "standard"), Default((6, 0, 0), None)),
    "activation_fn": (Default(FIRST, "relu"),),
    "apply_b_dec_to_input": (Default(FIRST, True),),
    "normalize_activations": (Default(FIRST, "none"),),
    "reshape_activations": (Default(FIRST, "none"),),
    "dtype": (Default(FIRST, "float32"),),
    "finetuning_scaling_factor": (Default(FIRST, True), Default((3, 0, 0), False)),
    "rescale_acts_by_decoder_norm": (Default(FIRST, False),),
    "rescale_acts_by_decoder_norm of batchtopk": (Default(FIRST, False), Default((6, 14, 0), True)),
}
# No version's default of these changed; `signed` went before the first release, when `activation` came in.
SPARSIFY: dict[str, tuple[Default, ...]] = {
    "activation": (Default(FIRST, "topk"),),
    "signed": (Default(FIRST, False),),
    "num_latents": (Default(FIRST, 0),),
    "transcode": (Default(FIRST, False),),
    "skip_connection": (Default(FIRST, False),),
    "multi_topk": (Default(FIRST, False),),
    "normalize_decoder": (Default(FIRST, True),),
}
# A buffer's `io` and a state dict's `threshold`, -1 for "never estimated"; nothing else is filled in.
DICTIONARY_LEARNING: dict[str, tuple[Default, ...]] = {
    "buffer.io": (Default(FIRST, "out"),),
    "threshold": (Default(FIRST, -1.0),),
}


def default(table: dict[str, tuple[Default, ...]], field: str, version: str | None = None) -> Any:
    """What a missing field means.

    Args:
        table: A library's, as above.
        field: Its name.
        version: The library's that wrote the file; None where it is not said: the earliest meaning.
    """
    number = numbers(version or "")
    return [entry.value for entry in table[field] if entry.since <= number or entry.since == FIRST][-1]


def numbers(version: str) -> Version:
    """The three numbers of a version, to compare it by; none where it is no version."""
    match = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})", version)
    return tuple(map(int, match.groups())) if match else ()
