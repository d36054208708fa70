"""Pictures of a fit and of what is made of it: thin functions over ArviZ and matplotlib.

All follow the same conventions, and a new picture is one file, and its name below twice:

- **What is drawn comes first** (a fit, a prediction, a tree, a result of this library); every choice after it is a keyword.
  Nothing is fitted or predicted that the caller did not ask for, and no number is shown that the arguments do not hold.
- **What comes back**: where ArviZ draws, its ``PlotCollection`` as it is, so that ArviZ's own functions go on with it; else a
  :class:`~bll_pyro.plots.style.Picture`, which is a matplotlib ``Figure`` that a notebook shows and ``savefig`` writes.
  It is not registered with ``pyplot``: no global state, nothing to close, never shown twice.
- **Composition**: a picture of one panel takes ``axes=None``; given axes, it draws there and returns their figure.
- **Size**: ``size=None`` in inches; by default 7 wide, and as high as the content needs; a row of panels is 10 wide.
- **Colours** are from :mod:`bll_pyro.plots.style`: Okabe and Ito's, which differ for colour-blind eyes too. Blue is first,
  what it is compared with is orange, references (diagonals, zero lines, priors) are grey. Magnitudes go from light to dark
  (``SEQUENTIAL``), signed values through white (``DIVERGING``).
- **Words**: axes carry their unit (nats, the target's), titles are left-aligned sentences, legends have no frame, and only the
  axes that carry numbers have a line.
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
    "decomposition": "uncertainty",
    "elbo_trace": "optimisation",
    "fan_chart": "fan",
    "ood_scores": "detection",
    "pit_histogram": "transform",
    "prior_predictive": "priors",
    "reliability_diagram": "reliability",
    "risk_coverage": "abstaining",
    "weights_correlation": "weights",
    "weights_forest": "weights",
}

if TYPE_CHECKING:
    from bll_pyro.plots.abstaining import risk_coverage as risk_coverage
    from bll_pyro.plots.detection import ood_scores as ood_scores
    from bll_pyro.plots.fan import fan_chart as fan_chart
    from bll_pyro.plots.optimisation import elbo_trace as elbo_trace
    from bll_pyro.plots.priors import prior_predictive as prior_predictive
    from bll_pyro.plots.reliability import reliability_diagram as reliability_diagram
    from bll_pyro.plots.transform import pit_histogram as pit_histogram
    from bll_pyro.plots.uncertainty import class_probs as class_probs
    from bll_pyro.plots.uncertainty import decomposition as decomposition
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
