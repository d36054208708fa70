"""Advice on learning rates."""

import copy
from functools import cache
from pathlib import Path

import bll_pyro as bll
from benchmarks.options import Options
from benchmarks.practice.drawing import lines
from benchmarks.practice.finding import Finding
from benchmarks.practice.splits import loss, mean, network, seeds, split_of, trained
from benchmarks.report import Table, Target

TOPIC = "Learning rates"
RATES = (1e-4, 1e-3, 0.005, 0.02, 0.1, 0.5)
DEFAULT = 0.02
BACKBONE_RATES = (1e-5, 1e-4, 1e-3, 1e-2)
NUM_ROWS = 600


def last_layer(options: Options) -> Finding:
    """ELBO and test NLL by the rate of the last layer, in steps on batches."""
    table = Table(
        "Rate of the last layer: digits, 900 rows, 20 passes in batches of 50",
        {"rate": "learning rate", "elbo": "ELBO a row", "nll": "test NLL"},
        by_rate(options),
    )
    at = {row["rate"]: row["elbo"] for row in table.rows}
    target = Target(
        "ELBO a row of the rate 0.02 below the highest, nats", max(at.values()) - at[DEFAULT], 0.02
    )
    return Finding(
        TOPIC,
        "Leave the rate of the last layer at None",
        target,
        table,
        "rates",
        lambda path: _draw(table, path),
    )


def rate_of_a_network(options: Options) -> Finding:
    """The rate that is usual for whole networks."""
    at = {row["rate"]: row["elbo"] for row in by_rate(options)}
    target = Target("ELBO a row of the rate 0.001 below the highest, nats", max(at.values()) - at[1e-3], 0.02)
    return Finding(TOPIC, "Train the last layer with Adam's usual rate of 0.001", target)


def backbone(options: Options) -> Finding:
    """Joint training by the rate of the backbone: a network that begins anew, and one that is trained already."""
    columns = {
        "rate": "rate of the backbone",
        "new": "test NLL, network from scratch",
        "trained": "test NLL, trained network",
    }
    table = Table(f"Joint training, digits with noise, {NUM_ROWS} rows", columns)
    rates = BACKBONE_RATES[1:3] if options.small else BACKBONE_RATES
    frozen: dict[str, list[float]] = {"new": [], "trained": []}
    found: dict[tuple[float, str], list[float]] = {}
    for seed in seeds(options, 2):
        split = split_of("digits", 2 * NUM_ROWS, seed, noise=4.0)
        before, rows = (
            tuple(part[:NUM_ROWS] for part in split.train),
            tuple(part[NUM_ROWS:] for part in split.train),
        )
        nets = {"new": network(64, seed), "trained": trained(before, seed)[0]}
        for kind, net in nets.items():
            frozen[kind].append(loss(bll.fit(split.layer(), rows, net, seed=seed), split))
            for rate in rates:
                inference = bll.SVI(backbone_learning_rate=rate, num_epochs=1 if options.small else 100)
                fit = bll.fit(split.layer(), rows, copy.deepcopy(net), inference, seed=seed)
                found.setdefault((rate, kind), []).append(loss(fit, split))
    for rate in rates:
        table.rows.append({"rate": f"{rate:g}", **{kind: mean(found[rate, kind]) for kind in frozen}})
    table.rows.append({"rate": "frozen", **{kind: mean(values) for kind, values in frozen.items()}})
    new = {row["rate"]: float(row["new"]) for row in table.rows}
    target = Target(
        "test NLL of a network from scratch, rate 0.0001 over the best rate",
        new["0.0001"] / min(new.values()),
        1.05,
    )
    return Finding(TOPIC, "Train the backbone along with a rate of 0.0001", target, table)


@cache
def by_rate(options: Options) -> list[dict[str, float]]:
    """ELBO a row and test NLL of every rate, once for a run."""
    lines_found = []
    for rate in RATES:
        found: dict[str, list[float]] = {"elbo": [], "nll": []}
        for seed in seeds(options, 3):
            split = split_of("digits", 900, seed)
            inference = bll.SVI(learning_rate=rate, batch_size=50, num_epochs=2 if options.small else 20)
            fit = bll.fit(split.layer(0.5), split.train, inference=inference, calibration=None, seed=seed)
            found["elbo"].append(fit.elbo / 900)
            found["nll"].append(loss(fit, split))
        lines_found.append({"rate": rate, **{key: mean(values) for key, values in found.items()}})
    return lines_found


def _draw(table: Table, path: Path) -> None:
    highest = max(row["elbo"] for row in table.rows)
    curves = {"ELBO a row below the highest": [highest - row["elbo"] for row in table.rows]}
    lines(path, RATES, curves, "learning rate of the last layer", "nats a row")
