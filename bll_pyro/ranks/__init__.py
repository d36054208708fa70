"""Processes that share the rows of a fit: what they sum, gather, and agree on. Everything else computes as one process does."""

from bll_pyro.ranks.agreement import agree
from bll_pyro.ranks.draws import RowGenerator, row_normals, rows_counted
from bll_pyro.ranks.group import RankError as RankError  # public as bll_pyro.distributed.RankError
from bll_pyro.ranks.group import Ranks as Ranks
from bll_pyro.ranks.places import Places
from bll_pyro.ranks.processes import ALONE, Processes

__all__ = [
    "ALONE",
    "Places",
    "Processes",
    "RowGenerator",
    "agree",
    "row_normals",
    "rows_counted",
]
