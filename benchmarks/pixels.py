"""Fashion-MNIST from pixels: a small network trained plainly, in two stages, and jointly with its Bayesian last layer."""

import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

import bll_pyro as bll
from benchmarks.data import Images, fashion_images
from benchmarks.options import Options
from benchmarks.pixel_methods import (
    BATCH_SIZE,
    JOINT,
    METHODS,
    PLAIN,
    TEMPERED,
    TRIALS,
    Method,
    Ours,
    Rows,
    Trained,
)
from benchmarks.report import Report, Table, Target
from benchmarks.scores import accuracy, auroc, classification_scores, nll

NUM_SEEDS, NUM_EPOCHS = 3, 8
KEPT = 0.1  # of the rows, for temperatures: what a joint fit keeps by default
TUNING_SEED = 100
DETECTOR_ROWS = 5000  # training rows for the parts of the default detector
LOSS, MINUTES = 0.005, 10  # of accuracy, and for one fit
SCORES = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE (15)",
    "auroc_entropy": "AUROC, entropy",
    "auroc_epistemic": "AUROC, epistemic",
    "auroc_default": "AUROC, default detector",
    "temperature": "temperature",
    "processor_seconds": "processor, s",
    "seconds": "wall, s",
}


def notes(rate: float) -> list[str]:
    """What the tables mean."""
    return [
        "Network: convolutions of 16 (5 x 5) and 32 channels (3 x 3), each of stride 2 and with ReLU, and a hidden layer of 128 "
        "units: the features. It starts from the same weights in all methods of a seed.",
        f"Same rows in the same order, {NUM_EPOCHS} epochs in batches of {BATCH_SIZE}, Adam with decay rates .9 and .99, a rate of "
        f"{rate:g} that falls along half a cosine, no weight decay, no augmentation, one thread. Of the 60,000 training rows a "
        "stratified tenth is kept: it gives the temperatures of plain + temperature and of both fits of bll_pyro, and calibrates "
        "the detector.",
        f"Joint: `SVI(backbone_learning_rate={rate:g})`, with its final stage. Two-stage: the network with a point estimate "
        "(`guides.MAP()`, `standardize=False`, `learning_rate=0.005`), then the default fit on its features. A plain head has the "
        "rate of its network.",
        "The rate of the network is the one that is best for the plain network, on another tenth of the training rows, with a seed "
        "of its own (the last table). The defaults were chosen on training rows too. No choice saw test rows.",
        "Unknown rows: the 10,000 MNIST test digits against the 10,000 test images. The default detector takes kept rows and "
        f"{DETECTOR_ROWS:,} training rows.",
        "Seconds are those of the whole training, last layer and temperature included; wall seconds depend on what else the "
        "machine does.",
    ]


def run(options: Options) -> Report:
    """Choose rates on training rows; train every method with each seed; judge it on test and unknown images."""
    images = few_of(fashion_images()) if options.small else fashion_images()
    seeds, num_epochs = (range(1), 1) if options.small else (range(NUM_SEEDS), NUM_EPOCHS)
    done = Done(
        options.results / "pixels.jsonl",
        again=[name for name in (*METHODS, *TRIALS) if options.methods and options.keeps(name)],
    )

    def tried(method: Method, rate: float) -> dict[str, Any]:
        """Scores of rows that are neither in training nor kept, with a seed of its own."""
        kept, others = parted(images.train, TUNING_SEED)
        unseen, rows = parted(others, TUNING_SEED)
        trained, _ = timed(method, rows, kept, rate, TUNING_SEED, num_epochs)
        probs = trained.predict(unseen[0]).probs
        return {"accuracy": accuracy(probs, unseen[1]), "nll": nll(probs, unseen[1])}

    def tested(name: str, rate: float, seed: int) -> dict[str, Any]:
        """Scores of the test rows, by what the training tells: the plain network without and with a temperature."""
        kept, rows = parted(images.train, seed)
        trained, spent = timed(METHODS[name], rows, kept, rate, seed, num_epochs)
        told = {name: trained} | ({TEMPERED: trained.tempered(kept)} if name == PLAIN else {})
        return {label: judged(one, images, rows, kept) | spent for label, one in told.items()}

    trials = {
        name: {
            rate: done.get(partial(tried, method, rate), name, rate, "rate")
            for rate in (rates[:1] if options.small else rates)
        }
        for name, (method, rates) in TRIALS.items()
    }
    rate = min(trials[PLAIN], key=lambda rate: trials[PLAIN][rate]["nll"])
    rounds: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for name in METHODS:
            found = done.get(partial(tested, name, rate, seed), name, rate, f"seed {seed}")
            for label, one in found.items():
                rounds.setdefault(label, []).append(one)
    title = "Fashion-MNIST from pixels: plain, two-stage and joint training of a small network"
    tables = [scores_table(rounds), differences(rounds), trials_table(trials)]
    return Report("pixels", title, tables, targets(rounds), notes(rate))


class Done:
    """What was measured already, one line for each training, so that a run that was stopped goes on where it was.

    Lines of the methods in ``again`` are not taken.
    """

    def __init__(self, path: Path, again: list[str]) -> None:
        self.path, self.found = path, {}
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            if row["method"] not in again:
                self.found[row["method"], row["rate"], row["what"]] = row["found"]
        self._write()

    def get(
        self, measure: Callable[[], dict[str, Any]], method: str, rate: float, what: str
    ) -> dict[str, Any]:
        """What is there, or what ``measure`` finds, which is then there."""
        key = (method, rate, what)
        if key not in self.found:
            self.found[key] = measure()
            print(*key, self.found[key], file=sys.stderr, flush=True)
            self._write()
        return self.found[key]

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"method": m, "rate": r, "what": w, "found": found} for (m, r, w), found in self.found.items()
        ]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def few_of(images: Images, num_rows: int = 600) -> Images:
    """Some images of each kind, to see that everything runs."""
    train, test = ((x[:num_rows], y[:num_rows]) for x, y in (images.train, images.test))
    return Images(train, test, images.unknown[:num_rows])


def parted(rows: Rows, seed: int) -> tuple[Rows, Rows]:
    """A stratified tenth of the rows, and the rest."""
    numbers = np.arange(len(rows[1]))
    rest, tenth = train_test_split(numbers, test_size=KEPT, stratify=rows[1].numpy(), random_state=seed)
    first, second = (tuple(part[index] for part in rows) for index in (tenth, rest))
    return first, second


def timed(method: Method, *arguments: Any) -> tuple[Trained, dict[str, float]]:
    """What a method trains, and seconds of the processor and of the wall."""
    began, processor_began = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():  # short fits warn
        warnings.simplefilter("ignore", bll.FitWarning)
        trained = method(*arguments)
    spent = {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - processor_began,
    }
    return trained, spent


def trials_table(trials: dict[str, dict[float, dict[str, float]]]) -> Table:
    """What each rate of the network gives on rows that are kept from the training rows for the choice."""
    rates = {rate: f"{rate:g}" for found in trials.values() for rate in found}
    columns = {"method": "rate of the network", **{name: name for name in rates.values()}}
    table = Table("Trials: accuracy and NLL of another tenth of the training rows", columns)
    for name, found in trials.items():
        cells = {rates[rate]: f"{one['accuracy']:.4f}, {one['nll']:.4f}" for rate, one in found.items()}
        table.rows.append({"method": name, **cells})
    return table


def judged(trained: Trained, images: Images, rows: Rows, kept: Rows) -> dict[str, Any]:
    """All scores of one training."""
    known, unknown = trained.predict(images.test[0]), trained.predict(images.unknown)
    found: dict[str, Any] = classification_scores(
        known.probs, images.test[1],
        epistemic=known.epistemic, ood_probs=unknown.probs, ood_epistemic=unknown.epistemic,
    )  # fmt: skip
    found |= {"temperature": trained.temperature, "auroc_default": None}
    if isinstance(trained, Ours):
        some = tuple(part[:DETECTOR_ROWS] for part in rows)
        detector = bll.ood.Detector().calibrate(trained.fit, kept[0], train=some)
        found["auroc_default"] = auroc(*(detector.detect(x).score for x in (images.test[0], images.unknown)))
        found["messages"] = trained.fit.trace.messages
    return found


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of one value is not known."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def shown(values: list[float | None]) -> str:
    """Mean and standard error as a cell."""
    if None in values:
        return "-"
    return "{:.4g} ({:.2g})".format(*mean_and_error(values))


def scores_table(rounds: dict[str, list[dict[str, Any]]]) -> Table:
    """Mean and standard error of every score of every method."""
    number = len(rounds[PLAIN])
    table = Table(f"Mean (standard error) over {number} seeds, test rows", {"method": ""} | SCORES)
    for name, ones in rounds.items():
        cells = {key: shown([one[key] for one in ones]) for key in SCORES}
        table.rows.append({"method": name, **cells, "seeds": ones})
    return table


def differences(rounds: dict[str, list[dict[str, Any]]]) -> Table:
    """Joint training less each other method, seed by seed."""
    keys = ("accuracy", "nll", "ece", "auroc_entropy", "auroc_default")
    table = Table(
        "Joint less the other method, mean (standard error) over the seeds",
        {"method": ""} | {k: SCORES[k] for k in keys},
    )
    for name in rounds:
        if name != JOINT:
            cells = {key: shown(paired(rounds, name, key)) for key in keys}
            table.rows.append({"method": f"bll_pyro, joint, less: {name}", **cells})
    return table


def paired(rounds: dict[str, list[dict[str, Any]]], name: str, key: str, of: str = "") -> list[float | None]:
    """A score of joint training less a score of another method (the same one, or ``of``), for each seed."""
    pairs = zip(rounds[JOINT], rounds[name], strict=True)
    both = [(ours[key], theirs[of or key]) for ours, theirs in pairs]
    return [None if None in pair else pair[0] - pair[1] for pair in both]


def targets(rounds: dict[str, list[dict[str, Any]]]) -> list[Target]:
    """Joint training beside the plain network, and the seconds of the slowest fit."""
    found = []
    for name in (PLAIN, TEMPERED):
        found += [
            Target(f"joint less {name}: accuracy", mean_of(rounds, name, "accuracy"), -LOSS, ">="),
            Target(f"joint less {name}: NLL", mean_of(rounds, name, "nll"), 0.0),
            Target(f"joint less {name}: AUROC, entropy", mean_of(rounds, name, "auroc_entropy"), 0.0, ">="),
        ]
    default = mean_of(rounds, PLAIN, "auroc_default", "auroc_entropy")
    slowest = max(one["seconds"] for ones in rounds.values() for one in ones)
    return [
        *found,
        Target(f"joint, AUROC of the default detector, less {PLAIN}, entropy", default, 0.0, ">="),
        Target("slowest fit, wall seconds", slowest, 60.0 * MINUTES),
    ]


def mean_of(rounds: dict[str, list[dict[str, Any]]], name: str, key: str, of: str = "") -> float:
    """Mean of the differences."""
    return float(np.mean([value for value in paired(rounds, name, key, of) if value is not None]))
