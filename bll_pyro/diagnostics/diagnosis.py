"""``diagnose``: every check that applies to a fit, in the order in which to read them."""

from __future__ import annotations

from typing import Any

from bll_pyro.checks import count, fitted
from bll_pyro.diagnostics.chains import chains
from bll_pyro.diagnostics.guide import gap, khat
from bll_pyro.diagnostics.left_out import backbone, influence_check, seen_mask
from bll_pyro.diagnostics.optimisation import elbo_slope, messages, optimum
from bll_pyro.diagnostics.predictive import predictive
from bll_pyro.diagnostics.prior import conflict, sensitivity
from bll_pyro.diagnostics.study import Study
from bll_pyro.diagnostics.verdicts import Diagnosis
from bll_pyro.fitting import Fit
from bll_pyro.observation import call
from bll_pyro.scope import own_modes


@call("diagnose")
@own_modes()
def diagnose(
    fit: Fit,
    inputs: Any,
    targets: Any = None,
    *,
    seen_by_backbone: Any = None,
    num_draws: int = 2000,
    num_rows: int = 2000,
    seed: int = 0,
) -> Diagnosis:
    """Check a fit on the rows that it was made from, and report in plain words what can be trusted and what to try.

    ========================= ==========================================================================================
    check                     looks at
    ========================= ==========================================================================================
    ``inference``             what the inference itself warned of
    ``ELBO trace``            slope of the ELBO over the last third of the steps, against its standard error
    ``optimum``               how far the means are from the optimum of the ELBO, in posterior standard deviations
    ``R-hat``, ...            chains only: R-hat, effective draws, divergences
    ``k-hat of the guide``    Pareto k-hat of the density ratio of posterior and guide
    ``gap to full rank``      ELBO lost to correlations that the guide cannot express, by linear response
    ``leave-one-out``         ELPD, effective parameters, rows with much influence (see :func:`bll_pyro.loo`)
    ``rows of the backbone``  whether leave-one-out is optimistic, since the backbone has seen the rows
    ``predictive (...)``      PIT of numbers, calibration of events; each row is left out of its own prediction
    ``prior against ...``     whether the posterior lies where the prior finds it improbable
    ``prior sensitivity``     whether the result moves when the prior is made stronger or weaker
    ========================= ==========================================================================================

    Each check is ``ok``, ``look`` (read its finding and judge for yourself) or ``wrong`` (do not use the fit for this
    before it is repaired), or tells why it does not apply. Limits without a source are our choices; the dataset has them.

    Parameters
    ----------
    fit
        Any fit.
    inputs, targets
        The rows that it was made from, in any form that :func:`bll_pyro.fit` takes; targets are taken from the data where
        None.
    seen_by_backbone
        Which of the rows the backbone was trained on: True (all), False (none), a mask ``[N]`` or row numbers. Where the
        fit trained its backbone itself, all. None if it is not known.
    num_draws
        Draws of the weights, for the checks in weight space.
    num_rows
        At most so many rows are left out and predicted, drawn at random; the checks of the guide use all.
    seed
        Of draws and rows.

    Returns
    -------
    Diagnosis
        Prints as a table; ``.verdict``, ``.flagged``, ``diagnosis["k-hat of the guide"]``, ``.to_pandas()``,
        ``.to_dataset()``.

    Raises
    ------
    ValueError
        When these are not as many rows as the fit was made from.
    """
    fitted(fit, "diagnose")
    num_draws, num_rows = (
        count(num_draws, "num_draws", "diagnose", 2),
        count(num_rows, "num_rows", "diagnose", 2),
    )
    rows = fit.rows(inputs, targets)
    if len(rows.targets) != fit.num_rows:
        raise ValueError(
            f"diagnose: expected the {fit.num_rows} rows that the fit was made from, got {len(rows.targets)}; on other rows "
            "evaluate its predictions with bll.metrics"
        )
    seen = True if seen_by_backbone is None and fit.inference.trains_backbone else seen_by_backbone
    if seen is not None:
        seen_mask(seen, fit.num_rows)  # raise before any work starts
    study = Study(fit.head, rows, num_draws, num_rows, seed)
    checks = [
        messages(study),
        elbo_slope(study),
        optimum(study),
        *chains(study),
        khat(study),
        gap(study),
        influence_check(study),
        backbone(study, seen),
        predictive(study),
        conflict(study),
        sensitivity(study),
    ]
    return Diagnosis(tuple(checks), fit.num_rows)
