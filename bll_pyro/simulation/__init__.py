"""Simulation-based calibration: whether an inference finds what it should, on data whose truth is known."""

from bll_pyro.simulation.calibration import sbc

__all__ = ["sbc"]
