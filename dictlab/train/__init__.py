"""Training sparse dictionaries."""

from dictlab.train.config import TrainConfig
from dictlab.train.member import Member
from dictlab.train.objectives import OBJECTIVES, Objective
from dictlab.train.run import Run
from dictlab.train.trainer import resume, train

__all__ = ["OBJECTIVES", "Member", "Objective", "Run", "TrainConfig", "resume", "train"]
