"""Simulation-based calibration: whether an inference recovers known parameters from simulated data."""

from bll_pyro.simulation.sbc_run import sbc

__all__ = ["sbc"]
