"""How a language model is opened, as it is said on a command line. Imports nothing that is slow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ModelDtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelOptions:
    """How a model is opened.

    Attributes:
        name: A folder, a name on the Hub, a `.gguf` file, or the folder of a PEFT adapter; None for the model that the
            dictionaries name.
        dtype: Precision of the weights: auto is float32 on a CPU, and on a GPU what the model is kept in.
        revision: Branch, tag or commit of a model on the Hub.
        trust_remote_code: Run code that comes with the model.
        allow_other_weights: Accept a model with other weights than those that the dictionaries were trained on, such
            as a fine-tuned child of it.
    """

    name: str | Path | None = None
    dtype: ModelDtype = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    allow_other_weights: bool = False
