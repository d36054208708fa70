"""Leave-one-out: how many rows have much influence on their own prediction, and whether the estimate can be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from bll_pyro.diagnostics.study import Study
from bll_pyro.diagnostics.verdicts import Check, Grade
from bll_pyro.posterior import DrawsPosterior
from bll_pyro.scope import without_warnings

FLAGGED_LIMITS = (0.0, 0.05)  # share of the rows
UNSEEN = "rows that the backbone was not trained on: fit the last layer on some, and judge it on others"


def influence_check(study: Study) -> Check:
    """ELPD, effective number of parameters, rows with high influence or high Pareto k; the corrected PSIS beside it."""
    if study.stuck:
        return Check.skipped("leave-one-out", study.stuck)
    result = study.loo
    values = np.asarray(result.pareto_k)
    known = np.isfinite(values)
    share = float((values[known] > result.good_k).mean())
    num_rows = len(study.targets)
    finding = (
        f"ELPD {result.elpd / num_rows:.3f} ± {result.se / num_rows:.3f} nats a row, {result.p:.1f} effective parameters; "
        f"{100 * share:.1f} % of rows have much influence on their own prediction"
    )
    by_row = {"elpd_loo": np.asarray(result.elpd_i)}
    by_row["pareto_k" if isinstance(study.posterior, DrawsPosterior) else "influence"] = values
    corrected = _by_importance(study)
    if corrected is not None:
        elpd, worst = corrected
        finding += (
            f"; by importance sampling in weight space {elpd / num_rows:.3f}"
            f"{'' if study.fit.recalibration is None else ' before the recalibration'}, largest Pareto k {worst:.2f}"
        )
    remedy = (
        "fits without these rows (flagged in bll.loo), or a tighter prior: many weights depend on single rows"
    )
    return Check.graded("leave-one-out", share, FLAGGED_LIMITS, finding, remedy, by_row=by_row)


def _by_importance(study: Study) -> tuple[float, float] | None:
    """ELPD with the correction for approximate posteriors, and its largest Pareto k (Magnusson et al. 2019)."""
    if isinstance(study.posterior, DrawsPosterior) or study.tree is None:
        return None
    stats = study.tree["sample_stats"]
    if "log_q" not in stats:
        return None
    import arviz_stats as azs

    with without_warnings("Estimated shape parameter of Pareto"):
        result = azs.loo_approximate_posterior(study.tree, stats["log_p"], stats["log_q"], pointwise=True)
    return float(result.elpd), float(np.nanmax(result.pareto_k))


def backbone(study: Study, seen: Any) -> Check:
    """Whether leave-one-out is optimistic, since the backbone was trained on the rows."""
    name = "rows of the backbone"
    if seen is None:
        return Check.skipped(
            name, "tell which rows the backbone was trained on: seen_by_backbone=True, False or a mask"
        )
    mask = seen_mask(seen, len(study.targets))
    share = float(mask.double().mean())
    if share == 0:
        return Check.graded(name, 0.0, (0.0, 0.5), "the backbone has seen none of the rows", "")
    finding = (
        f"the backbone was trained on {100 * share:.0f} % of the rows: its features are too good there, and leave-one-out, which "
        "holds the backbone fixed, is optimistic"
    )
    if share < 1 and not study.stuck:
        elpd = torch.from_numpy(np.asarray(study.loo.elpd_i))
        known = torch.isfinite(elpd)
        here, there = elpd[known & mask], elpd[known & ~mask]
        gap = float(here.mean() - there.mean())
        error = float((here.var() / len(here) + there.var() / len(there)).sqrt())
        finding += f", here by {gap:.3f} ± {error:.3f} nats a row against the rows that it has not seen"
    return Check(name, Grade.LOOK, finding, share, (0.0, 1.0), UNSEEN)


def seen_mask(seen: Any, num_rows: int) -> Bool[Tensor, " N"]:
    """``[N]``, from True, False, a mask or numbers of rows."""
    if isinstance(seen, bool):
        return torch.full((num_rows,), seen)
    values = torch.as_tensor(np.asarray(seen))
    if values.dtype == torch.bool and values.shape == (num_rows,):
        return values
    whole = values.dim() == 1 and not values.is_floating_point() and values.dtype != torch.bool
    if whole and (not len(values) or (int(values.min()) >= 0 and int(values.max()) < num_rows)):
        return torch.zeros(num_rows, dtype=torch.bool).index_fill(0, values.long(), True)
    raise ValueError(
        f"diagnose(seen_by_backbone=...): expected True, False, a mask [{num_rows}] or row numbers from 0 to {num_rows - 1}, got "
        f"{values.dtype} of shape {list(values.shape)}"
    )
