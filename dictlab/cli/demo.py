"""`dictlab demo`: a first result without a clone, a network or files of one's own."""

from __future__ import annotations

import shlex
import shutil
from importlib.metadata import entry_points
from importlib.resources import as_file, files
from pathlib import Path

from dictlab.analysis_entries import GROUP, load_analysis
from dictlab.cli.analyses import command_of
from dictlab.cli.printing import console

SMALL = Path("checkpoints", "local-topk16-256-s0.safetensors")
LARGE = Path("checkpoints", "local-topk16-512-s0.safetensors")
OTHER_SEED = Path("checkpoints", "local-topk16-512-s1.safetensors")
NEXT = (
    f"dictlab info {LARGE}",
    f"dictlab report novelty {SMALL} {LARGE} --cards 12",
    f"dictlab report matching {LARGE} {OTHER_SEED}",
    "dictlab train checkpoints/gpt2-python-2m blocks.3.hook_resid_pre --width 512 --k 16 --tokens 200000",
)


def demo(folder: Path = Path("dictlab-demo")) -> bool:
    """Unpack a small language model with three dictionaries, and stitch two of them (under a minute on two cores).

    Nothing is downloaded. The model has 2 million parameters and was trained on Python; the text is the source of the
    standard library.

    Parameters
    ----------
    folder
        Folder to make: checkpoints/ with the model and the dictionaries, out/ with the report.
    """
    if not (folder / "checkpoints").exists():
        _unpack(folder / "checkpoints")
    small, large, report = str(folder / SMALL), str(folder / LARGE), folder / "out" / "stitch"
    typed = ["stitch", small, large, "--tokens", "32768", "--contexts", "24", "--out", str(report)]
    out = console()
    out.print(f"dictlab {shlex.join(typed)}", style="bold", soft_wrap=True)
    (stitching,) = entry_points(group=GROUP, name="stitching")
    failed = command_of(load_analysis(stitching), typed)(
        small, [large], tokens=65_536, contexts=48, out=report, force=True
    )
    out.print(f"\nOpen {report / 'report.html'} in a browser. Then, for example:", soft_wrap=True)
    for line in (f"cd {shlex.quote(str(folder))}", *NEXT):
        out.print(f"    {line}", soft_wrap=True)
    return failed


def _unpack(folder: Path) -> None:
    """The files under another name first, and renamed once all are there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with as_file(files("dictlab.demo") / "checkpoints") as packed:
        shutil.copytree(packed, partial)
    partial.rename(folder)
