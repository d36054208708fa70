"""Whether a fit can be trusted, check by check, in plain words and with what to try."""

from bll_pyro.diagnostics.diagnosis import diagnose
from bll_pyro.diagnostics.verdicts import Check, Diagnosis, Grade

__all__ = ["Check", "Diagnosis", "Grade", "diagnose"]
