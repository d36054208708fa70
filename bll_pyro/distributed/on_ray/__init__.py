"""Extraction, scoring and sums of rows on Ray Data: many machines, each row once, and nothing lost with a process or a machine.

Ray is imported when one of the functions is called. How it works is in decision 0034.
"""

from bll_pyro.distributed.on_ray.extraction import extract
from bll_pyro.distributed.on_ray.report import RowsReport
from bll_pyro.distributed.on_ray.scoring import predict
from bll_pyro.distributed.on_ray.sums import fit_statistics, statistics
from bll_pyro.distributed.on_ray.workers import Workers

__all__ = ["RowsReport", "Workers", "extract", "fit_statistics", "predict", "statistics"]
