"""Makes everything in this folder from the built-in text: `python checkpoints/build.py`.

Stages: a tokenizer and a language model; dictionaries at its middle site; their measurements and README.md. Each is
skipped where its result is there, so an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import language_model as lm
import torch

from dictlab import Dictionary, LanguageModel, Text, load, save
from dictlab.training import TrainConfig, train
from dictlab.training.learner.firing_counts import FIRING_TOKENS
from dictlab.training.measure import measure

HERE = Path(__file__).parent
STATE = HERE / ".state"
MODEL = "gpt2-python-2m"
SITE = "blocks.3.hook_resid_pre"
CONTEXTS = 128  # held-out sequences that the README's figures are measured on

RECIPE = {"recipe": "dictlab-0.1", "tokens": 3_000_000, "batch": 1024}
TOPK = {"k": (16,), **RECIPE}
RELU = {"activation": "relu", "width": (1024,), **RECIPE}
LOCAL = {"lr": 1.6e-2}  # of each objective the best rate that was tried, at matched L0
E2E = {"objective": ("e2e",), "lr": 8e-3}
DS = {"objective": ("e2e+ds",), "downstream": 0.5, "lr": 1.6e-2}
RUNS = {
    "topk": TrainConfig(MODEL, SITE, width=(256, 512, 1024, 2048, 4096), seed=(0, 1), lr=4e-3, **TOPK),
    "topk-k": TrainConfig(MODEL, SITE, width=(256, 512, 1024, 2048), lr=4e-3, **TOPK | {"k": (4, 8, 32, 64)}),
    "local": TrainConfig(MODEL, SITE, l1=(2.5, 5, 10, 20), **LOCAL, **RELU),
    "local-seed1": TrainConfig(MODEL, SITE, l1=(5,), seed=(1,), **LOCAL, **RELU),
    "e2e": TrainConfig(MODEL, SITE, l1=(0.08, 0.2, 0.5, 1.25), **E2E, **RELU),
    "e2e-seed1": TrainConfig(MODEL, SITE, l1=(0.2,), seed=(1,), **E2E, **RELU),
    "e2e+ds": TrainConfig(MODEL, SITE, l1=(0.6, 2, 5, 12), **DS, **RELU),
    "e2e+ds-seed1": TrainConfig(MODEL, SITE, l1=(2,), seed=(1,), **DS, **RELU),
}


def main(names: list[str]) -> None:
    """Build everything, or train some of RUNS only (to spread them over machines)."""
    STATE.mkdir(exist_ok=True)
    if not (HERE / MODEL).exists():
        lm.build(HERE / MODEL, STATE / "language_model.pt")
    model = LanguageModel.load(HERE / MODEL)
    model.name = MODEL  # beside the dictionaries: the same name wherever the folder is moved
    for name in names or RUNS:
        train_once(name, model)
    if not names:
        publish(model)
        write_readme()


def train_once(name: str, model: LanguageModel) -> None:
    """Train a run, unless it is there already."""
    folder = STATE / name
    if folder.exists():
        return
    partial = STATE / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    run = train(RUNS[name], out=partial, model=model)
    if run.interrupted:
        sys.exit(f"{name}: interrupted; run build.py again.")
    partial.rename(folder)


def publish(model: LanguageModel) -> None:
    """Round every dictionary that is not here yet to half precision, and measure what the files then hold."""
    paths = [path for name in RUNS for path in sorted((STATE / name).glob("*.safetensors"))]
    trained = [load(path) for path in paths if not (HERE / path.name).exists()]
    if not trained:
        return
    rounded = [d.to(dtype=torch.float16).to(dtype=torch.float32) for d in trained]
    measured = measure(rounded, model, Text.builtin(), context=lm.CONTEXT, tokens=FIRING_TOKENS, contexts=CONTEXTS)
    for dictionary in measured:
        save(dictionary, HERE / f"{dictionary.name}.safetensors", dtype=torch.float16)


def write_readme() -> None:
    """Every file with its figures, read from the files themselves."""
    log = json.loads((HERE / MODEL / "training.json").read_text())
    dictionaries = [load(path) for path in sorted(HERE.glob("*.safetensors"))]
    dictionaries.sort(
        key=lambda d: (d.activation.kind != "topk", d.metadata.objective, d.n_latents, d.metadata.metrics["l0"])
    )
    curve = "\n".join(
        f"| {row['tokens']:,} | {row['train']:.3f} | {row['heldout']:.3f} |" for row in log[3::4] + log[-1:]
    )
    table = "\n".join(_row(dictionary) for dictionary in dictionaries)
    first, minutes = dictionaries[0].metadata, log[-1]["seconds"] / 60
    text = f"""# Shipped checkpoints

Made by `python checkpoints/build.py` from the built-in text (the sources of the Python standard library) and nothing
else. This page is written by the build.

## {MODEL}

A GPT-2 of {lm.BLOCKS} blocks, width {lm.WIDTH}, {lm.HEADS} heads, context {lm.CONTEXT}, with a byte-pair tokenizer of
{lm.VOCABULARY} tokens, in Hugging Face format. Trained on {log[-1]["tokens"]:,} tokens in {minutes:.0f} minutes.
Fingerprint `{first.model_fingerprint}`. Cross-entropy in nats a token; the training column is that of one batch.

| tokens | training | held out |
|---:|---:|---:|
{curve}

## Dictionaries at `{SITE}`

Names: objective, activation function with k (TopK) or lambda (ReLU + L1), latents, seed. Weights in half precision.
Figures on {first.metrics["evaluation_tokens"]:,} held-out tokens with 95 % bootstrap intervals over sequences; dead
latents on {first.metrics["firing_tokens"]:,} training tokens; time is the dictionary's own steps and its share of the
stream.

| file | L0 | explained variance | CE increase (nats/token) | dead | tokens | minutes |
|---|---:|---:|---:|---:|---:|---:|
{table}
"""
    (HERE / "README.md").write_text(text, encoding="utf-8")


def _row(dictionary: Dictionary) -> str:
    about = dictionary.metadata
    cells = [f"`{dictionary.name}.safetensors`"]
    for name, digits in (("l0", 1), ("explained_variance", 3), ("ce_increase", 3)):
        low, high = about.metrics[f"{name}_interval"]
        cells.append(f"{about.metrics[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
    cells += [str(about.metrics["dead"]), f"{about.tokens:,}", f"{about.training['seconds'] / 60:.1f}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main(sys.argv[1:])
