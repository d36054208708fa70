"""Figures of a run: quality beside the plain head, leave-one-out, and the posterior for ArviZ."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

import bll_pyro as bll
from bll_pyro.cli.console import Console
from bll_pyro.cli.job import Job
from bll_pyro.declaration import written
from bll_pyro.evaluation import Evaluation

TREE_ROWS = 1000  # test rows in posterior.nc
LOO_ROWS = 2000  # training rows that are left out, one at a time
TREE_NUMBERS = 20_000_000  # draws of weights in posterior.nc


def metrics_of(job: Job, fit: bll.Fit, console: Console) -> dict[str, Any]:
    """Figures of a run as plain data."""
    evaluation = quality(job, fit, console)
    return {
        "experiment": written(job.experiment),
        "rows": {name: len(rows) for name, rows in job.parts.items()},
        "quality": None if evaluation is None else evaluation.scores,
        **({"standard_errors": None, "gains": None} if evaluation is None else errors_of(evaluation)),
        "elbo": _number(fit.trace.final_elbo),
        "leave_one_out": left_out(job, fit, console),
        "converged": bool(fit.trace.converged),
        "messages": list(fit.trace.messages),
        "recalibration": None if fit.recalibration is None else str(fit.recalibration.alone),
        "detector": None if fit.detector is None else {"alpha": fit.detector.alpha},
    }


def errors_of(evaluation: Evaluation) -> dict[str, Any]:
    """Standard errors of the scores, and by how much the NLL of a head is below that of the plain head, in nats, with its own.

    What cannot be told, such as the error of a single row, is None.
    """
    return {
        "standard_errors": {
            head: {score: _number(error) for score, error in errors.items()}
            for head, errors in evaluation.standard_errors.items()
        },
        "gains": {
            head: {"nats": _number(nats), "standard_error": _number(error)}
            for head, (nats, error) in evaluation.gains.items()
        },
    }


def quality(job: Job, fit: bll.Fit, console: Console) -> Evaluation | None:
    """Scores on the test rows beside the plain head; None, and a message, where there are no rows for it."""
    test, held_out = job.data("test"), job.data("calibration")
    if test is None or held_out is None:
        console.warning(
            "no figures of quality: they need the parts test and calibration; give splits.test and splits.calibration"
        )
        return None
    console.status("evaluating beside the plain head")
    return bll.evaluate(fit, test, held_out=held_out, train=job.data("train"))


def left_out(job: Job, fit: bll.Fit, console: Console) -> dict[str, float] | None:
    """Leave-one-out density of the training rows, nats a row; None where the backbone knows these rows, or there is none."""
    if job.experiment.inference.trains_backbone:
        return None
    console.status("leaving out rows")
    num_rows = min(len(job.parts["train"]), LOO_ROWS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")  # flagged says how many
        try:
            found = bll.loo(fit, job.data("train"), num_rows, job.experiment.seed)
        except (ValueError, TypeError) as error:
            console.warning(f"no leave-one-out density: {error}")
            return None
    by_row = np.asarray(found.elpd_i, np.float64).ravel()
    by_row = by_row[np.isfinite(by_row)]
    return {"elpd": float(by_row.mean()), "se": float(by_row.std() / len(by_row) ** 0.5), "rows": len(by_row)}


def write_tree(job: Job, fit: bll.Fit, path: Path) -> None:
    """Write the posterior, with densities of the first test rows, for ArviZ."""
    rows = job.rows("test")
    rows = job.parts["train"] if rows is None else rows
    posterior = fit.posterior
    names: dict[str, Any] = {}
    if fit.backbone is None and job.opened.feature_names is not None:
        names["feature_names"] = job.opened.feature_names
    numbers = posterior.num_outputs * posterior.frame.num_features
    if numbers * 1000 > TREE_NUMBERS and not hasattr(posterior, "markov_chain"):
        names["num_draws"] = max(TREE_NUMBERS // numbers, 50)
    tree = fit.to_datatree(job.opened.take(rows[:TREE_ROWS]), **names)
    tree.to_netcdf(path, engine="h5netcdf")


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)
