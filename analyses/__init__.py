"""Analyses of dictionaries: each one plain function that returns a Report. Call it, or `dictlab report NAME`."""

from analyses.ablation import ablation
from analyses.downstream import downstream
from analyses.geometry import geometry
from analyses.matching import matching
from analyses.novelty import novelty
from analyses.pareto import pareto
from analyses.pathology import pathology
from analyses.probes import probes
from analyses.scaling import scaling
from analyses.shrinkage import shrinkage
from analyses.stitching import stitching
from analyses.verification import verification

__all__ = [
    "ablation",
    "downstream",
    "geometry",
    "matching",
    "novelty",
    "pareto",
    "pathology",
    "probes",
    "scaling",
    "shrinkage",
    "stitching",
    "verification",
]
