"""Where the files of the demo are: a model of 2 million parameters and three dictionaries of it."""

from pathlib import Path


def checkpoints() -> Path:
    """The folder with `gpt2-python-2m` and `local-topk16-256-s0`, `-512-s0` and `-512-s1.safetensors`."""
    return Path(__file__).parent / "checkpoints"
