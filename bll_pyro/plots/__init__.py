"""Plots of fits, predictions and results: thin functions over ArviZ and matplotlib.

All follow the same conventions. A new plot is one file, with its name in two lists below:

- **Arguments**: the object that is drawn (a fit, a prediction, a tree, a result of this library) comes first; all options are
  keywords. A plot fits and predicts nothing by itself, and shows only numbers of its arguments.
- **Result**: where ArviZ draws, its ``PlotCollection``, for use with ArviZ's own functions; else a
  :class:`~bll_pyro.plots.style.Picture`, a matplotlib ``Figure`` that a notebook shows and ``savefig`` writes.
  It is not registered with ``pyplot``: it needs no closing and is shown only once.
- **Composition**: a plot of one panel takes ``axes=None``; given axes, it draws into them and returns their figure.
- **Size**: ``size=None`` in inches; by default 7 wide, and as high as the content needs; a row of panels is 10 wide.
- **Colours** are from :mod:`bll_pyro.plots.style`: the palette of Okabe and Ito, which colour-blind readers can distinguish.
  The first data set is blue, the one compared with it orange, references (diagonals, zero lines, priors) are grey. Magnitudes
  go from light to dark (``SEQUENTIAL``), signed values through white (``DIVERGING``).
- **Text**: axis labels have units (nats, the target's), titles are left-aligned, legends have no frame, and only axes with a
  scale have a line.
- **Names**: the field's standard terms; a file is not named like a function that it exports, since an import of the file would
  put the module in the function's place.
- **Tests** compare the data that is drawn (lines, offsets, arrays of the artists) with the numbers they come from.
- **Gallery**: every picture has a cell in ``docs/gallery.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PLOTS = {
    "class_probs": "uncertainty",
    "coverage_of_intervals": "coverage",
    "decomposition": "uncertainty",
    "drift_trace": "watching",
    "elbo_trace": "optimisation",
    "fan_chart": "fan",
    "ood_scores": "detection",
    "pit_histogram": "transform",
    "prior_predictive": "priors",
    "reliability_diagram": "reliability",
    "residuals": "residual",
    "risk_coverage": "abstaining",
    "weights_correlation": "weights",
    "weights_forest": "weights",
}

if TYPE_CHECKING:
    from bll_pyro.plots.abstaining import risk_coverage as risk_coverage
    from bll_pyro.plots.coverage import coverage_of_intervals as coverage_of_intervals
    from bll_pyro.plots.detection import ood_scores as ood_scores
    from bll_pyro.plots.fan import fan_chart as fan_chart
    from bll_pyro.plots.optimisation import elbo_trace as elbo_trace
    from bll_pyro.plots.priors import prior_predictive as prior_predictive
    from bll_pyro.plots.reliability import reliability_diagram as reliability_diagram
    from bll_pyro.plots.residual import residuals as residuals
    from bll_pyro.plots.transform import pit_histogram as pit_histogram
    from bll_pyro.plots.uncertainty import class_probs as class_probs
    from bll_pyro.plots.uncertainty import decomposition as decomposition
    from bll_pyro.plots.watching import drift_trace as drift_trace
    from bll_pyro.plots.weights import weights_correlation as weights_correlation
    from bll_pyro.plots.weights import weights_forest as weights_forest

__all__ = sorted(_PLOTS)


def __getattr__(name: str) -> Any:
    if name in _PLOTS:
        value = globals()[name] = getattr(import_module(f"bll_pyro.plots.{_PLOTS[name]}"), name)
        return value
    raise AttributeError(f"module 'bll_pyro.plots' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
