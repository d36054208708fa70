"""What 10^8 and 10^10 rows cost: constants measured on this machine, and the formulas of ``benchmarks.capacity_formulas``.

Each constant is a difference of two runs of the library's own calls, of which the second does more of one thing: what a call does
once, as finding a start, is in both. The estimate is then checked on a job of another size.
"""

import hashlib
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import bll_pyro as bll
from benchmarks.capacity_formulas import Constants, bytes_in_words, duration, works
from benchmarks.launching import launch, say
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target
from benchmarks.store_size import drop, make, read_alone

SIZES = (100_000_000, 10_000_000_000)
NUM_FEATURES, NUM_CLASSES = 1024, 20_000
MACHINES, CORES = 64, 32  # of the example
NETWORK_BYTES = 2**26
WITHIN = 3.0  # largest factor between estimate and measurement, set before
COLUMNS = ("label", "confidence", "total", "aleatoric", "epistemic")
UNITS = {
    "images": ("ResNet-18, images of 224 x 224", "1/s"),
    "sums": ("Exact: sums", "s / (N P^2)"),
    "step": ("SVI, Diagonal: a pass", "s / (N W)"),
    "laplace": ("Laplace, Kronecker: a fit", "s / (N W)"),
    "predict": ("predictions, Probit()", "s / (N W)"),
    "read": ("reading a store, cold", "bytes/s"),
    "sha256": ("SHA-256", "bytes/s"),
    "network": ("a sum over two processes, gloo, loopback", "bytes/s"),
    "line": ("a row of predictions, Parquet, without probabilities of classes", "bytes"),
}
Case = tuple[bll.Exact | bll.SVI | bll.Laplace, int, int, int]  # inference, N, D, classes (0: values)


def run(options: Options) -> Report:
    """Measure, check, and write down what the large jobs take."""
    report = Report("capacity", "What 10^8 and 10^10 rows cost")
    torch.set_num_threads(1)
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", bll.FitWarning)  # fits of one or two passes
        constants = measured(Path(folder), options.small)
        report.tables.append(_checks(constants, report, options.small))
    table = Table("Constants", {"what": "what, on one core", "value": "found", "unit": "unit"})
    table.rows = [
        {"name": name, "what": what, "value": getattr(constants, name), "unit": unit}
        for name, (what, unit) in UNITS.items()
    ]
    report.tables.insert(0, table)
    report.tables += [_large(constants, number) for number in SIZES]
    report.notes.append(
        f"The last column is for {MACHINES} machines of {CORES} cores and a disk each, all in use all of the time. Memory and "
        "network are of one process; a store is read over the network where the disk is not the machine's own."
    )
    return report


def rows_of(num_rows: int, num_features: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal features, and classes or values that depend on them."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, num_features, generator=random)
    if not num_classes:
        return x, x[:, 0] + torch.randn(num_rows, generator=random)
    y = torch.randint(num_classes, (num_rows,), generator=random)
    x += torch.randn(num_classes, num_features, generator=random)[y]
    return x, y


def seconds_of(case: Case) -> float:
    """Seconds of a fit with a given prior scale."""
    inference, num_rows, num_features, num_classes = case
    x, y = rows_of(num_rows, num_features, num_classes)
    likelihood = bll.likelihoods.Categorical(num_classes) if num_classes else bll.likelihoods.Gaussian()
    layer = bll.LastLayer(likelihood, bll.priors.Normal(0.1))
    began = time.perf_counter()
    bll.fit(layer, (x, y), inference=inference, calibration=None)
    return time.perf_counter() - began


def more(first: Case, second: Case) -> float:
    """Seconds that the second fit takes longer, each the fastest of two."""
    one, two = (min(seconds_of(case) for _ in range(2)) for case in (first, second))
    return max(two - one, 1e-6)


def passes(number: int) -> bll.SVI:
    """So many passes of the default guide."""
    return bll.SVI(num_epochs=number)


def measured(folder: Path, is_small: bool) -> Constants:
    """All constants."""
    shrink = 16 if is_small else 1
    rows, wide, classes, hundred = (
        16_384 // shrink,
        1024 // shrink,
        2000 // shrink,
        100 // (8 if is_small else 1),
    )
    weights = classes * (wide + 1)
    seconds_of((bll.Exact(), 100, 8, 0))  # imports
    sums = more((bll.Exact(), rows, wide, 0), (bll.Exact(), 2 * rows, wide, 0)) / (rows * (wide + 1) ** 2)
    step = more((passes(1), rows // 8, wide, classes), (passes(5), rows // 8, wide, classes)) / 4
    half = wide // 4
    curvature = more((bll.Laplace(), rows // 4, half, hundred), (bll.Laplace(), rows // 2, half, hundred))
    x, y = rows_of(rows // 8, wide, classes)
    layer = bll.LastLayer(bll.likelihoods.Categorical(classes), bll.priors.Normal(0.1))
    fit = bll.fit(layer, (x, y), inference=passes(1), calibration=None)
    predict = best(lambda: fit.predict(x, integration=bll.Probit()).probs) / (len(x) * weights)
    few = rows_of(rows, 16, 10)
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Categorical(10)), few, inference=passes(1), calibration=None)
    names = bll.predict_store(
        fit, bll.extract(None, few, store=folder / "few"), folder / "predictions", columns=COLUMNS
    )
    lines = sum((folder / "predictions" / name).stat().st_size for name in names)
    make(folder / "store", 2**29 // shrink**2, 1024)
    drop(folder / "store")
    stored = sum(file.stat().st_size for file in (folder / "store").glob("*.safetensors"))
    text = bytes(2**27 // shrink)
    network = launch("benchmarks.capacity", {"num_bytes": NETWORK_BYTES // shrink**2}, 2, is_small)[0]
    return Constants(
        images=1 / _image_seconds(is_small),
        sums=sums,
        step=step / (rows // 8 * weights),
        laplace=curvature / (rows // 4 * hundred * (half + 1)),
        predict=predict,
        read=stored / read_alone(folder / "store"),
        sha256=len(text) / best(lambda: hashlib.sha256(text)),
        network=network,
        line=lines / len(few[0]),
    )


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of three calls after one."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _image_seconds(is_small: bool) -> float:
    backbone = bll.timm_backbone("resnet10t" if is_small else "resnet18", pretrained=False).eval()
    images = torch.randn(2 if is_small else 16, 3, *((32, 32) if is_small else (224, 224)))
    with torch.inference_mode():
        return best(lambda: backbone(images)) / len(images)


def rank_main(arguments: dict[str, Any]) -> None:
    """Bytes a second that one rank puts into sums over all."""
    buffer = torch.ones(arguments["num_bytes"] // 8, dtype=torch.float64)
    with bll.distributed.Ranks(timeout=120) as ranks:
        say(arguments["num_bytes"] / best(lambda: ranks.sums(buffer)))


def _checks(constants: Constants, report: Report, is_small: bool) -> Table:
    """Fits of other sizes beside their estimates.

    Of SVI twelve passes less six: its start takes seconds here, on at most 16,384 rows however many there are.
    """
    cases: list[Case] = [
        (bll.Exact(), 100_000, 512, 0),
        (passes(12), 4096, 512, 1000),
        (bll.Laplace(), 20_000, 128, 50),
    ]
    table = Table(
        "Fits beside the formulas (SVI without its start)",
        {"fit": "fit", "size": "N, D, K", "seconds": "s", "formula": "formula, s"},
    )
    for case, name in zip(cases, ("Exact", "SVI", "Laplace"), strict=True):
        inference, num_rows, num_features, num_classes = case
        if is_small:
            num_rows, num_features, num_classes = num_rows // 64, num_features // 16, num_classes // 16
        sizes = (num_rows, num_features, num_classes)
        found = seconds_of((inference, *sizes))
        found -= seconds_of((passes(6), *sizes)) if name == "SVI" else 0.0
        found = max(found, 1e-6)
        (work,) = [
            each
            for each in works(constants, num_rows, num_features, max(num_classes, 1))
            if each.name.startswith(name)
        ]
        size = f"{num_rows:,}, {num_features:,}, {max(num_classes, 1):,}"
        table.rows.append({"fit": name, "size": size, "seconds": found, "formula": work.core_seconds})
        apart = max(found / work.core_seconds, work.core_seconds / found)
        report.targets.append(Target(f"{name}, {size}: factor between formula and fit", apart, WITHIN))
    return table


def _large(constants: Constants, num_rows: int) -> Table:
    exponent = len(str(num_rows)) - 1
    columns = {
        "work": "work",
        "cores": "one core",
        "memory": "memory",
        "network": "network",
        "storage": "on disk",
    }
    table = Table(
        f"10^{exponent} rows, D = {NUM_FEATURES:,}, K = {NUM_CLASSES:,}",
        {**columns, "example": f"{MACHINES} machines"},
    )
    for work in works(constants, num_rows, NUM_FEATURES, NUM_CLASSES):
        share = MACHINES if work.name.startswith("read") else MACHINES * CORES
        table.rows.append(
            {
                "work": work.name,
                "cores": duration(work.core_seconds),
                "memory": bytes_in_words(work.memory),
                "network": bytes_in_words(work.network),
                "storage": bytes_in_words(work.storage),
                "example": duration(work.core_seconds / share),
            }
        )
    return table


if __name__ == "__main__":
    import json
    import sys

    rank_main(json.loads(sys.argv[1]))
