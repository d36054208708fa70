"""What the prior says before it has seen a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bll_pyro import plots
from bll_pyro.datatree import prior_predictive
from bll_pyro.reporting.blocks import Chart, Section
from bll_pyro.reporting.material import Material
from bll_pyro.reporting.pictures import untitled

if TYPE_CHECKING:
    import xarray as xr

NUM_ROWS, MOST_DRAWS, FEWEST_DRAWS = 100, 200, 20
MOST_NUMBERS = 2_000_000  # of outputs: rows x draws x outputs
MOST_WEIGHTS = 50_000_000  # that are drawn


def prior_section(material: Material) -> Section | None:
    """Outputs and targets under the prior, on some of the rows; None where a prior or the rows do not allow it."""
    fit = material.fit
    rows = material.train if material.train is not None else material.rows
    if rows is None or len(rows.features) < 2 or not fit.layer.prior.has_density:
        return None
    size = fit.posterior.num_outputs
    number = max(2, min(NUM_ROWS, len(rows.features), MOST_NUMBERS // (FEWEST_DRAWS * size)))
    draws = min(MOST_NUMBERS // (number * size), MOST_WEIGHTS // (size * fit.posterior.frame.num_features))
    step = max(1, len(rows.features) // number)
    learned: Any = {name: value.cpu() for name, value in fit.posterior.learned.items()}
    tree = prior_predictive(
        fit.layer,
        rows.features[::step][:number],
        rows.given[::step][:number],
        num_draws=max(FEWEST_DRAWS, min(MOST_DRAWS, draws)),
        seed=material.seed,
        learned=learned or None,
    )
    return Section(
        "Prior predictive",
        "prior",
        "What the prior alone, with the learned scales, says of the rows: it should leave everything open that is "
        "possible, and not be sure "
        "before it has seen a target.",
        [_picture(tree)],
    )


def _picture(tree: xr.DataTree) -> Chart:
    group = tree["prior_predictive"].to_dataset()
    spread = float(group["f"].std())
    if "entropy" in group:
        entropy, number = group["entropy"].values, group.sizes.get("class", 2)
        most = float(np.log(number))
        seen = f"the mean entropy of the class is {float(entropy.mean()):.3g} of at most {most:.3g} nats"
        reading = (
            "Above are the outputs under the prior, below the entropy of the class: near the dashed line the prior "
            "leaves the class open, near zero it "
            "is sure of one before it has seen any label."
        )
    else:
        low, high = np.quantile(group["y"].values, [0.05, 0.95])
        seen = f"90 % of the targets under the prior lie between {low:.3g} and {high:.3g}"
        reading = "Above are the outputs under the prior, below its targets beside those observed: it should cover them "
        "without being wider by far."
    return Chart(
        "Outputs and targets under the prior",
        lambda: untitled(plots.prior_predictive(tree, size=(4.8, 4.8))),
        reading,
        f"Histograms under the prior: the standard deviation of an output is {spread:.3g}, and {seen}.",
    )
