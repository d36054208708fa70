"""``update``: a fit that has seen more rows, by inferences that keep what they need of the earlier ones."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bll_pyro.inference.base import FitWarning
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.standardization import log_densities_in_user_units
from bll_pyro.scope import isolated

if TYPE_CHECKING:
    from bll_pyro.fitting.result import Fit

DROPPED = (
    "update: the recalibration {!r} was of the earlier posterior and is dropped; bll.calibrate finds that of the new one on "
    "held-out rows"
)


def update(fit: Fit, data: Any) -> dict[str, Any]:
    """What changes in a fit when it has seen ``data`` too: posterior, trace, number of rows, and no recalibration."""
    earlier = fit.posterior
    given = fit.rows(data, what="data of update")
    # without the axes that the inference chose itself; those of a prior belong to its coordinates
    frame = earlier.frame if fit.layer.prior.frame is not None else replace(earlier.frame, rotation=None)
    with isolated(fit.seed, frame.center.dtype):
        inside = fit.layer.in_frame(frame)
        rows = DesignRows(given.features, given.targets, frame, frame.center.device, given.columns)
        posterior, trace = fit.inference.update(inside, rows, earlier.target_shape, fit.trace)
    num_rows = fit.num_rows + len(given.features)
    assert trace.sums is not None  # an inference that can be updated keeps them
    log_densities_in_user_units(trace, posterior.frame, trace.sums.weight)
    said = list(trace.messages)
    if fit.recalibration is not None:
        said.append(DROPPED.format(fit.recalibration))
    for message in said:
        warnings.warn(message, FitWarning, stacklevel=3)
    return {"posterior": posterior, "trace": trace, "num_rows": num_rows, "recalibration": None}
