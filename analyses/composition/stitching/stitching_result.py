"""Everything that was measured of a stitching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analyses.composition.stitching.equal_l0 import EqualL0, SparsityCurve, at_equal_l0
from analyses.composition.stitching.selection_rules import Choice
from analyses.pool.ridge_refit import Refit
from analyses.quality.measured_points import Point


@dataclass(frozen=True, eq=False)
class StitchingResult:
    """Everything that was measured of a stitching.

    Attributes:
        parents: As they were given, SMALL first.
        unrefitted: What each rule's choice is without a decoder refit, by rule.
        controls: Every parent, refitted in the same way; none where nothing is refitted.
        refitted: What the rules that were not selected make, with the same refit.
        stitched: The result.
        curves: Every parent at several sparsities, refitted in the same way; its own among them.
        choices: What each rule chose.
        rule: The one that was selected.
        refit: What was refitted.
        threshold: Of the cosine rule.
        seed: Of chance levels.
        n_inserted: Latents of larger dictionaries in the result.
        n_kept: Latents of SMALL in it.
        cautions: What is to be said of the parents' curves.
    """

    parents: Sequence[Point]
    unrefitted: Mapping[str, Point]
    controls: Sequence[Point]
    refitted: Mapping[str, Point]
    stitched: Point
    curves: Sequence[SparsityCurve]
    choices: Mapping[str, Choice]
    rule: str
    refit: Refit
    threshold: float
    seed: int
    n_inserted: int
    n_kept: int
    cautions: tuple[str, ...] = ()

    @property
    def points(self) -> list[Point]:
        """All that was measured, in the order of tables."""
        return [*self.parents, *self.unrefitted.values(), *self.controls, *self.refitted.values(), self.stitched]

    @property
    def choice(self) -> Choice:
        """What the selected rule chose."""
        return self.choices[self.rule]

    @property
    def compared(self) -> Mapping[str, EqualL0]:
        """The result beside the best parent at its L0, for each error that some parent has there."""
        return at_equal_l0(self.stitched, self.curves)

    @property
    def best_parent(self) -> int:
        """The number of the parent with the smallest MSE at the result's L0; of the last one if none is as sparse."""
        names = [parent.name for parent in self.parents]
        return names.index(self.compared["mse"].parent) if "mse" in self.compared else len(names) - 1

    @property
    def shown(self) -> Choice:
        """The choice whose latents are listed: the selected rule's, or that by effect where it looks at none alone."""
        return self.choice if self.choice.insertions else self.choices["effect"]
