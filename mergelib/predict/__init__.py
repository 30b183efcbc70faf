"""Forecasts of mergeability: predictor, target, split, baseline, null."""

from mergelib.predict.agreement import agreement
from mergelib.predict.crossval import held_out
from mergelib.predict.data import FINAL_METHODS, Pairs, assemble
from mergelib.predict.estimators import (
    PREDICTORS,
    DensePearsonAdam,
    GreedyPearsonAdam,
    L1PearsonAdam,
    MSEAdam,
    SmallMLP,
    estimator,
)
from mergelib.predict.evaluate import evaluate
from mergelib.predict.inference import qap
from mergelib.predict.splits import DisjointHalves, LeaveOneTaskOut, LeaveTwoTasksOut
from mergelib.predict.targets import target

__all__ = [
    "FINAL_METHODS",
    "PREDICTORS",
    "DensePearsonAdam",
    "DisjointHalves",
    "GreedyPearsonAdam",
    "L1PearsonAdam",
    "LeaveOneTaskOut",
    "LeaveTwoTasksOut",
    "MSEAdam",
    "Pairs",
    "SmallMLP",
    "agreement",
    "assemble",
    "estimator",
    "evaluate",
    "held_out",
    "qap",
    "target",
]
