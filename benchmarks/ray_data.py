"""Extraction on Ray Data on one machine beside the plain loop: the same files, the same network, the same store."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

import bll_pyro as bll
from benchmarks.harness import interleave, ratio
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

NUM_ROWS, SIDE, BATCH, PART, FILES = 32_768, 32, 64, 512, 8
NUM_CPUS = 2  # of Ray
LIMIT = 1.3  # times the plain loop
PLAIN, ON_RAY = "plain loop", "bll_pyro, Ray Data"


class Convolutions(nn.Module):
    """A network for which a row takes milliseconds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


def images(pixels: np.ndarray) -> Tensor:
    """Pixels as they are stored, as floats ``[n, 3, SIDE, SIDE]``."""
    return torch.tensor(pixels).reshape(-1, 3, SIDE, SIDE).float().div_(255).sub_(0.5)


def write(folder: Path, num_rows: int) -> list[str]:
    """Made-up pixels in files of Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    random, paths = np.random.default_rng(0), []
    for number, ids in enumerate(np.array_split(np.arange(num_rows), FILES)):
        pixels = random.integers(0, 256, size=(len(ids), 3 * SIDE * SIDE), dtype=np.uint8)
        column = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), pixels.shape[1])
        paths.append(str(folder / f"rows-{number}.parquet"))
        parquet.write_table(pa.table({"row_id": ids, "inputs": column, "targets": ids % 10}), paths[-1])
    return paths


def plain_loop(paths: list[str], network: nn.Module, store: Path) -> bll.Features:
    """What a script does: read a file, run the network batch by batch, write a shard."""
    from pyarrow import parquet

    writer = bll.Features.writer(store)
    for number, path in enumerate(paths):
        table = parquet.read_table(path)
        pixels = table["inputs"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        with torch.no_grad():
            parts = [network(images(pixels[start : start + BATCH])) for start in range(0, len(pixels), BATCH)]
        targets = torch.from_numpy(table["targets"].to_numpy().copy())
        writer.write(f"part-{number}", torch.cat(parts), targets, row_ids=table["row_id"].to_numpy())
    return bll.Features.commit(store)


@contextmanager
def bytecode(folder: Path) -> Iterator[None]:
    """Processes that are started in the block find the bytecode of what they import, as after any earlier run of theirs."""
    before = dict(os.environ)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
    try:
        modules = "import ray.data, bll_pyro.distributed.on_ray.extraction, torch._dynamo"
        subprocess.run([sys.executable, "-W", "ignore", "-c", modules], check=True)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run(options: Options) -> Report:
    """Seconds of both, by interleaved runs; the Ray is started before."""
    from bll_pyro.ray_environment import prepare

    prepare()
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    with TemporaryDirectory() as folder, bytecode(Path(folder)):
        return _measured(options)


def _measured(options: Options) -> Report:
    import ray

    report = Report("ray_data", "Extraction on Ray Data beside the plain loop, on one machine")
    num_rows, width = (256, 8) if options.small else (NUM_ROWS, 64)
    began = time.perf_counter()
    ray.init(
        address="local",
        num_cpus=NUM_CPUS,
        include_dashboard=False,
        object_store_memory=2**28,
        logging_level="ERROR",
        log_to_driver=False,
    )
    started, network = time.perf_counter() - began, Convolutions(width).eval()
    workers = bll.distributed.Workers(batch_size=BATCH, rows_per_part=PART)
    hashes: set[str | None] = set()
    try:
        with TemporaryDirectory() as folder:
            paths, numbers = write(Path(folder), num_rows), iter(range(10_000))

            def on_ray() -> float:
                store, began = Path(folder) / f"store-{next(numbers)}", time.perf_counter()
                bll.distributed.extract(
                    paths, network, store, targets="targets", transform=images, workers=workers
                )
                seconds = time.perf_counter() - began
                hashes.add(bll.Features.open(store).sha256)
                return seconds

            def plain() -> float:
                began = time.perf_counter()
                plain_loop(paths, network, Path(folder) / f"store-{next(numbers)}")
                return time.perf_counter() - began

            timings = interleave({PLAIN: plain, ON_RAY: on_ray}, options.num_runs, num_warm_ups=0)
    finally:
        ray.shutdown()
    columns = {"method": "", "seconds": "s", "rows": "rows/s", "times": "times the plain loop"}
    table = Table(f"{num_rows} images of {SIDE} x {SIDE}, batches of {BATCH}", columns)
    for name, timing in timings.items():
        table.rows.append(
            {
                "method": name,
                "seconds": timing.spread,
                "rows": num_rows / timing.median,
                "times": ratio(timing, timings[PLAIN]),
            }
        )
    report.tables.append(table)
    found = ratio(timings[ON_RAY], timings[PLAIN]).median
    report.targets.append(Target("Ray Data against the plain loop", found, LIMIT))
    report.targets.append(Target("different hashes of the stores of all runs on Ray", len(hashes), 1))
    report.notes += [
        f"Ray runs already; its start took {started:.1f} s. In the seconds on Ray are the start of its actors, which import torch, "
        "the reading, the network, the writing and the commit.",
        "The processes find the bytecode of what they import, as after any earlier run of theirs.",
        f"The plain loop runs the network with {options.num_threads} threads of torch in one process, Ray Data with one in each of "
        "as many actors.",
    ]
    return report
