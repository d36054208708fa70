"""Posteriors as ArviZ DataTrees."""

from bll_pyro.datatree.from_pyro import from_pyro
from bll_pyro.datatree.of_fit import to_datatree
from bll_pyro.datatree.prior_predictive import prior_predictive
from bll_pyro.datatree.sampler_stats import RecordingNUTS

__all__ = ["RecordingNUTS", "from_pyro", "prior_predictive", "to_datatree"]
