"""Analyses of dictionaries: each one plain function that returns a Report. Call it, or `dictlab report NAME`."""

from analyses.downstream import downstream
from analyses.geometry import geometry
from analyses.matching import matching
from analyses.novelty import novelty
from analyses.pareto import pareto
from analyses.pathology import pathology
from analyses.stitching import stitching
from analyses.training import training
from analyses.verification import verification

__all__ = [
    "downstream",
    "geometry",
    "matching",
    "novelty",
    "pareto",
    "pathology",
    "stitching",
    "training",
    "verification",
]
