"""Commands that write files, small enough to be attacked many times: what is typed, what is written, and what is right.

Everything is planted: a tiny language model, a text, dictionaries and activations, in a folder that is made once.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from dictlab import Metadata, cli, save
from tests.planted import SITE, random_dictionary, tiny_model

D_IN = 16
DOCUMENTS = 150

Content = dict[str, str]  # names of files below a folder, and digests of their bytes


@dataclass(frozen=True)
class Target:
    """A command that writes, and where.

    Attributes:
        name: What the table of outcomes calls it.
        begin: What is typed, given the folder to write into and a seed.
        written: The file or folder that appears, by its name there.
        go_on: What is typed to go on with what a killed one has left; what is written then grows file by file. None: it
            appears whole or not at all, and the same is typed again.
    """

    name: str
    begin: Callable[[Path, int], list[str]]
    written: str
    go_on: Callable[[Path], list[str]] | None = None

    def arguments(self, place: Path, seed: int) -> list[str]:
        """What somebody types who wants it done, whatever an earlier process has left."""
        if self.go_on is not None and (place / self.written / "config.toml").exists():
            return self.go_on(place)
        return self.begin(place, seed)

    def run(self, place: Path, seed: int) -> int:
        """Its exit code."""
        return cli.main(self.arguments(place, seed))


def content(path: Path) -> Content:
    """Names and digests of what lies below a folder, or of one file; of dictionaries, of their tensors alone."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if not file.is_dir())
        return {str(file.relative_to(path)): _digest(file) for file in files}
    return {path.name: _digest(path)} if path.exists() else {}


def _digest(file: Path) -> str:
    if file.suffix != ".safetensors":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return whole.hexdigest()


def targets(planted: Path) -> dict[str, Target]:
    """The commands, on files that are put into a folder."""
    _plant(planted)
    model, text, data = str(planted / "model"), str(planted / "text"), str(planted / "data.npy")
    small, large = (str(planted / f"{name}.safetensors") for name in ("small", "large"))
    on_model = ["--model", model, "--text", text]

    def train(place: Path, seed: int) -> list[str]:
        run = ["--width", "16", "--k", "2", "--tokens", "1920", "--batch", "64", "--save-minutes", "0"]
        return ["train", "--data", data, *run, "--seed", str(seed), "--out", str(place / "run")]

    def cache(place: Path, seed: int) -> list[str]:
        run = ["--width", "16", "--k", "2", "--tokens", "1280", "--batch", "64", "--save-minutes", "0"]
        own = ["--seed", str(seed), "--text", text, "--cache", str(place / "cache"), "--out", str(place / "run")]
        return ["train", model, SITE, *run, *own]

    def resume(place: Path) -> list[str]:
        return ["train", "--resume", str(place / "run")]

    def convert(place: Path, seed: int) -> list[str]:
        return [
            "convert",
            str(planted / ("wider" if seed else "wide")) + ".safetensors",
            str(place / "converted"),
            "--to",
            "sparsify",
            "--force",
        ]

    def report(place: Path, seed: int) -> list[str]:
        quick = ["--umap-points", "0", "--permutations", "1", "--tokens", "0", "--seed", str(seed)]
        return ["report", "geometry", small, large, *quick, "--out", str(place / "report"), "--force"]

    def stitch(place: Path, seed: int) -> list[str]:
        quick = ["--select", "effect", "--tokens", "512", "--contexts", "4", "--cards", "0", "--seed", str(seed)]
        return ["stitch", small, large, *on_model, *quick, "--out", str(place / "stitched"), "--force"]

    def explore(place: Path, seed: int) -> list[str]:
        quick = ["--tokens", "512", "--no-umap", "--seed", str(seed)]
        return ["explore", small, large, *on_model, *quick, "--out", str(place / "page"), "--force"]

    made = [
        Target("train", train, "run", resume),
        Target("cache", cache, "run", resume),
        Target("convert", convert, "converted"),
        Target("report", report, "report"),
        Target("stitch", stitch, "stitched"),
        Target("explore", explore, "page"),
    ]
    return {target.name: target for target in made}


def _plant(folder: Path) -> None:
    folder.mkdir()
    model = tiny_model(d=D_IN)
    model.model.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    (folder / "text").mkdir()
    draw = random.Random("text of the attacks")
    for number in range(DOCUMENTS):
        words = " ".join(draw.choice(("a", "cat", "sat", "on", "the", "mat", "1", "+", "2")) for _ in range(60))
        (folder / "text" / f"{number}.txt").write_text(words)
    for name, latents, seed in (("small", 12, 0), ("large", 24, 1), ("wide", 2000, 2), ("wider", 2100, 3)):
        about = Metadata(model=str(folder / "model"), site=SITE)
        save(random_dictionary(latents, D_IN, seed=seed, metadata=about), folder / f"{name}.safetensors")
    rows = np.random.default_rng(0).normal(size=(1500, D_IN)).astype(np.float32)
    np.save(folder / "data.npy", rows)


def emptied(place: Path) -> Path:
    """A folder with nothing in it."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place
