"""What is one dictionary of a family to become, and what is it called?"""

from __future__ import annotations

from dataclasses import dataclass

from dictlab.dictionary import Dictionary
from dictlab.training.objectives import ObjectiveName
from dictlab.training.variants import Variant


@dataclass(frozen=True)
class Member:
    """One dictionary of a family.

    Attributes:
        width: Latents.
        variant: Its activation function in training.
        objective: What it is trained for at first.
        seed: Of its initialisation.
        finetune: What it is trained for in the end, if that is something else.
        start: The dictionary that it goes on from, in the units of the activations.
        site: Where in the model; "" of plain activations.
        place: What its name begins with where a run has several sites.
    """

    width: int
    variant: Variant
    objective: ObjectiveName
    seed: int
    finetune: ObjectiveName | None = None
    start: Dictionary | None = None
    site: str = ""
    place: str = ""

    @property
    def goals(self) -> str:
        """Objectives of this run, one after the other."""
        return f"{self.objective}-then-{self.finetune}" if self.finetune else self.objective

    @property
    def goal(self) -> str:
        """The same, after those of the dictionary it goes on from."""
        before = self.start.metadata.objective if self.start is not None else None
        return f"{before}-then-{self.goals}" if before else self.goals

    @property
    def name(self) -> str:
        """Its file's name: site if several, objective, activation function, width, seed; or what it goes on from."""
        if self.start is not None:
            before = self.start.name.replace("/", "-")  # folders may tell files of one name apart
            return f"{self.place}{self.goals}-{self.variant.label}-from-{before}"
        return f"{self.place}{self.goals}-{self.variant.label}-{self.width}-s{self.seed}"
