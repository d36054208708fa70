"""Data of an experiment: declarations of where rows come from, and the parts that they are split into."""

from bll_pyro.cli.data.arrays import Arrays
from bll_pyro.cli.data.base import DataSource, Opened
from bll_pyro.cli.data.builtin import BuiltIn
from bll_pyro.cli.data.images import ImageFolder
from bll_pyro.cli.data.others import FeatureStore, Function
from bll_pyro.cli.data.splits import Splits
from bll_pyro.cli.data.tables import Table

__all__ = [
    "Arrays",
    "BuiltIn",
    "DataSource",
    "FeatureStore",
    "Function",
    "ImageFolder",
    "Opened",
    "Splits",
    "Table",
]
