"""Posteriors as ArviZ DataTrees."""

from bll_pyro.datatree.from_pyro import from_pyro
from bll_pyro.datatree.of_fit import to_datatree
from bll_pyro.datatree.sampler_stats import RecordingNUTS

__all__ = ["from_pyro", "RecordingNUTS", "to_datatree"]
