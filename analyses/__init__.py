"""Analyses of dictionaries: each one plain function that returns a Report. Call it, or `dictlab report NAME`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyses.composition.frankenstein.frankenstein import frankenstein
    from analyses.composition.novelty.novelty import novelty
    from analyses.composition.path.path import path
    from analyses.composition.stitching.stitching import stitching
    from analyses.features.explanations.explanations import explanations
    from analyses.features.probes.probes import probes
    from analyses.model_effects.ablation.ablation import ablation
    from analyses.model_effects.downstream.downstream import downstream
    from analyses.model_effects.pathology.pathology import pathology
    from analyses.quality.pareto.pareto import pareto
    from analyses.quality.scaling.scaling import scaling
    from analyses.quality.shrinkage.shrinkage import shrinkage
    from analyses.quality.training import training
    from analyses.quality.verification.verification import verification
    from analyses.similarity.geometry.geometry import geometry
    from analyses.similarity.matching.matching import matching
    from analyses.similarity.meta import meta

# Where each analysis is, as imported above; it is imported when it is first used.
_HOMES = {
    "ablation": "analyses.model_effects.ablation.ablation",
    "downstream": "analyses.model_effects.downstream.downstream",
    "explanations": "analyses.features.explanations.explanations",
    "frankenstein": "analyses.composition.frankenstein.frankenstein",
    "geometry": "analyses.similarity.geometry.geometry",
    "matching": "analyses.similarity.matching.matching",
    "meta": "analyses.similarity.meta",
    "novelty": "analyses.composition.novelty.novelty",
    "pareto": "analyses.quality.pareto.pareto",
    "path": "analyses.composition.path.path",
    "pathology": "analyses.model_effects.pathology.pathology",
    "probes": "analyses.features.probes.probes",
    "scaling": "analyses.quality.scaling.scaling",
    "shrinkage": "analyses.quality.shrinkage.shrinkage",
    "stitching": "analyses.composition.stitching.stitching",
    "training": "analyses.quality.training",
    "verification": "analyses.quality.verification.verification",
}

__all__ = [
    "ablation",
    "downstream",
    "explanations",
    "frankenstein",
    "geometry",
    "matching",
    "meta",
    "novelty",
    "pareto",
    "path",
    "pathology",
    "probes",
    "scaling",
    "shrinkage",
    "stitching",
    "training",
    "verification",
]


def __getattr__(name: str) -> Any:
    """An analysis, imported when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The analyses beside the names of the module."""
    return sorted({*globals(), *__all__})
