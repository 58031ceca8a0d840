"""Look at latents, and at their twins in other dictionaries: a folder with a page that opens from disk.

One pass over a sample of text gives what the page shows of all latents of all dictionaries. The page needs no network,
no server and no library from elsewhere; its data lie beside it in files that it loads when they are wanted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from analyses.common.inputs import ModelInputs, TokenSample, open_inputs
from analyses.common.opening import DictionaryLike, ModelLike, TextLike, open_dictionaries
from analyses.explorer.collection import collect
from analyses.explorer.explorer_folder import (
    Explorer,
    ExplorerSettings,
    explorer_key,
    is_explorer_of,
    write_explorer,
)
from analyses.explorer.latents.examples import ExampleCounts
from analyses.explorer.live_model import LiveModel
from analyses.explorer.report_labels import report_labels
from analyses.explorer.server import serve_explorer
from dictlab.errors import check_at_least
from dictlab.reports.report import check_folder
from dictlab.reports.whole_folder import write_whole
from dictlab.runtime.atomic_files import remove, replace_text
from dictlab.runtime.folder_lock import LOCK, folder_lock

KEY = "key.json"  # in the folder of unfinished work: what decides its content


def explore(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    tokens: int = 262_144,
    examples: int = 10,
    umap: bool = True,
    reports: Sequence[str | Path] = (),
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
    out: Path | None = None,
    force: bool = False,
    serve: bool = False,
    port: int = 0,
) -> Explorer:
    """Make a page on which the latents of dictionaries are found, seen and compared with each other.

    Args:
        dictionaries: At one site of one model; of different sizes, seeds, objectives or libraries.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from; its training split is used.
        tokens: Tokens of the sample that latents are looked for in.
        examples: Most strongly activating contexts of each latent; others are drawn from quantiles and at random.
        umap: Draw the map of directions by UMAP, where it is installed; otherwise by the two main axes.
        reports: Folders of reports on these dictionaries (probes, explanations): what they say of a latent in words is
            shown with it and can be searched.
        seed: Of the sample of text, and of what is drawn.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.
        out: Folder to write; out/explore by default, and on the command line out/explore-DICTIONARIES.
        force: Replace what is already in the folder.
        serve: Serve the page to this machine alone, with the model behind it: latents on a text of one's own,
            predictions with a latent switched off or scaled. A folder that holds this very explorer is not made again.
            Ctrl-C ends.
        port: Of the server; any that is free by default.

    Returns:
        The folder; `Explorer.latents` is a frame of all latents.

    Raises:
        DictlabError: The dictionaries do not belong together or to the model, the text is too short, or the folder is
            taken.

    Example:
        dictlab explore small.safetensors large.safetensors
        dictlab explore a-256.safetensors a-512.safetensors a-1024.safetensors --tokens 1000000 --out out/sizes
        dictlab explore mine.safetensors --text my/texts --token-selection without-first
        dictlab explore small.safetensors large.safetensors --serve
        dictlab explore small.safetensors large.safetensors --reports out/probes-small-and-large
    """
    check_at_least(0, seed=seed)
    check_at_least(1, examples=examples)
    folder = Path("out/explore") if out is None else Path(out)
    if not serve:
        check_folder(folder, force=force)
    given = open_dictionaries(dictionaries, analysis="explore", token_selection=token_selection)
    labels = tuple(report_labels([Path(r) for r in reports], [d.name for d in given], [d.n_latents for d in given]))
    inputs = open_inputs(given, model=model, text=text, device=device, same_place=True)
    check_at_least(inputs.context, tokens=tokens)
    sample = inputs.sample(tokens // inputs.context, "train", seed=seed)
    settings = ExplorerSettings(tokens, ExampleCounts(top=examples), seed, umap, labels)
    if force or not is_explorer_of(folder, inputs, settings):
        check_folder(folder, force=force)
        _make(folder, inputs, sample, settings, force)
    if serve:
        serve_explorer(folder, LiveModel(inputs), port)
    return Explorer(folder)


def _make(folder: Path, inputs: ModelInputs, sample: TokenSample, settings: ExplorerSettings, force: bool) -> None:
    """What is collected lies beside the folder until it is there; a stopped run of the same work goes on from it."""
    folder = folder.resolve()
    work = folder.with_name(f".{folder.name}.unfinished")
    with folder_lock(work, "explore"):
        _keep_if_same(work, explorer_key(inputs, settings) | {"sample": _sha256(sample.tokens)})
        try:
            collected = collect(inputs, sample.tokens, work)
            write_whole(
                folder, lambda part: write_explorer(part, inputs, sample, collected, settings, work), force=force
            )
        except KeyboardInterrupt as stopped:
            raise KeyboardInterrupt("; the same command goes on from here") from stopped
        _empty(work)
    with suppress(OSError):  # another process has begun there by now
        work.rmdir()


def _keep_if_same(work: Path, key: dict[str, Any]) -> None:
    """Empty the folder of unfinished work, unless it is that of the same run."""
    text = json.dumps(key, sort_keys=True)
    try:
        same = (work / KEY).read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        same = False
    if not same:
        _empty(work)
        replace_text(work / KEY, text)


def _empty(work: Path) -> None:
    for path in work.iterdir():
        if path.name != LOCK:
            remove(path)


def _sha256(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()
