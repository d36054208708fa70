"""The strongest weights with their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from bll_pyro import plots
from bll_pyro.reporting.blocks import Chart, Section, short_name
from bll_pyro.reporting.material import Material

INTERVAL = 0.89  # probability of the wider interval, that of ArviZ
MOST_LETTERS = 22  # of a name beside the picture


def weights_section(material: Material) -> Section:
    """A forest plot of the weights with the largest posterior mean."""
    found = material.weights
    outputs, features = _output_names(material), material.feature_names
    largest = _strongest(found.mean[np.ix_(found.outputs, found.features)])
    details: list[dict[str, Any]] = []
    low, high = np.quantile(found.draws, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], axis=0)
    for i, j in largest:
        k, d = int(found.outputs[i]), int(found.features[j])
        mean = float(found.draws[:, i, j].mean())
        details.append(
            {
                "output": outputs[k],
                "feature": features[d],
                "mean": mean,
                "low": float(low[i, j]),
                "high": float(high[i, j]),
            }
        )
    clear = sum(one["low"] > 0 or one["high"] < 0 for one in details)
    strongest = max(details, key=lambda one: abs(one["mean"]))
    num_all = found.mean.size
    return Section(
        "Strongest weights",
        "weights",
        f"Of {num_all:,} weights those with the largest posterior mean. Weights are those of standardised features, so "
        f"that their sizes can be "
        "compared.",
        [
            Chart(
                "Weights with their intervals",
                lambda: _forest(material, outputs, features),
                "Each line is a weight: the point is its posterior mean, the thick line holds it with probability 50 %, "
                "the thin one with 89 %; "
                "where a line crosses zero, the sign is open.",
                f"Forest plot of {len(details)} weights: the intervals of {clear} do not contain zero; the largest is "
                f"{strongest['mean']:.3g}, of "
                f"{short_name(strongest['output'])} and {short_name(strongest['feature'])}.",
            )
        ],
        details={"weights": details},
    )


def _output_names(material: Material) -> list[str]:
    """Classes, labels or targets where there is an output for each, else numbers."""
    number, names = material.fit.posterior.num_outputs, material.classes
    if len(names) == number:
        return names
    return ["output"] if number == 1 else [f"output {k}" for k in range(number)]


def _strongest(mean: np.ndarray) -> list[tuple[int, int]]:
    """Positions of the weights that the picture shows: as many of each output."""
    each = max(1, 20 // len(mean))
    order = np.argsort(-np.abs(mean), 1, kind="stable")[:, :each]
    return [(i, int(j)) for i, line in enumerate(order) for j in line]


def _forest(material: Material, outputs: list[str], features: list[str]) -> Any:
    import xarray as xr

    found = material.weights
    each = max(1, min(20 // len(found.outputs), len(found.features)))
    coords = {
        "output": _different([short_name(outputs[k], MOST_LETTERS) for k in found.outputs]),
        "feature": _different([short_name(features[d], MOST_LETTERS) for d in found.features]),
    }
    draws = xr.DataArray(found.draws[None], dims=("chain", "draw", "output", "feature"), coords=coords)
    tree = xr.DataTree.from_dict({"posterior": xr.Dataset({"weight": draws})})
    lines = each * len(found.outputs)
    plot = plots.weights_forest(tree, num_features=each, size=(4.8, 0.9 + 0.21 * lines))
    figure = plot.viz["figure"].item()
    figure.axes[-1].set_xlabel("weight of a standardised feature")
    return figure


def _different(names: list[str]) -> list[str]:
    """Names that are all different, also where they were cut to the same letters."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
