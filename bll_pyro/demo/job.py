"""The job of ``bll demo``: train, evaluate, write, print."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import bll_pyro as bll
from bll_pyro import observation
from bll_pyro.demo import pictures
from bll_pyro.demo.data import Digits, load_digits
from bll_pyro.demo.folder import replaced_when_complete
from bll_pyro.demo.heads import NETWORK, train_heads
from bll_pyro.demo.table import HeadResult, evaluate_head, make_tables
from bll_pyro.prediction import PredictiveTemperature

PICTURES = ("reliability.png", "entropy.png", "largest_weights.png", "most_uncertain.png")
CONTENTS = ("metrics.json", "model", "posterior.nc", *PICTURES)
NUM_DRAWS = 1000  # draws in posterior.nc


def run(out: Path, seed: int, quick: bool) -> None:
    """Run the demo; `out` is created or replaced when all results are written."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected a whole number from 0 to 2**32 - 1, got {seed}; use for example 0")
    console = Console(highlight=False)
    began = time.perf_counter()
    with observation.call("demo"), replaced_when_complete(out, CONTENTS) as folder:
        digits = load_digits(seed, quick)
        heads = train_heads(digits, seed, quick, say=print)
        judged = {name: evaluate_head(head, digits) for name, head in heads.items()}
        print("Model, posterior and pictures")
        write_fit(folder, judged["bayesian_joint"].head.fit, digits)
        write_pictures(folder, judged, digits)
        seconds = time.perf_counter() - began
        metrics = figures(judged, digits, seed, quick) | {"seconds": round(seconds, 1)}
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    console.print()
    for table in make_tables(judged, digits):
        console.print(table)
    console.print(f"{seconds:.0f} seconds; all results are in {out}/", soft_wrap=True)


def figures(judged: dict[str, HeadResult], digits: Digits, seed: int, quick: bool) -> dict[str, Any]:
    """The contents of metrics.json."""
    recalibration = judged["softmax_temperature"].head.fit.recalibration
    assert isinstance(recalibration, PredictiveTemperature)
    return {
        "version": bll.__version__,
        "seed": seed,
        "quick": quick,
        "threads": torch.get_num_threads(),
        "network": NETWORK,
        "rows": digits.num_rows,
        "softmax_temperature": recalibration.temperature,
        "heads": {
            name: {
                "title": one.head.title,
                **one.scores,
                "noisy": one.noisy_scores,
                "seconds": round(one.head.seconds, 2),
            }
            for name, one in judged.items()
        },
    }


def write_fit(folder: Path, fit: bll.Fit, digits: Digits) -> None:
    """Save the fit, and its posterior on the rows that it was fitted to."""
    fit.save(folder / "model")
    tree = fit.to_datatree(*digits.train, num_draws=NUM_DRAWS)
    tree.to_netcdf(folder / "posterior.nc", engine="h5netcdf")


def write_pictures(folder: Path, judged: dict[str, HeadResult], digits: Digits) -> None:
    """Draw the four pictures."""
    reliability, entropy, weights, uncertain = (folder / name for name in PICTURES)
    joint = judged["bayesian_joint"]
    pictures.draw_reliability(judged, digits).savefig(reliability, dpi=pictures.DPI)
    pictures.draw_entropy(judged).savefig(entropy, dpi=pictures.DPI)
    pictures.draw_largest_weights(joint.head.fit, weights)
    pictures.draw_most_uncertain(joint, digits).savefig(uncertain, dpi=pictures.DPI)
