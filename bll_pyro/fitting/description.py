"""What a fit says of itself when it is printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bll_pyro.declaration import Declaration
from bll_pyro.inference.own_loop import OwnLoop
from bll_pyro.summary import brief

if TYPE_CHECKING:
    from bll_pyro.fitting.result import Fit

NUM_NAMES = 8  # of columns, in print


def declared(value: Any) -> str:
    """A declaration with only what differs from its defaults."""
    if not (isinstance(value, Declaration) and dataclasses.is_dataclass(value)):
        if isinstance(value, tuple) and value and all(isinstance(part, Declaration) for part in value):
            return f"({', '.join(map(declared, value))})"
        return brief(value)
    said = []
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        is_default = type(given) is type(field.default) and repr(given) == repr(field.default)
        if field.init and field.repr and not is_default:
            said.append(f"{field.name}={declared(given)}")
    return f"{type(value).__name__}({', '.join(said)})"


def scale_of_features(fit: Fit) -> str:
    """How the features were scaled, and which were left out."""
    frame = fit.posterior.frame
    if not fit.layer.standardize:
        return "features as they are"
    is_left_out, names = frame.scale.isinf(), fit.head.feature_names
    number = int(is_left_out.sum())
    which = (
        "" if names is None else f" ({names_shown([name for name, out in zip(names, is_left_out) if out])})"
    )
    constant = f"; {number:,} constant in the training rows{which}, left out" if number else ""
    return f"one for {'all features' if frame.feature_scale == 'common' else 'each feature'}{constant}"


def names_shown(names: Sequence[str]) -> str:
    """The first names of columns, and how many more there are."""
    more = f" and {len(names) - NUM_NAMES:,} more" if len(names) > NUM_NAMES else ""
    return ", ".join(names[:NUM_NAMES]) + more


def lines_of(fit: Fit) -> dict[str, str]:
    """Declaration, data, columns, scales, inference, ELBO or evidence, recalibration, detector, and what went wrong."""
    posterior, trace = fit.posterior, fit.trace
    num_rows, num_features, num_outputs = fit.num_rows, posterior.frame.num_features, posterior.num_outputs
    backbone = "" if fit.backbone is None else f", by a {type(fit.backbone).__name__}"
    targets = f", {posterior.target_shape[0]} targets a row" if posterior.target_shape else ""
    value, name = trace.final_elbo, "ELBO"
    if value is None:
        value, name = trace.log_evidence, "log evidence"
    how = f"{declared(fit.inference)}, seed {fit.seed}"
    if not isinstance(fit.inference, OwnLoop):  # of which nobody has told the fit
        how += f": {'converged' if trace.converged else 'not converged'} in {trace.wall_time:.1f} s"
    said = [*(trace.joint.messages if trace.joint else ()), *trace.messages]
    return {
        "declaration": declared(fit.layer),
        "data": f"{num_rows:,} rows{targets}, {num_features:,} features{backbone}, {num_outputs:,} outputs",
        "columns": "" if fit.feature_names is None else names_shown(fit.feature_names),
        "classes": str(fit.layer.likelihood.coding or ""),
        "scale": scale_of_features(fit),
        "inference": how,
        "learned": ", ".join(f"{key} = {brief(one)}" for key, one in posterior.learned.items()),
        name: "" if value is None else f"{value:.1f} nats, {value / max(num_rows, 1):.4g} a row",
        "recalibration": "" if fit.recalibration is None else declared(fit.recalibration),
        "found": "" if fit.recalibration is None else str(fit.recalibration.found_on or ""),
        "detector": "" if fit.detector is None else declared(fit.detector),
        "rows": "" if fit.detector is None else fit.detector.rows_of_each,
        "warnings": "; ".join(said),
        "notes": "; ".join(trace.notes),
    }
