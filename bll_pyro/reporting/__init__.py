"""Reports: what is known of a fit, on one page and as numbers."""

from bll_pyro.reporting.document import Report
from bll_pyro.reporting.entry import report

__all__ = ["Report", "report"]
