"""Which contexts is a latent explained from, and which are judged?

A text is cut into windows of one length. A window is active where the latent is active at any of its tokens; its
strength is the largest |activation| there. Of each latent:

    shown       the training sequences with its largest activations, a window around each; from these it is explained
    detection   held-out windows: active ones, one out of each of equal parts of the order of strength, and as many
                silent ones
    fuzzing     held-out windows with marks: on the tokens at which the latent is active, or in others the same marks
                moved on, in a circle, to where it is silent at every mark

so that in fuzzing neither the number of marks nor their pattern tells which are right. A window whose marks cannot be
moved so takes no part in fuzzing.

Source: detection and fuzzing, Paulo et al. 2024, "Automatically Interpreting Millions of Features in Large Language
Models"; that wrong marks keep their pattern is this package's choice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Generator, Tensor

from analyses.common.firings import LatentFirings
from analyses.common.token_texts import token_texts

SIGNS = str.maketrans({"«": "‹", "»": "›"})  # the marks are « and »
PEAK_AT = 2 / 3  # of a window that is shown lies before the token with the largest activation, where there is room


class Window(NamedTuple):
    """A piece of a text.

    Attributes:
        pieces: What each of its tokens adds to the text, in signs that keep to one line.
        strength: |activation| of the latent at each.
    """

    pieces: tuple[str, ...]
    strength: Float[ndarray, " window"]


class Trial(NamedTuple):
    """A window to be judged.

    Attributes:
        window: Which.
        marks: Positions of the tokens that are marked; none in detection.
        truth: Whether the latent is active there, or active at the marks.
        answer: The judgement, 1 or 0; None where there is none, or it could not be read.
    """

    window: Window
    marks: tuple[int, ...]
    truth: bool
    answer: int | None = None


class Grid(NamedTuple):
    """Sequences of tokens cut into windows of one length; what is left at the end of a sequence is in none.

    Attributes:
        sequences: Token ids.
        tokenizer: Of the language model.
        width: Tokens of a window.
        n_leading: Tokens that lead each sequence, which are in no window.
    """

    sequences: Int[Tensor, "sequences context"]
    tokenizer: Any
    width: int
    n_leading: int

    @property
    def n_columns(self) -> int:
        """Windows of a sequence."""
        return (self.sequences.shape[1] - self.n_leading) // self.width

    def strengths(self, latent: LatentFirings) -> Float[ndarray, " windows"]:
        """The largest |activation| in each window; 0 for a silent one."""
        row, position = np.divmod(latent.token, self.sequences.shape[1])
        column = (position - self.n_leading) // self.width
        inside = (position >= self.n_leading) & (column < self.n_columns)
        largest = np.zeros(len(self.sequences) * self.n_columns)
        np.maximum.at(largest, (row * self.n_columns + column)[inside], np.abs(latent.activation[inside]))
        return largest

    def start(self, number: int) -> tuple[int, int]:
        """Sequence and position at which a window begins."""
        row, column = divmod(number, self.n_columns)
        return row, self.n_leading + column * self.width

    def strength(self, row: int, start: int, latent: LatentFirings) -> Float[ndarray, " window"]:
        """|activation| at each token of a window anywhere in a sequence."""
        begin, strength = row * self.sequences.shape[1] + start, np.zeros(self.width)
        low, high = np.searchsorted(latent.token, [begin, begin + self.width])
        strength[latent.token[low:high] - begin] = np.abs(latent.activation[low:high])
        return strength

    def window(self, row: int, start: int, latent: LatentFirings) -> Window:
        """A window anywhere in a sequence, with its text."""
        texts = token_texts(self.tokenizer, self.sequences[row, start : start + self.width].tolist())
        return Window(tuple(text.translate(SIGNS) for text in texts), self.strength(row, start, latent))


def top_windows(grid: Grid, latent: LatentFirings, count: int) -> list[Window]:
    """Windows around the largest activations, each out of another sequence, the strongest first."""
    length, windows, used = grid.sequences.shape[1], list[Window](), set[int]()
    for i in np.argsort(-np.abs(latent.activation), kind="stable").tolist():
        row, position = divmod(int(latent.token[i]), length)
        if len(windows) == count:
            break
        if row not in used and position >= grid.n_leading:
            start = min(max(grid.n_leading, position - round(PEAK_AT * grid.width)), length - grid.width)
            windows.append(grid.window(row, start, latent))
            used.add(row)
    return windows


def detection_trials(grid: Grid, latent: LatentFirings, half: int, generator: Generator) -> list[Trial]:
    """`half` active windows and `half` silent ones in random order; none at all where there are too few of either."""
    strength = grid.strengths(latent)
    silent = np.flatnonzero(strength == 0)
    active = stratified(np.flatnonzero(strength), strength, half, generator)
    if len(active) < half or len(silent) < half:
        return []
    silent = silent[torch.randperm(len(silent), generator=generator)[:half].numpy()]
    trials = [Trial(grid.window(*grid.start(i), latent), (), True) for i in active]
    trials += [Trial(grid.window(*grid.start(i), latent), (), False) for i in silent.tolist()]
    return _shuffled(trials, generator)


def fuzzing_trials(grid: Grid, latent: LatentFirings, half: int, generator: Generator) -> list[Trial]:
    """Up to `half` windows with right marks and as many other ones with wrong marks, in random order."""
    strength = grid.strengths(latent)
    ways = {i: shifted_marks(grid.strength(*grid.start(i), latent)) for i in np.flatnonzero(strength).tolist()}
    movable = {i: own for i, own in ways.items() if own}
    able = np.array(sorted(movable), dtype=np.int64)
    half = min(half, len(able) // 2)
    right = stratified(able, strength, half, generator)
    wrong = stratified(np.setdiff1d(able, right), strength, half, generator)
    trials = []
    for i in right:
        window = grid.window(*grid.start(i), latent)
        trials.append(Trial(window, tuple(np.flatnonzero(window.strength).tolist()), True))
    for i in wrong:
        pick = int(torch.randint(len(movable[i]), (1,), generator=generator))
        trials.append(Trial(grid.window(*grid.start(i), latent), movable[i][pick], False))
    return _shuffled(trials, generator)


def shifted_marks(strength: Float[ndarray, " window"]) -> list[tuple[int, ...]]:
    """The active tokens of a window moved on in a circle, in every way that leaves none of them on an active token.

    A way in which a run of them is cut in two at the end of the window, or two runs become one, is left out.
    """
    active = strength != 0
    ways = np.stack([np.roll(active, by) for by in range(1, len(active))])
    good = ~(ways & active).any(axis=1) & (_runs(ways) == _runs(active))
    return [tuple(np.flatnonzero(way).tolist()) for way in ways[good]]


def _runs(marks: Bool[ndarray, "*ways window"]) -> Int[ndarray, "*ways"]:
    """Runs of marked tokens."""
    begins = marks[..., 1:] & ~marks[..., :-1]
    runs: ndarray = begins.sum(axis=-1) + marks[..., 0]
    return runs


def stratified(
    windows: Int[ndarray, " some"], strength: Float[ndarray, " windows"], count: int, generator: Generator
) -> list[int]:
    """One window at random out of each of `count` equal parts of their order of strength; none where they are fewer."""
    if len(windows) < count or not count:
        return []
    ordered = windows[np.argsort(strength[windows], kind="stable")]
    return [
        int(part[int(torch.randint(len(part), (1,), generator=generator))]) for part in np.array_split(ordered, count)
    ]


def _shuffled(trials: list[Trial], generator: Generator) -> list[Trial]:
    """The trials in random order."""
    return [trials[i] for i in torch.randperm(len(trials), generator=generator).tolist()]
