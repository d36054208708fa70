"""Recalibration of a fit on held-out rows: a temperature or a noise factor, by maximum likelihood of the predictive."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bll_pyro.checks import fitted
from bll_pyro.prediction.held_out import found_on
from bll_pyro.scope import own_modes

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit


@own_modes()
def calibrate(fit: Fit, inputs: Any, targets: Any = None) -> Fit:
    """A new fit with a predictive temperature or a noise factor fitted to held-out rows.

    For classes and labels (``Categorical``, ``Ordinal``, ``Bernoulli``) the predicted probabilities are tempered,
    ``p_k^(1/T)``, after the average over the posterior, so no predicted class changes (Guo et al. 2017). Several labels
    per row share one temperature, and count as independent. For real values (``Gaussian``, ``StudentT``,
    ``HeteroscedasticGaussian``) the noise scale is multiplied by a factor.

    The number maximises the log probability of the held-out targets minus ``(log number)^2 / 2``. This penalty is
    negligible with a hundred rows; without it, rows predicted without error would give T = 0. The result is in
    ``fit.recalibration`` and replaces an earlier one.

    Parameters
    ----------
    fit
        Any fit, also of a point estimate.
    inputs, targets
        Rows that neither the backbone nor the last layer was trained on: together in any form that :func:`bll_pyro.fit`
        takes, or as two arguments. Weights multiply the rows' log probabilities.

    Raises
    ------
    ValueError
        If the targets do not match, or the fit has a detector, which would no longer be valid.
    TypeError
        For counts, whose variance is a function of their mean, so that a factor would change the family.
    """
    fitted(fit, "calibrate")
    if fit.detector is not None:
        raise ValueError(
            "calibrate: expected a fit without a detector, got one with a detector, which recalibration would invalidate; "
            "calibrate the fit first, then the detector"
        )
    rows = fit.rows(inputs, targets, what="data of calibrate")
    prediction = replace(fit.head, recalibration=None).predict(rows.data)
    found = found_on(prediction, rows.given, rows.targets, rows.columns.weight, "held-out rows")
    return replace(fit, recalibration=found)
