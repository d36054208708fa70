"""Loggers: callbacks that write the steps of a run to files and services; their libraries are imported when one is made."""

from bll_pyro.loggers.csv_file import CSV
from bll_pyro.loggers.mlflow_runs import MLflow
from bll_pyro.loggers.tensorboard_events import TensorBoard
from bll_pyro.loggers.wandb_runs import WandB

__all__ = ["CSV", "MLflow", "TensorBoard", "WandB"]
