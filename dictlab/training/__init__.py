"""Training sparse dictionaries."""

from dictlab.training.config import TrainConfig
from dictlab.training.member import Member
from dictlab.training.objectives import OBJECTIVES, Objective
from dictlab.training.run_folder.run import Run
from dictlab.training.trainer import resume, train

__all__ = ["OBJECTIVES", "Member", "Objective", "Run", "TrainConfig", "resume", "train"]
