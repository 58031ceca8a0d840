"""What a stopped pass over the sample goes on from: how much of each dictionary's codes is on disk, and all sums.

The state is one file that is replaced by a rename, after the codes that it speaks of are on the disk; codes that were
written after it are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from analyses.composition.insertion.insertion_effects import EffectSums
from analyses.explorer.code_store import CodeWriter
from dictlab.runtime.atomic_files import new_file, save_tensors

STATE = "state.safetensors"


class RunningVariance:
    """Sums that the fraction of variance unexplained follows from, in float64."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sum: Tensor | None = None
        self._square = 0.0
        self._errors: dict[int, float] = {}

    def add(self, x: Float[Tensor, "rows d_in"], errors: Sequence[Float[Tensor, "rows d_in"]]) -> None:
        """Add some activations, and what each dictionary leaves of them."""
        self.tokens += len(x)
        own = x.double().sum(dim=0).cpu()
        self._sum = own if self._sum is None else self._sum + own
        self._square += float(x.double().square().sum())
        for i, error in enumerate(errors):
            self._errors[i] = self._errors.get(i, 0.0) + float(error.double().square().sum())

    def errors(self, dictionary: int) -> tuple[float, float]:
        """Mean squared error, and the share of variance that it is."""
        if self._sum is None:
            return 0.0, float("nan")
        total = self._square - float(self._sum.square().sum()) / self.tokens
        error = self._errors[dictionary]
        return error / (self.tokens * len(self._sum)), error / total if total > 0 else float("nan")

    def state(self) -> dict[str, Tensor]:
        """All sums so far, exactly; `restore` takes them up again."""
        if self._sum is None:
            return {}
        errors = [self._errors[i] for i in sorted(self._errors)]
        numbers = torch.tensor([self._square, *errors], dtype=torch.double)
        return {"tokens": torch.tensor(self.tokens), "sum": self._sum, "squares": numbers}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the sums that `state` gave."""
        if state:
            self.tokens, self._sum = int(state["tokens"]), state["sum"]
            self._square, *errors = state["squares"].tolist()
            self._errors = dict(enumerate(errors))


def save_state(
    folder: Path,
    writers: Sequence[CodeWriter],
    sums: Mapping[tuple[int, int], EffectSums],
    variance: RunningVariance,
) -> None:
    """Write where the pass is.

    Args:
        folder: Of the codes.
        writers: Of each dictionary's codes; whole sequences have been appended.
        sums: Of the effects, by pair of dictionaries.
        variance: Of the activations.
    """
    for writer in writers:
        writer.flush()
    parts = {f"sums.{a}.{b}": one.state() for (a, b), one in sums.items()} | {"variance": variance.state()}
    tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    tensors["written"] = torch.tensor([[writer.entries, writer.tokens] for writer in writers])
    with new_file(folder / STATE, alone=True) as path:
        save_tensors(tensors, path)


def resumed(
    folder: Path, latents: Sequence[int], sums: Mapping[tuple[int, int], EffectSums], variance: RunningVariance
) -> list[CodeWriter]:
    """Writers of the codes that go on from the last state, and the sums restored; from the beginning if there is none.

    Args:
        folder: Of the codes.
        latents: Of each dictionary.
        sums: Of the effects, by pair of dictionaries.
        variance: Of the activations.
    """
    written = [[0, 0] for _ in latents]
    if (folder / STATE).exists():
        tensors = load_file(folder / STATE)
        written = tensors.pop("written").tolist()
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            part, name = key.split("/")
            parts.setdefault(part, {})[name] = value
        variance.restore(parts.get("variance", {}))
        for (a, b), one in sums.items():
            one.restore(parts[f"sums.{a}.{b}"])
    return [CodeWriter(folder / f"codes-{i}", n, *written[i]) for i, n in enumerate(latents)]
