"""From any Pyro program and its draws to a DataTree; it knows nothing of last layers."""

from bll_pyro.datatree.programs.convert import from_pyro

__all__ = ["from_pyro"]
