"""Training sparse dictionaries."""

from dictlab.train.config import OBJECTIVES, Member, Objective, TrainConfig
from dictlab.train.run import Run
from dictlab.train.trainer import resume, train

__all__ = ["OBJECTIVES", "Member", "Objective", "Run", "TrainConfig", "resume", "train"]
