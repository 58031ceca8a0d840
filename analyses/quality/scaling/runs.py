"""What training runs say of themselves: width, active latents, tokens, compute, losses, dead latents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from analyses.common.opening import DictionaryLike, open_dictionaries
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.metrics import Evaluation
from dictlab.numerics.flops import training_flops
from dictlab.numerics.statistics import NAN, Estimate

LOSSES = ("normalised MSE", "CE increase")
METRICS = dict(zip(LOSSES, ("explained_variance", "ce_increase"), strict=True))  # what they follow from
VARIABLES = {"width": "width", "k": "k", "flops": "FLOPs"}  # of the laws, and what they are called
LOG = "metrics.jsonl"


@dataclass(frozen=True, eq=False)
class ScalingRun:
    """One dictionary as a point of the laws.

    Attributes:
        dictionary: The dictionary.
        losses: Those of LOSSES that are known, each with its interval where there is one.
        l0: Active latents a token.
        flops: Of its training; None where not known.
    """

    dictionary: Dictionary
    losses: Mapping[str, Estimate]
    l0: float
    flops: float | None

    @property
    def name(self) -> str:
        """The dictionary's name."""
        return self.dictionary.name

    @property
    def family(self) -> str:
        """Objective and activation function: what runs that are fitted together have in common."""
        return f"{self.dictionary.metadata.objective or 'unknown'} {self.dictionary.activation.kind}"

    @property
    def width(self) -> int:
        """Number of latents."""
        return self.dictionary.n_latents

    @property
    def k(self) -> int | None:
        """Active latents a token, where the activation function fixes them."""
        return getattr(self.dictionary.activation, "k", None)

    @property
    def dead(self) -> float | None:
        """Share of latents that were never active in training; None where the file does not say."""
        rate = self.dictionary.firing_rate
        return None if rate is None else float((rate == 0).float().mean())

    def value(self, variable: str) -> float:
        """A variable of a law, of VARIABLES; NaN where it is not known."""
        value = {"width": self.width, "k": self.k, "flops": self.flops}[variable]
        return NAN if value is None else float(value)

    def known(self, variable: str) -> bool:
        """Whether a variable of a law has a value."""
        return self.value(variable) == self.value(variable)


class LoggedDead(NamedTuple):
    """The share of dead latents of a member of a run after so many tokens, by the log; NaN where it was not logged."""

    member: str
    tokens: int
    dead: float


def opened_runs(given: Sequence[DictionaryLike]) -> tuple[list[Dictionary], list[Path]]:
    """Every dictionary given, those in the folders of runs among them; and these folders.

    Raises:
        DictlabError: A run's folder holds no dictionary.
    """
    files: list[DictionaryLike] = []
    folders: list[Path] = []
    for like in given:
        folder = Path(like) if isinstance(like, str | Path) else None
        if folder is None or not (folder / LOG).is_file():
            files.append(like)
            continue
        members = sorted(folder.glob("*.safetensors"))
        if not members:
            raise DictlabError(f"{folder}: this run holds no dictionaries; was it interrupted before its end?")
        folders.append(folder)
        files += members
    return open_dictionaries(files, analysis="scaling"), folders


def scaling_runs(
    opened: Sequence[Dictionary], measured: Sequence[Evaluation] | None
) -> tuple[list[ScalingRun], list[str]]:
    """The runs, and what the user should know. Where no run was measured in a model there is no CE increase.

    Raises:
        DictlabError: The losses of a dictionary are not in its file, and were not measured.
    """
    metrics_of = [d.metadata.metrics for d in opened] if measured is None else [one.record() for one in measured]
    losses = [
        loss for loss, key in METRICS.items() if loss == LOSSES[0] or any(key in metrics for metrics in metrics_of)
    ]
    runs = []
    for dictionary, metrics in zip(opened, metrics_of, strict=True):
        missing = next((name for name in (*map(METRICS.get, losses), "l0") if name not in metrics), None)
        if missing is not None:
            raise DictlabError(
                f"{dictionary.name}: its file holds no {missing}. Give `remeasure=True` to measure it now."
            )
        l0 = float(metrics["l0"])
        estimates = {loss: _estimate(loss, metrics) for loss in losses}
        runs.append(ScalingRun(dictionary, estimates, l0, _flops(dictionary, l0)))
    warnings = []
    if len({metrics.get("evaluation_sample") for metrics in metrics_of}) > 1:
        warnings.append(
            "The losses in the files were measured on different samples; give `remeasure=True` to compare "
            "like with like."
        )
    if costless := [run.name for run in runs if run.flops is None]:
        warnings.append(
            f"No FLOPs are known of {len(costless)} dictionaries ({costless[0]}, …): they are in no fit of L(C)."
        )
    return runs, warnings


def losses_of(runs: Sequence[ScalingRun]) -> list[str]:
    """The losses that runs have."""
    return [loss for loss in LOSSES if loss in runs[0].losses]


def _estimate(loss: str, metrics: Mapping[str, Any]) -> Estimate:
    """A loss with its interval, from the metric that it follows from."""
    ends = metrics.get(f"{METRICS[loss]}_interval", (NAN, NAN))
    low, high = sorted(_loss(loss, float(end)) for end in ends)
    return Estimate(_loss(loss, float(metrics[METRICS[loss]])), low, high)


def _loss(loss: str, metric: float) -> float:
    return 1 - metric if loss == LOSSES[0] else metric


def _flops(dictionary: Dictionary, l0: float) -> float | None:
    """As the file says, or computed; None where the file does not say what that takes, or a model was in the loop."""
    about = dictionary.metadata
    if isinstance(recorded := about.training.get("flops"), int | float):
        return float(recorded)
    batch = about.training.get("batch")
    if about.tokens is None or not isinstance(batch, int) or about.objective != "local":
        return None
    active = getattr(dictionary.activation, "k", l0)
    return training_flops(dictionary.n_latents, dictionary.d_in, about.tokens, active, batch=batch)


def dead_over_time(folders: Sequence[Path]) -> list[LoggedDead]:
    """The share of dead latents over training, by the logs of runs.

    Raises:
        DictlabError: A log is damaged.
    """
    records = []
    for folder in folders:
        for number, line in enumerate((folder / LOG).read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                records.append(LoggedDead(record["member"], record["tokens"], record.get("dead", NAN)))
            except (ValueError, KeyError, TypeError) as error:
                raise DictlabError(f"{folder / LOG}: line {number} is damaged ({error}).") from error
    return records
