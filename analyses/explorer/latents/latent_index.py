"""The columns that latents are found, sorted and filtered by: a number for each latent, and a few of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from numpy.typing import NDArray

from analyses.composition.insertion.insertion_effects import InsertionEffects
from analyses.composition.insertion.insertion_tables import DEAD, NOVEL, RECONSTRUCTION
from analyses.explorer.code_store import StoredCodes
from analyses.explorer.data_files import packed, packed_ids, packed_unit
from analyses.explorer.latents.promoted_tokens import LogitTokens
from analyses.explorer.latents.twins import DictionaryPair
from dictlab.dictionary import Dictionary

ON, UP = 4, 4  # tokens of each latent in the index: that it is active on, and that it promotes
NOTHING = -1  # in place of a token or a latent

Numbers = NDArray[Any]


@dataclass(frozen=True, eq=False)
class LatentIndex:
    """One dictionary's columns, a value for each of its latents.

    Attributes:
        firing_rate: Share of counted tokens at which it is active.
        max_activation: Largest activation by size; 0 of dead latents.
        mean_activation: Mean activation where it is active; NaN of dead latents.
        norm: Length of its decoder direction.
        nearest: By other dictionary: its nearest alive latent there by cosine, or -1.
        cosine: By other dictionary: the cosine with that one.
        correlated: By other dictionary: the latent with the largest correlation of activations, or -1.
        correlation: By other dictionary: that correlation.
        jaccard: By other dictionary: tokens that it and its nearest share, over tokens at which either is active.
        effects: By dictionary that it is inserted into alone: what that does to its error.
        on: Ids of the tokens that it is active on most often.
        up: Ids of the tokens that it promotes most; none where directions are not those of the residual stream.
    """

    firing_rate: Numbers
    max_activation: Numbers
    mean_activation: Numbers
    norm: Numbers
    nearest: Mapping[int, Numbers]
    cosine: Mapping[int, Numbers]
    correlated: Mapping[int, Numbers]
    correlation: Mapping[int, Numbers]
    jaccard: Mapping[int, Numbers]
    effects: Mapping[int, InsertionEffects]
    on: Int[NDArray[np.int64], "n_latents tokens"]
    up: Int[NDArray[np.int64], "n_latents tokens"]

    @property
    def dead(self) -> NDArray[np.bool_]:
        """Latents that are active nowhere in the sample."""
        return np.asarray(self.firing_rate == 0)


def latent_index(
    number: int,
    dictionary: Dictionary,
    codes: Sequence[StoredCodes],
    n_counted: int,
    ids: Int[NDArray[np.int64], " tokens"],
    pairs: Mapping[int, DictionaryPair],
    effects: Mapping[int, InsertionEffects],
    logits: LogitTokens | None,
) -> LatentIndex:
    """The index of one dictionary.

    Args:
        number: Of the dictionary.
        dictionary: Itself.
        codes: Of all dictionaries.
        n_counted: Tokens of the sample that count.
        ids: Token ids of the sample, one after the other.
        pairs: By other dictionary, what the two have in common.
        effects: By dictionary that latents are inserted into.
        logits: Tokens promoted.
    """
    own = codes[number]
    n = dictionary.n_latents
    largest, mean, on = np.zeros(n), np.full(n, np.nan), np.full((n, ON), NOTHING)
    for latent in np.flatnonzero(own.active):
        tokens, activations = own.column(int(latent))
        largest[latent], mean[latent] = np.abs(activations).max(), activations.mean(dtype=np.float64)
        found, counts = np.unique(ids[tokens], return_counts=True)
        most = found[np.lexsort((found, -counts))[:ON]]
        on[latent, : len(most)] = most
    return LatentIndex(
        firing_rate=own.active / n_counted,
        max_activation=largest,
        mean_activation=mean,
        norm=dictionary.W_dec.float().norm(dim=1).cpu().numpy(),
        nearest={e: pair.nearest.latent for e, pair in pairs.items()},
        cosine={e: pair.nearest.value for e, pair in pairs.items()},
        correlated={e: pair.correlated.latent for e, pair in pairs.items()},
        correlation={e: pair.correlated.value for e, pair in pairs.items()},
        jaccard={e: nearest_jaccard(pair, own.active, codes[e].active) for e, pair in pairs.items()},
        effects=effects,
        on=on,
        up=np.full((n, 0), NOTHING) if logits is None else logits.promoted[:, :UP],
    )


def nearest_jaccard(pair: DictionaryPair, active: Numbers, other_active: Numbers) -> Numbers:
    """Of each latent with its nearest by cosine; NaN where it has none, or neither is ever active."""
    jaccard = np.full(len(active), np.nan)
    twins = pair.twins
    own = np.flatnonzero(twins.b == pair.nearest.latent[twins.a])
    a, b, both = twins.a[own], twins.b[own], twins.both[own]
    either = active[a] + other_active[b] - both
    jaccard[a[either > 0]] = (both / np.maximum(either, 1))[either > 0]
    return jaccard


def index_columns(index: LatentIndex) -> dict[str, dict[str, str]]:
    """The columns as the page has them, packed; of those about another dictionary its number is part of the name."""
    columns = {
        "rate": packed(index.firing_rate),
        "max": packed(index.max_activation),
        "mean": packed(index.mean_activation),
        "norm": packed(index.norm),
    }
    for e in index.nearest:
        columns |= {
            f"near{e}": packed(index.nearest[e].astype(np.int32)),
            f"cos{e}": packed_unit(index.cosine[e]),
            f"jac{e}": packed_unit(index.jaccard[e]),
            f"corr{e}": packed_unit(index.correlation[e]),
        }
    for e, effects in index.effects.items():
        columns[f"effect{e}"] = packed(effects.change.numpy())
        columns[f"class{e}"] = packed(classes(effects).astype(np.uint8))
    return columns | {"on": packed_ids(index.on), "up": packed_ids(index.up)}


CLASSES = (DEAD, RECONSTRUCTION, NOVEL)  # by their number in the index


def classes(effects: InsertionEffects) -> NDArray[np.int64]:
    """Of each latent inserted alone: the number of its class in `CLASSES`."""
    return np.where(effects.dead.numpy(), 0, np.where(effects.novel.numpy(), 2, 1))


def latent_frame(
    names: Sequence[str], indices: Sequence[LatentIndex], texts: Mapping[int, str], contexts: Sequence[Sequence[str]]
) -> pd.DataFrame:
    """All latents of all dictionaries, a row each, with what the index holds of them.

    Args:
        names: Of the dictionaries.
        indices: Of the dictionaries.
        texts: Of tokens, by id, as they are shown.
        contexts: Of the latents of each dictionary: where each is most active, a line for each context.
    """
    frames = [
        _frame(i, names, index, texts).assign(contexts=list(own))
        for i, (index, own) in enumerate(zip(indices, contexts, strict=True))
    ]
    return pd.concat(frames, ignore_index=True)


def _frame(number: int, names: Sequence[str], index: LatentIndex, texts: Mapping[int, str]) -> pd.DataFrame:
    n = len(index.firing_rate)
    columns: dict[str, Any] = {
        "dictionary": [names[number]] * n,
        "latent": np.arange(n),
        "firing rate": index.firing_rate,
        "max activation": index.max_activation,
        "mean activation": index.mean_activation,
        "norm": index.norm,
    }
    for e in index.nearest:
        columns |= {
            f"nearest in {names[e]}": _latents(index.nearest[e]),
            f"cosine with {names[e]}": index.cosine[e],
            f"Jaccard with {names[e]}": index.jaccard[e],
            f"most correlated in {names[e]}": _latents(index.correlated[e]),
            f"correlation with {names[e]}": index.correlation[e],
        }
    for e, effects in index.effects.items():
        columns |= {
            f"change in MSE of {names[e]}": effects.change.numpy(),
            f"standard error with {names[e]}": effects.error.numpy(),
            f"class to {names[e]}": np.array(CLASSES)[classes(effects)],
        }
    for name, tokens in (("active on", index.on), ("promotes", index.up)):
        columns[name] = ["  ".join(texts[t] for t in row if t != NOTHING) for row in tokens.tolist()]
    return pd.DataFrame(columns)


def _latents(numbers: Numbers) -> pd.Series[Any]:
    """Whole numbers that stay whole in a frame in which others have none."""
    return pd.Series(numbers).where(numbers >= 0).astype("Int64")
