"""The command line ``bll``."""

from bll_pyro.cli.entry import main

__all__ = ["main"]
