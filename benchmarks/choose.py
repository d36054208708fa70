"""The likelihood that ``bll.choose`` picks against test rows, and what the choice costs, on two tables of UCI."""

import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data import data_folder
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

TABLES = ("yacht", "power")
NUM_SPLITS = 10  # of the published ones, from the first on
WIDTH, NUM_EPOCHS, BATCH_SIZE, LEARNING_RATE = 50, 40, 32, 1e-2
MOST_STEPS = 2_000  # of a network: 40 epochs of a small table, 7 of the large one
PAIR = ("Gaussian", "HeteroscedasticGaussian")
MEANS = {
    "table": "table",
    "method": "method",
    "nll": "test NLL of its choice, mean",
    "right": "share of splits with the better of Gaussian and heteroscedastic",
    "cost": "CPU time over one fit of the chosen declaration, median",
    "gaussian": "over a Gaussian fit, the cheapest",
}
COLUMNS = {
    "split": "split",
    "choice": "chosen of three",
    "test": "best on the test rows",
    "pair": "chosen of Gaussian and heteroscedastic",
    "right": "the better on the test rows",
    "Gaussian": "test NLL, Gaussian",
    "StudentT": "StudentT",
    "HeteroscedasticGaussian": "HeteroscedasticGaussian",
    "difference": "heteroscedastic less Gaussian, nats a row: by leave-one-out",
    "test_difference": "on the test rows (standard error)",
    "over_chosen": "CPU time over one fit of the chosen declaration",
    "over_gaussian": "over a Gaussian fit",
}


class Features(nn.Module):
    """Two hidden layers of 50 on standardised inputs."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.center, self.scale = inputs.mean(0), inputs.std(0) + 1e-8
        self.layers = nn.Sequential(
            nn.Linear(inputs.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``[N, 50]``."""
        features: Tensor = self.layers((inputs - self.center) / self.scale)
        return features


def trained(inputs: Tensor, targets: Tensor, seed: int) -> Features:
    """A network trained on the squared error of all training rows, by Adam, as the published splits are used."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network, head = Features(inputs), nn.Linear(WIDTH, 1)
        optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=LEARNING_RATE)
        standardised = (targets - targets.mean()) / targets.std()
        num_steps = 0
        for _ in range(NUM_EPOCHS):
            for index in torch.randperm(len(inputs)).split(BATCH_SIZE):
                loss = (head(network(inputs[index]))[:, 0] - standardised[index]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            num_steps += math.ceil(len(inputs) / BATCH_SIZE)
            if num_steps >= MOST_STEPS:
                break
    return network


def split_of(name: str, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test rows: inputs ``[N, D]`` and targets ``[N]``."""
    with np.load(data_folder() / "uci" / f"{name}.npz", allow_pickle=False) as stored:
        inputs, targets = (torch.from_numpy(stored[key]).float() for key in ("X", "y"))
        train, test = (torch.from_numpy(stored[f"{part}_{number}"]).long() for part in ("train", "test"))
    return inputs[train], targets[train].flatten(), inputs[test], targets[test].flatten()


def run(options: Options) -> Report:
    """Choices and scores of each split, and of what always takes the same likelihood."""
    report = Report("choose", "The likelihood that is picked, against test rows")
    try:
        data_folder()
    except FileNotFoundError:
        report.notes.append("The tables are not there, left out.")
        return report
    num_splits = 1 if options.small else NUM_SPLITS
    if not options.small:
        _judge("yacht", NUM_SPLITS)  # warm-up, with lazy imports
    means = Table(f"Means over {num_splits} splits", dict(MEANS))
    report.tables.append(means)
    for name in TABLES[:1] if options.small else TABLES:
        lines = [_judge(name, number) for number in range(num_splits)]
        report.tables.append(Table(f"{name}, each split", dict(COLUMNS), lines))
        means.rows += _means(name, lines)
        right, cost = means.rows[-1]["right"], means.rows[-1]["cost"]
        report.targets += [
            Target(
                f"{name}: share of splits with the better of Gaussian and heteroscedastic", right, 0.8, ">="
            ),
            Target(f"{name}: cost over one fit of the chosen declaration, median", cost, 5.0),
        ]
    report.notes += [
        f"Features of a network with two hidden layers of {WIDTH}, trained on the squared error of all training rows: Adam, "
        f"{LEARNING_RATE:g}, {NUM_EPOCHS} epochs of batches of {BATCH_SIZE}, at most {MOST_STEPS:,} steps. It has seen the rows "
        "that are left out.",
        "The rest is the default: SVI, a learned prior scale, three likelihoods. Cost: CPU seconds of bll.choose over those of "
        "one bll.fit on the same data: of the declaration that it chooses, which is what a user pays who knows it beforehand, and "
        "of the Gaussian, whose fit is the cheapest of the three. Training of the network is no part of it.",
    ]
    return report


def _judge(name: str, number: int) -> dict[str, Any]:
    import bll_pyro as bll

    inputs, targets, test_inputs, test_targets = split_of(name, number)
    network = trained(inputs, targets, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the rows of the JSON file have what did not go as it should
        seconds, result = timed(lambda: bll.choose(None, (inputs, targets), network, seed=number))
        alone = {}
        for kind in ("Gaussian", result.best):
            layer = result.fits[kind].layer
            alone[kind], _ = timed(partial(bll.fit, layer, (inputs, targets), network, seed=number))
    test = {
        kind: one.predict(test_inputs).log_prob(test_targets).double() for kind, one in result.fits.items()
    }
    nll = {kind: -float(values.mean()) for kind, values in test.items()}
    difference = test[PAIR[0]] - test[PAIR[1]]
    error = float(difference.std()) / len(difference) ** 0.5
    table = result.table
    return {
        "method": "bll_pyro, bll.choose",
        "split": number,
        "choice": result.best,
        "test": min(nll, key=lambda kind: nll[kind]),
        "pair": max(PAIR, key=lambda kind: table.loc[kind, "elpd"]),
        "right": min(PAIR, key=lambda kind: nll[kind]),
        **nll,
        "difference": float(table.loc[PAIR[0], "elpd"] - table.loc[PAIR[1], "elpd"]) / len(targets),
        "test_difference": f"{float(difference.mean()):.3f} ({error:.3f})",
        "over_chosen": seconds / alone[result.best],
        "over_gaussian": seconds / alone["Gaussian"],
        "seconds": seconds,
        "messages": {str(kind): str(said) for kind, said in table["message"].items()},
    }


def _means(name: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean test NLL of always the same likelihood, of the best of each split, and of the one that is chosen."""
    kinds = ("Gaussian", "StudentT", "HeteroscedasticGaussian")
    found: list[dict[str, Any]] = [
        {
            "method": f"always {kind}",
            "nll": float(np.mean([line[kind] for line in lines])),
            "right": float(np.mean([kind == line["right"] for line in lines])) if kind in PAIR else None,
            "gaussian": 1.0 if kind == "Gaussian" else None,
        }
        for kind in kinds
    ]
    best = float(np.mean([min(line[kind] for kind in kinds) for line in lines]))
    found.append({"method": "the best of each split", "nll": best, "right": 1.0})
    found.append(
        {
            "method": "bll_pyro, bll.choose",
            "nll": float(np.mean([line[line["choice"]] for line in lines])),
            "right": float(np.mean([line["pair"] == line["right"] for line in lines])),
            "cost": float(np.median([line["over_chosen"] for line in lines])),
            "gaussian": float(np.median([line["over_gaussian"] for line in lines])),
        }
    )
    return [{"table": name, **line} for line in found]


def timed[R](call: Callable[[], R]) -> tuple[float, R]:
    """CPU seconds of a call, which other work on the machine hardly affects, and its result."""
    began = time.process_time()
    result = call()
    return time.process_time() - began, result
