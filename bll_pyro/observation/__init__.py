"""Observation: what goes on in a call, told to the progress bar, to callbacks, and through them to loggers."""

from bll_pyro.observation.observing import call, collected, observe, stage, unobserved
from bll_pyro.observation.records import Record, Run, StopTraining
from bll_pyro.observation.watching import Stage

__all__ = ["Record", "Run", "Stage", "StopTraining", "call", "collected", "observe", "stage", "unobserved"]
