"""How much is called novel where nothing is new: another seed of the same dictionary as a floor.

Two dictionaries that differ in their seed alone do not share all latents. The share of latents of the one that are
novel to the other is therefore what training itself scatters; a larger dictionary has to bring more than that (Leask
et al. 2025). Intervals of shares are 95 % bootstrap intervals over latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analyses.common.neighbours import nearest
from analyses.common.seed_floor import relation
from analyses.composition.cosine_predictor import CERTAIN
from analyses.composition.insertion import Effects
from dictlab import seeds
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.statistics import RESAMPLES, interval

TWIN = 0.9  # cosine from which two novel latents bring the same


class Inserted(NamedTuple):
    """What was inserted into what, and what was found."""

    small: Dictionary
    large: Dictionary
    effects: Effects
    latents: pd.DataFrame

    @property
    def name(self) -> str:
        """As tables call it."""
        return f"{self.large.name} in {self.small.name}"

    @property
    def alive(self) -> pd.DataFrame:
        """The rows of latents that were active."""
        return self.latents[self.latents["class"] != "dead"]

    @property
    def novel(self) -> NDArray[np.bool_]:
        """Whether each active latent is novel by its measured effect."""
        found: NDArray[np.bool_] = (self.alive["class"] == "novel").to_numpy()
        return found

    def draws(self, novel: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
        """The share of novel latents in resamples of the active ones."""
        generator = seeds.numpy_generator(seed, f"share of novel latents, {self.name}")
        shares: NDArray[np.float64] = generator.binomial(len(novel), novel.mean(), size=RESAMPLES) / len(novel)
        return shares


def is_control(small: Dictionary, large: Dictionary) -> bool:
    """Whether two dictionaries differ in their seed alone, by what their files say."""
    return relation(small, large) == "cross-seed"


def controlled(small: Dictionary, large: Dictionary, control: Dictionary) -> Dictionary:
    """Which of the two the control is another seed of: the one of its width.

    Raises:
        DictlabError: It has the width of neither.
    """
    for of in (small, large):
        if control.n_latents == of.n_latents:
            return of
    raise DictlabError(
        f"control {control.name} has {control.n_latents} latents; expected another seed of {small.name} "
        f"({small.n_latents}) or of {large.name} ({large.n_latents})."
    )


def control_warnings(of: Dictionary, control: Dictionary) -> tuple[str, ...]:
    """What is said of a control that is no other seed."""
    found = relation(of, control)
    if found == "cross-seed":
        return ()
    if found == "same settings":
        how = f"is not known to have another seed than {of.name}"
    else:
        how = f"differs from {of.name} in more than its seed ({found})"
    return (f"The control {control.name} {how}: what is novel in it is no floor of seeds alone.",)


def twins(inserted: Inserted) -> int:
    """Novel latents that have another novel one in their own direction: what they bring is counted twice."""
    rows = torch.from_numpy(inserted.alive["latent"].to_numpy()[inserted.novel])
    if len(rows) < 2:
        return 0
    directions = inserted.large.W_dec[rows.to(inserted.large.W_dec.device)]
    return int((nearest(directions, directions, itself=False).cosine[:, 0] > TWIN).sum())


def share_table(found: Sequence[Inserted], seed: int) -> pd.DataFrame:
    """One row a pair: how many latents are novel, by effect and by cosine, and how certain that is."""
    rows = []
    for one in found:
        alive, error = one.alive, one.alive["standard error"]
        by_cosine = (alive["class by cosine"] == "novel").to_numpy()
        row: dict[str, object] = {
            "inserted": one.name,
            "relation": relation(one.small, one.large),
            "activations": f"{one.small.activation.kind}, {one.large.activation.kind}",
            "active": len(alive),
            "dead": len(one.latents) - len(alive),
            "novel": int(one.novel.sum()),
        }
        for name, novel in (("share novel", one.novel), ("share by cosine", by_cosine)):
            low, high = interval(one.draws(novel, seed))
            row |= {name: float(novel.mean()), f"{name} low": low, f"{name} high": high}
        row |= {
            "certainly novel": float((alive["change in MSE"] < -CERTAIN * error).mean()),
            "certainly not": float((alive["change in MSE"] > CERTAIN * error).mean()),
            "carries something": float((alive["best scale"] > 0).mean()),
            "best decrease": one.effects.of_mse(-float(alive["change in MSE"].min())),
            "novel with a twin": twins(one),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def shares_caption() -> str:
    """What the columns of `share_table` are."""
    return (
        "Active latents that are novel, by measured effect and by the cosine rule, with 95 % bootstrap intervals over "
        f"latents. Certain: more than {CERTAIN:g} standard errors from 0; carries something: best scale above 0; best "
        "decrease: of the most useful one, as a share of the MSE; twin: another novel one with a cosine above "
        f"{TWIN:g}."
    )


def excess(pair: Inserted, floor: Inserted, seed: int) -> str:
    """The share of novel latents beside that of the control, in a sentence."""
    share, level = float(pair.novel.mean()), float(floor.novel.mean())
    low, high = interval(pair.draws(pair.novel, seed) - floor.draws(floor.novel, seed))
    own = interval(floor.draws(floor.novel, seed))
    return (
        f"Of the control's latents, {level:.0%} [{own[0]:.0%}, {own[1]:.0%}] are novel to {floor.small.name}; "
        f"{pair.large.name} has {100 * (share - level):.0f} [{100 * low:.0f}, {100 * high:.0f}] points more than "
        "this floor."
    )
