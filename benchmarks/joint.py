"""Joint training on small tables: what 90% intervals hold with rows kept for a noise factor, and without."""

import time
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bll_pyro as bll
from benchmarks.data import data_folder
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

DATA = ("concrete", "energy", "yacht")
NUM_SPLITS = 20  # all that are published
COVERAGE, LEAST, MOST = 0.9, 0.86, 0.94  # of the intervals, and of the test rows that they must hold
WIDTH, RATE, NUM_EPOCHS = 50, 1e-2, 200  # of a network of two hidden layers, and of its training
CASES = (  # likelihood, and `calibration=`
    ("Gaussian", bll.AUTOMATIC),
    ("Gaussian", None),
    ("StudentT", bll.AUTOMATIC),
    ("HeteroscedasticGaussian", bll.AUTOMATIC),
)
COLUMNS = {
    "data": "",
    "likelihood": "",
    "calibration": "",
    "inside": "share of test rows inside 90% intervals",
    "nll": "test NLL, nats a row",
    "rmse": "test RMSE",
    "width": "mean width",
    "factor": "noise factor, from .. to",
    "each": "share inside, each split",
    "seconds": "fit, s",
}
Split = tuple[Tensor, Tensor, Tensor, Tensor]


def run(options: Options) -> Report:
    """Fit network and last layer jointly on the standard splits: by default, with all rows in training, and with other noise."""
    num_epochs = 5 if options.small else NUM_EPOCHS
    splits = range(1 if options.small else NUM_SPLITS)
    table = Table(f"Mean over {len(splits)} splits", dict(COLUMNS))
    report = Report("joint", "Joint training on small tables: rows kept for a noise factor", [table])
    for name in DATA[-1:] if options.small else DATA:
        found = []
        for likelihood, given in CASES:
            ones = [judge(split_of(name, k), likelihood, given, k, num_epochs) for k in splits]
            found.append(row_of(name, likelihood, "None" if given is None else "default", ones))
        table.rows += found
        inside = found[0]["inside"]
        report.targets += [
            Target(f"{name}: share inside", inside, LEAST, ">="),
            Target(f"{name}: share inside", inside, MOST),
            Target(f"{name}: NLL less that of None", found[0]["nll"] - found[1]["nll"], 0.0),
        ]
    report.notes += [
        f"Network: two hidden layers of {WIDTH} units, ReLU, trained with the last layer by "
        f"`SVI(backbone_learning_rate={RATE}, num_epochs={num_epochs})` and its final stage. "
        "Inputs are standardised.",
        "By default a tenth of the training rows, 50 at least, is kept from a first training for the noise factor; a second "
        "training has all rows. None has all rows in training and no factor.",
        "How many rows are kept was chosen on splits 0 to 4 of concrete and energy; the others, and yacht, were not looked at for "
        "it. At first splits 0 to 9 alone were run; 10 to 19 were added later. The second training was decided by splits 0 to 4 of "
        "four tables, with networks of one hidden layer (decision 13). Targets are those of `Gaussian()`; the others were run at "
        "the end, and nothing was chosen by them.",
    ]
    return report


def split_of(name: str, number: int) -> Split:
    """Training inputs and targets, test inputs and targets of a standard split, inputs standardised by the training rows."""
    with np.load(data_folder() / "uci" / f"{name}.npz", allow_pickle=False) as stored:
        rows = {part: stored[f"{part}_{number}"] for part in ("train", "test")}
        inputs, targets = torch.from_numpy(stored["X"]).float(), torch.from_numpy(stored["y"]).float()
    train, test = inputs[rows["train"]], inputs[rows["test"]]
    center, scale = train.mean(0), train.std(0).clamp_min(1e-12)
    return (
        (train - center) / scale, targets[rows["train"]],
        (test - center) / scale, targets[rows["test"]],
    )  # fmt: skip


def judge(split: Split, likelihood: str, calibration: Any, seed: int, num_epochs: int) -> dict[str, float]:
    """Test scores of one joint fit."""
    inputs, targets, test_inputs, test_targets = split
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(inputs.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
        )
    layer = bll.LastLayer(getattr(bll.likelihoods, likelihood)())
    inference = bll.SVI(backbone_learning_rate=RATE, num_epochs=num_epochs)
    began = time.perf_counter()
    with warnings.catch_warnings():  # None warns, and so do short fits
        warnings.simplefilter("ignore", bll.FitWarning)
        fit = bll.fit(layer, (inputs, targets), network, inference, seed=seed, calibration=calibration)
    seconds = time.perf_counter() - began
    prediction = fit.predict(test_inputs)
    low, high = prediction.interval(COVERAGE)
    return {
        "inside": float(((low <= test_targets) & (test_targets <= high)).float().mean()),
        "nll": -float(prediction.log_prob(test_targets).mean()),
        "rmse": float((prediction.mean - test_targets).square().mean().sqrt()),
        "width": float((high - low).mean()),
        "factor": 1.0 if fit.recalibration is None else fit.recalibration.factor,
        "seconds": seconds,
    }


def row_of(name: str, likelihood: str, calibration: str, ones: list[dict[str, float]]) -> dict[str, Any]:
    """A row of the table."""
    means: dict[str, Any] = {key: float(np.mean([one[key] for one in ones])) for key in ones[0]}
    factors = [one["factor"] for one in ones]
    return means | {
        "data": name,
        "likelihood": likelihood,
        "calibration": calibration,
        "factor": "-" if calibration == "None" else f"{min(factors):.2f} .. {max(factors):.2f}",
        "each": ", ".join(f"{one['inside']:.2f}" for one in ones),
        "splits": ones,
    }
