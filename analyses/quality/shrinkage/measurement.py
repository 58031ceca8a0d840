"""What do refined activations, and other rules of choosing latents, make of error and model, sequence by sequence?

Every version of a dictionary's codes (as trained, refined, the k' largest, all above a threshold) is decoded; the sums
over the tokens that count, from which everything in the report follows, are kept by sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.common.patching import CleanRun, check_some_count
from analyses.quality.shrinkage.refinement import PLAIN, refined, thresholds, with_k, with_threshold
from dictlab.dictionary import Dictionary
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.unit_directions import with_unit_directions
from dictlab.errors import DictlabError
from dictlab.evaluation.evaluate import check_finite
from dictlab.numerics.statistics import NAN, Array, BySequence, Estimate, Formula
from dictlab.runtime.interruption import Completion
from dictlab.runtime.progress import track
from dictlab.token_selection import ALL, TokenSelection

AS_TRAINED, REFINED, TOPK, THRESHOLD = "as trained", "refined", "largest k", "threshold"
L0, MSE, CE = "L0", "normalised MSE", "CE increase"
Sums = Mapping[str, Array]
FORMULAS: dict[str, Formula] = {
    L0: lambda s: s["l0"] / s["tokens"],
    MSE: lambda s: s["squared_error"] / s["variance"],
    CE: lambda s: s["ce"] / s["predicted"],
}


class Version(NamedTuple):
    """A way of choosing activations: the rule, and its k' or threshold."""

    rule: str
    setting: float = NAN


class Rule(NamedTuple):
    """A version of a dictionary, and the dictionary that computes it."""

    version: Version
    dictionary: Dictionary


@dataclass(frozen=True, eq=False)
class ShrinkageMeasurement:
    """What was measured of one dictionary.

    Attributes:
        dictionary: Which.
        versions: What was tried; the first is as trained, the second refined.
        sums: By sequence and version, `[sequences, versions]`, or `[sequences, 1]` where all share it.
        ratios: Refined over plain activation of every active latent at every token.
        seed: Seed of the bootstrap.
    """

    dictionary: Dictionary
    versions: tuple[Version, ...]
    sums: Sums
    ratios: NDArray[np.float32]
    seed: int

    @cached_property
    def by_sequence(self) -> BySequence:
        """The sums, to be resampled."""
        return BySequence(self.sums, self.seed)

    @property
    def name(self) -> str:
        """The dictionary's name."""
        return self.dictionary.name

    @property
    def losses(self) -> tuple[str, ...]:
        """What was measured beside L0: without a model no CE increase."""
        return (MSE, CE) if "ce" in self.sums else (MSE,)

    def values(self, measure: str) -> list[Estimate]:
        """A measure of FORMULAS for every version."""
        return self.by_sequence.estimates(FORMULAS[measure])

    def change(self, measure: str) -> Estimate:
        """A measure of refined activations less that of plain ones, paired."""

        def change(sums: Sums) -> Array:
            values = FORMULAS[measure](sums)
            return np.asarray(values[..., 1] - values[..., 0])

        return self.by_sequence.estimate(change)

    @cached_property
    def size(self) -> Estimate:
        """The sum of refined activations over that of plain ones."""
        return self.by_sequence.estimate(lambda s: s["strength"][..., 1] / s["strength"][..., 0])

    def share(self, mask: NDArray[np.bool_]) -> float:
        """Share of the active latents of a mask over `ratios`; NaN where none is active."""
        return float(mask.mean()) if len(mask) else NAN


def rules_of(dictionary: Dictionary, x: Float[Tensor, "tokens d_in"], levels: Sequence[int]) -> list[Rule]:
    """As trained; and, where latents emit their pre-activations, other numbers of active latents.

    Activations are in units of what the latents write (|d_j| = 1): the largest ones, and one threshold for all, would
    otherwise depend on how each latent's scale is shared between its encoder and its decoder.

    Args:
        dictionary: Which.
        x: What thresholds are chosen on.
        levels: Active latents a token.

    Raises:
        DictlabError: The dictionary has fewer latents than every level.
    """
    dictionary = with_unit_directions(dictionary)
    rules = [Rule(Version(AS_TRAINED), dictionary)]
    if not isinstance(dictionary.activation, PLAIN):
        return rules
    possible = [k for k in levels if k <= dictionary.n_latents]
    if not possible:
        raise DictlabError(
            f"levels are {', '.join(map(str, levels))}; {dictionary.name} has {dictionary.n_latents} latents. Give one "
            "of at most that."
        )
    rules += [Rule(Version(TOPK, k), with_k(dictionary, k)) for k in possible]
    cuts = thresholds(dictionary, x, possible)
    # a threshold of 0 is all there is; more latents than that cannot be had
    last = next((i + 1 for i, cut in enumerate(cuts) if cut == 0), len(cuts))
    return rules + [Rule(Version(THRESHOLD, cut), with_threshold(dictionary, cut)) for cut in cuts[:last]]


@torch.no_grad()
def measure_rules(
    rules: Sequence[Sequence[Rule]],
    keys: Sequence[str],
    batches: Iterable[Mapping[str, CleanRun | Tensor]],
    means: Mapping[str, Float[Tensor, " d_in"]],
    completion: Completion,
    *,
    selection: TokenSelection = ALL,
    seed: int = 0,
) -> list[ShrinkageMeasurement]:
    """Every rule of every dictionary, and the refinement of the rule of training.

    Args:
        rules: Of each dictionary, that of training first.
        keys: Which activations each of them reads.
        batches: A few sequences of activations at a time, by key; clean runs where there is a model.
        means: The mean activation, by key.
        completion: Told of sequences that are complete; decides whether an interrupted measurement is of use.
        selection: Named where no token counts.
        seed: Seed of the bootstrap.

    Raises:
        DictlabError: No token counts, or a reconstruction is not finite.
    """
    rows: list[list[tuple[Sums, Tensor]]] = []
    with completion:
        for inputs in track(batches, "shrinkage", unit="batches"):
            batch = [_batch(of, inputs[key], means[key]) for of, key in zip(rules, keys, strict=True)]
            rows.append(batch)
            completion.add(len(batch[0][0]["tokens"]))
    measured = []
    for of, parts in zip(rules, zip(*rows, strict=True), strict=True):
        sums = {key: np.concatenate([part[key] for part, _ in parts]) for key in parts[0][0]}
        check_some_count(int(sums["tokens"].sum()), selection)
        versions = (of[0].version, Version(REFINED), *(rule.version for rule in of[1:]))
        ratios = torch.cat([ratio for _, ratio in parts]).numpy()
        measured.append(ShrinkageMeasurement(of[0].dictionary, versions, sums, ratios, seed))
    return measured


def _batch(rules: Sequence[Rule], inputs: CleanRun | Tensor, mean: Float[Tensor, " d_in"]) -> tuple[Sums, Tensor]:
    """Sums over the tokens of each sequence for each version, `[sequences, versions]`; refined over plain values."""
    run = inputs if isinstance(inputs, CleanRun) else None
    given = inputs.x if isinstance(inputs, CleanRun) else inputs
    counted = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device) if run is None else run.counted
    x = given[counted].float()
    by_version: dict[str, list[Tensor]] = {"l0": [], "strength": [], "squared_error": []}
    ratio: list[Tensor] = []

    def versions() -> Iterator[Float[Tensor, "1 batch context d_in"]]:
        dictionary = rules[0].dictionary
        plain = dictionary.encode(x)
        better = refined(dictionary, plain, x)
        active = plain.values != 0
        ratio.append((better.values[active] / plain.values[active]).cpu())
        for codes in (plain, better, *(rule.dictionary.encode(x) for rule in rules[1:])):
            x_hat = dictionary.decode(codes, x)
            check_finite(dictionary, x_hat)
            by_version["l0"].append(_by_sequence(codes.l0(), counted))
            by_version["strength"].append(_by_sequence(_strength(dictionary, codes, x), counted))
            by_version["squared_error"].append(_by_sequence((x - x_hat).double().square().sum(dim=1), counted))
            version = given.float().clone()
            version[counted] = x_hat
            yield version[None]

    sums: dict[str, Tensor] = {}
    if run is None:
        deque(versions(), maxlen=0)  # for what it writes down
    else:
        out = run.outputs(versions())
        rise = torch.where(run.predicting, out.ce - out.ce_clean, 0.0)
        sums = {"ce": rise.double().sum(dim=-1).T, "predicted": run.predicting.sum(dim=1, keepdim=True).double()}
    sums |= {name: torch.stack(parts, dim=1) for name, parts in by_version.items()}
    sums["variance"] = _by_sequence((x - mean.to(x)).double().square().sum(dim=1), counted)[:, None]
    sums["tokens"] = counted.sum(dim=1, keepdim=True).double()
    return {key: value.cpu().numpy() for key, value in sums.items()}, ratio[0]


def _by_sequence(
    values: Float[Tensor, " counted"] | Int[Tensor, " counted"], counted: Bool[Tensor, "batch context"]
) -> Float[Tensor, " batch"]:
    """Sums over the tokens of each sequence that count."""
    total = torch.zeros(len(counted), dtype=torch.double, device=values.device)
    return total.index_add_(0, counted.nonzero()[:, 0], values.double())


def _strength(dictionary: Dictionary, codes: Codes, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, " tokens"]:
    """The sum of the lengths of what each token's latents write, |f_j d_j|, in the activation's units.

    Activations alone depend on how a latent's scale is shared between its encoder and its decoder.
    """
    lengths = dictionary.contributions(codes, x).values.abs()
    total = torch.zeros(codes.n_tokens, dtype=torch.double, device=codes.values.device)
    return total.index_add_(0, codes.rows, lengths.double())
