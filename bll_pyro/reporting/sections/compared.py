"""Several fits of the same rows beside each other."""

from __future__ import annotations

import math

from bll_pyro.reporting.blocks import Cell, Finding, Section, SortableTable, number, short_name, whole
from bll_pyro.reporting.material import Material

# column of the comparison: heading, what it means, decimals
COLUMNS = {
    "elpd": ("ELPD", "expected log predictive density by leave-one-out, nats; higher is better", 1),
    "elpd_diff": ("from the best", "difference to the best fit, nats", 1),
    "dse": ("± of it", "standard error of that difference; below two of them it is no evidence", 1),
    "p": ("effective parameters", "how many parameters the data determine", 1),
    "weight": ("weight", "share in the mixture that predicts best", 3),
    "new_nll": ("new NLL", "negative log likelihood on held-out rows, nats a row; lower is better", 4),
    "new_ece": ("new ECE", "calibration error there; lower is better", 4),
    "new_rmse": ("new RMSE", "root mean squared error there; lower is better", 4),
    "new_coverage": ("new coverage", "share of held-out targets in the 90 % interval", 3),
    "flagged": ("flagged", "rows whose leave-one-out density is not reliable", 0),
    "seconds": ("seconds", "that the fit took", 1),
}


def compared_section(material: Material) -> Section | None:
    """The table of a comparison, the best first."""
    comparison = material.comparison
    if comparison is None:
        return None
    table = comparison.table
    names = [name for name in COLUMNS if name in table]
    rows = []
    for fit, line in table.iterrows():
        cells = [
            whole(int(line[name])) if name == "flagged" else number(float(line[name]), COLUMNS[name][2])
            for name in names
        ]
        rows.append([Cell(short_name(fit)), *cells])
    columns = {"fit": "", **{COLUMNS[name][0]: COLUMNS[name][1] for name in names}}
    note = ""
    if comparison.stacked_nll is not None:
        stacked = f"{comparison.stacked_nll:.4f} nats a row on the held-out rows."
        note = f"The mixture of all fits by their weights has an NLL of {stacked}"
    return Section(
        "Comparison",
        "comparison",
        "Fits of the same rows, ranked by how well each predicts a row that it was fitted without.",
        [SortableTable(f"{len(table)} fits, the best first", columns, rows, note)],
        findings=[_best(comparison)],
        details={
            "fits": {str(fit): {name: float(line[name]) for name in names} for fit, line in table.iterrows()}
        },
    )


def _best(comparison: object) -> Finding:
    table = comparison.table  # type: ignore[attr-defined]
    best = short_name(table.index[0])
    if len(table) < 2:
        return Finding(f"There is one fit, {best}.")
    second = table.iloc[1]
    difference, error = abs(float(second["elpd_diff"])), float(second["dse"])
    if difference < 4 or not math.isfinite(error) or difference < 2 * error:
        return Finding(
            f"Of the {len(table)} fits {best} is first, but not clearly better than {short_name(table.index[1])}."
        )
    return Finding(f"Of the {len(table)} fits {best} predicts best, by {difference:.1f} ± {error:.1f} nats.")
