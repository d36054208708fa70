"""What was fitted, on what, and with which versions."""

from __future__ import annotations

import platform
from importlib import metadata

from bll_pyro.datatree.fit_tree import yaml_of
from bll_pyro.reporting.blocks import Facts, Listing, Section
from bll_pyro.reporting.material import Material

TITLES = {
    "declaration": "Declaration",
    "data": "Training data",
    "scale": "Scale of features",
    "inference": "Inference",
    "learned": "Learned from the data",
    "ELBO": "ELBO (lower bound of the log evidence)",
    "log evidence": "Log evidence",
    "recalibration": "Recalibration",
    "found": "Found on",
    "detector": "Detector of unknown inputs",
    "rows": "Rows of the detector",
    "warnings": "Warnings",
    "notes": "Notes",
}
PACKAGES = ("bll-pyro", "torch", "pyro-ppl", "numpy")


def fitted_section(material: Material) -> Section:
    """The declaration in words and as YAML, sizes, seed and versions."""
    fit = material.fit
    facts = {TITLES.get(name, name): text for name, text in fit.lines().items() if text}
    facts["Judged on"] = rows_in_words(material)
    versions = {name: metadata.version(name) for name in PACKAGES} | {"Python": platform.python_version()}
    facts["Versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    declared = {"layer": yaml_of(fit.layer), "inference": yaml_of(fit.inference)}
    return Section(
        "What was fitted",
        "fitted",
        "The declaration says what is believed of weights and targets, the inference how the posterior was found.",
        [
            Facts(facts),
            *(Listing(f"Declaration of the {name} as YAML", text) for name, text in declared.items()),
        ],
        metrics={
            "num_training_rows": fit.num_rows,
            "num_rows": material.num_rows,
            "num_features": fit.posterior.frame.num_features,
        },
        details={"facts": facts, "versions": versions, "seed": fit.seed, **declared},
    )


def rows_in_words(material: Material) -> str:
    """Numbers of rows of each kind."""
    parts = [f"{material.num_rows:,} rows" + ("" if material.rows else " without targets")]
    for rows, what in ((material.train, "training"), (material.held_out, "held-out")):
        if rows is not None:
            parts.append(f"{len(rows.targets):,} {what} rows")
    if material.unknown is not None:
        parts.append(f"{len(material.unknown):,} rows from elsewhere")
    return ", ".join(parts)
