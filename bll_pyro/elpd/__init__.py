"""Expected log predictive density: what a fit is worth on rows that it has not seen, without refitting."""

from bll_pyro.elpd.leave_one_out import loo

__all__ = ["loo"]
