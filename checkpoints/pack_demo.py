"""Makes the files of `dictlab demo` from those in this folder: `python checkpoints/pack_demo.py`.

The wheel should stay small, so the model and the dictionaries are kept in half precision. A model with rounded weights
is another model: its fingerprint is another, the dictionaries name the new one, and what was measured of them on the
model in full precision is left out.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dictlab import LanguageModel, load, save

HERE = Path(__file__).parent
DEMO = HERE.parent / "dictlab" / "demo" / "checkpoints"
MODEL = "gpt2-python-2m"
DICTIONARIES = ("local-topk16-256-s0", "local-topk16-512-s0", "local-topk16-512-s1")


def main() -> None:
    shutil.rmtree(DEMO, ignore_errors=True)
    (DEMO / MODEL).mkdir(parents=True)
    weights = load_file(HERE / MODEL / "model.safetensors")
    halves = {name: weight.to(torch.float16) for name, weight in weights.items()}
    save_file(halves, DEMO / MODEL / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((HERE / MODEL / "config.json").read_text())
    (DEMO / MODEL / "config.json").write_text(json.dumps(config | {"dtype": "float16"}, indent=2) + "\n")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(HERE / MODEL / name, DEMO / MODEL / name)
    fingerprint = LanguageModel.load(DEMO / MODEL).fingerprint
    for name in DICTIONARIES:
        dictionary = load(HERE / f"{name}.safetensors")
        metadata = replace(dictionary.metadata, model_fingerprint=fingerprint, metrics={})
        save(replace(dictionary, metadata=metadata).to(dtype=torch.float16), DEMO / f"{name}.safetensors")
    for path in sorted(DEMO.rglob("*.*")):
        print(f"{path.relative_to(DEMO)}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
