"""Joint training in half precision, and by accumulated gradients: test NLL beside that of float32."""

import sys
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bll_pyro as bll
from benchmarks.data import Images, fashion_images
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target
from benchmarks.scores import accuracy, nll
from bll_pyro.fitting.description import declared

NUM_SEEDS, NUM_EPOCHS, NUM_ROWS = 6, 6, 6000
BATCH_SIZE, ACCUMULATED, RATE = 128, 4, 3e-3
LIMIT = 0.005  # nats a row
REFERENCE = "float32"
PLAIN = bll.SVI(backbone_learning_rate=RATE, num_epochs=NUM_EPOCHS, batch_size=BATCH_SIZE)
SMALL_BATCHES = replace(
    PLAIN, batch_size=BATCH_SIZE // ACCUMULATED, training=bll.BackboneTraining(accumulate=ACCUMULATED)
)
METHODS = {
    REFERENCE: PLAIN,
    "bf16-mixed": replace(PLAIN, precision="bf16-mixed"),
    f"{ACCUMULATED} batches of {SMALL_BATCHES.batch_size} to a step": SMALL_BATCHES,
    "both": replace(SMALL_BATCHES, precision="bf16-mixed"),
}
COLUMNS = {
    "method": "",
    "nll": "test NLL, mean (standard error)",
    "less": f"less {REFERENCE}, seed by seed",
    "accuracy": "accuracy",
    "seconds": "fit, s",
}


def run(options: Options) -> Report:
    """Train a small network with every method and seed, on the same rows in the same order."""
    images = fashion_images()
    num_rows, seeds = (600, 1) if options.small else (NUM_ROWS, NUM_SEEDS)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in range(seeds):
        for name, svi in METHODS.items():
            short = replace(svi, num_epochs=1) if options.small else svi
            rounds[name].append(judged(images, num_rows, short, seed))
    table = Table(
        f"{seeds} seeds, {num_rows:,} training images, {len(images.test[0]):,} test images", dict(COLUMNS)
    )
    report = Report("precision", "Joint training in half precision, and by accumulated gradients", [table])
    reference = np.array([one["nll"] for one in rounds[REFERENCE]])
    for name, ones in rounds.items():
        values = np.array([one["nll"] for one in ones])
        table.rows.append(
            {
                "method": name,
                "nll": shown(values),
                "less": None if name == REFERENCE else shown(values - reference),
                "accuracy": float(np.mean([one["accuracy"] for one in ones])),
                "seconds": float(np.median([one["seconds"] for one in ones])),
                "seeds": ones,
            }
        )
        if name != REFERENCE:
            gap = abs(float(np.mean(values - reference)))
            report.targets.append(
                Target(f"{name}: NLL less that of {REFERENCE}, size of the mean", gap, LIMIT)
            )
    report.notes += [
        "Network: two convolutions (8 channels of 5 x 5, 16 of 3 x 3, stride 2) and a hidden layer of 64 units, ReLU, no "
        "BatchNorm, whose statistics would be those of smaller batches. It starts from the same weights in all methods of a seed.",
        f"`{declared(PLAIN)}`; a step has {BATCH_SIZE} rows in every method, the same ones in the same order. Random draws of "
        "the ELBO differ between the methods, except for bf16. The final stage is in float32 in all of them.",
        "A processor without bf16 arithmetic of its own computes it in float32 and rounds, which takes longer; seconds are of "
        "a busy machine.",
    ]
    return report


def network(seed: int) -> nn.Module:
    """Images ``[N, 1, 28, 28]`` to features ``[N, 64]``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 5 * 5, 64), nn.ReLU(),
        )  # fmt: skip


def judged(images: Images, num_rows: int, svi: bll.SVI, seed: int) -> dict[str, float]:
    """Test scores of one joint fit; the training images of a seed are drawn from all of them."""
    random = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images.train[0]), generator=random)[:num_rows]
    rows: tuple[Tensor, Tensor] = images.train[0][chosen], images.train[1][chosen]
    began = time.perf_counter()
    with warnings.catch_warnings():  # short fits warn
        warnings.simplefilter("ignore", bll.FitWarning)
        fit: Any = bll.fit(
            bll.LastLayer(bll.likelihoods.Categorical(10)), rows, network(seed), svi, seed=seed
        )
    seconds = time.perf_counter() - began
    probs = fit.predict(images.test[0]).probs
    found = {
        "nll": nll(probs, images.test[1]),
        "accuracy": accuracy(probs, images.test[1]),
        "seconds": seconds,
    }
    print(seed, svi.precision, svi.batch_size, found, file=sys.stderr, flush=True)
    return found


def shown(values: np.ndarray) -> str:
    """Mean and standard error as a cell."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{values.mean():.4f} ({error:.2g})"
