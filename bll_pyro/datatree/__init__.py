"""Posteriors as ArviZ DataTrees."""

from bll_pyro.datatree.declared_prior import prior_predictive
from bll_pyro.datatree.fit_tree import to_datatree
from bll_pyro.datatree.programs.convert import from_pyro
from bll_pyro.inference.nuts.recording import RecordingNUTS

__all__ = ["RecordingNUTS", "from_pyro", "prior_predictive", "to_datatree"]
