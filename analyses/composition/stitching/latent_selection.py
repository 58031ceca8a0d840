"""Which latents is a stitched dictionary made of?

Those of one rule: novel by their measured effect or by the published cosine rule, those of a search for the smallest
error, or those at a point of the path between sizes (`selection_rules`); or, by default, those of whichever of these is
best within a budget of latents and of L0 (`budget_rules`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from analyses.composition.path.path_steps import Order
from analyses.composition.stitching.budget_rules import within_budget
from analyses.composition.stitching.measurement import best_rule
from analyses.composition.stitching.selection_rules import Choice, by_insertion, by_path, by_search
from analyses.composition.stitching.stitching_data import StitchingData
from analyses.pool.ridge_refit import Refit
from analyses.pool.search_starts import BudgetLimits
from dictlab.errors import DictlabError, check_at_least

Select = Literal["best", "effect", "cosine", "optimal"]


class Selection(NamedTuple):
    """Which latents each rule chooses.

    Attributes:
        choices: Every rule's latents, by the rule's name.
        rule: The rule whose latents are stitched.
        cautions: What is to be said of how they were searched for.
    """

    choices: dict[str, Choice]
    rule: str
    cautions: tuple[str, ...] = ()

    @property
    def choice(self) -> Choice:
        """The latents that are stitched."""
        return self.choices[self.rule]


def checked_budget(select: Select, latents: int | None, l0: float | None) -> BudgetLimits:
    """The budget that --max-latents and --max-l0 set.

    Raises:
        DictlabError: A number is too small, or the rule that is asked for searches under no budget.
    """
    check_at_least(1, max_latents=latents)
    check_at_least(0, max_l0=l0)
    if select not in ("best", "optimal") and (latents is not None or l0 is not None):
        raise DictlabError(
            "`max_latents=...` and `max_l0=...` are budgets; give `select='best'` or `select='optimal'` with them."
        )
    return BudgetLimits(latents, l0)


def select_latents(
    data: StitchingData,
    select: Select,
    refit: Refit,
    budget: BudgetLimits,
    *,
    until: str | None,
    threshold: float,
    order: Order,
) -> Selection:
    """Choose latents by effect and by cosine in any case, and by the rule that is asked for.

    Args:
        data: The dictionaries and the training tokens.
        select: The rule, unless `until` is given.
        refit: What is refitted of each rule's latents.
        budget: Of a search, and of the best rule.
        until: A point of the path between sizes, whose latents are taken in place of a rule's.
        threshold: Cosine of decoder directions from which two latents count as the same.
        order: Of the steps of the path.
    """
    chain, seed = data.chain, data.seed
    choices: dict[str, Choice] = {choice.rule: choice for choice in by_insertion(chain, threshold)}
    if until is not None:
        return Selection(choices | {"path": by_path(chain, threshold, order, seed, until)}, "path")
    if select == "best":
        choices, cautions = within_budget(
            chain, choices, threshold=threshold, order=order, seed=seed, refit=refit, **budget._asdict()
        )
        return Selection(choices, best_rule(data, choices, refit), cautions)
    if select == "optimal":
        choices["optimal"] = by_search(chain, budget.latents, budget.l0, refit)
    return Selection(choices, select)
