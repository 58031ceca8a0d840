"""Analyses of dictionaries: each one plain function that returns a Report. Call it, or `dictlab report NAME`."""

from analyses.ablation import ablation
from analyses.downstream import downstream
from analyses.explanations import explanations
from analyses.frankenstein import frankenstein
from analyses.geometry import geometry
from analyses.matching import matching
from analyses.meta import meta
from analyses.novelty import novelty
from analyses.pareto import pareto
from analyses.path import path
from analyses.pathology import pathology
from analyses.probes import probes
from analyses.scaling import scaling
from analyses.shrinkage import shrinkage
from analyses.stitching import stitching
from analyses.training import training
from analyses.verification import verification

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
