"""Analyses of dictionaries: each one plain function that returns a Report. Call it, or `dictlab report NAME`."""

from analyses.composition.frankenstein import frankenstein
from analyses.composition.novelty import novelty
from analyses.composition.path import path
from analyses.composition.stitching import stitching
from analyses.features.explanations import explanations
from analyses.features.probes import probes
from analyses.model_effects.ablation import ablation
from analyses.model_effects.downstream import downstream
from analyses.model_effects.pathology import pathology
from analyses.quality.pareto import pareto
from analyses.quality.scaling import scaling
from analyses.quality.shrinkage import shrinkage
from analyses.quality.training import training
from analyses.quality.verification import verification
from analyses.similarity.geometry import geometry
from analyses.similarity.matching import matching
from analyses.similarity.meta import meta

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
