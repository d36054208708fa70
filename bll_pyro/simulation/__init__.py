"""Simulation-based calibration: whether an inference finds what it should, on data whose truth is known."""

from bll_pyro.simulation.sbc_run import sbc

__all__ = ["sbc"]
