"""Extraction with loader workers: how much of the time the backbone computes, where computing dominates."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import bll_pyro as bll
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

NUM_ROWS, SIDE, BATCH = 768, 64, 32
LOADING = 0.002  # seconds that a row takes to load, in which the loader waits, as it does for a disk


class Images(Dataset[tuple[Tensor, int]]):
    """Made-up images, each of which takes a while to load."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(LOADING)
        return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(index)), index % 10


class Timed(nn.Module):
    """A convolutional network that notes how long it computes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.clock = nn.Identity()
        self.clock.seconds = _Seconds()

    def forward(self, images: Tensor) -> Tensor:
        began = time.perf_counter()
        features = self.body(images)
        self.clock.seconds.value += time.perf_counter() - began
        return features


class _Seconds:
    value = 0.0


def run(options: Options) -> Report:
    """Busy share of the pass, with 0 and 2 workers, in memory and with a store."""
    report = Report("extraction", "Extraction: share of the time in which the backbone computes")
    columns = {
        "workers": "workers",
        "kept": "kept",
        "seconds": "s",
        "computing": "computing, s",
        "busy": "busy",
    }
    table = Table(f"{NUM_ROWS} images of {SIDE} x {SIDE}, batches of {BATCH}", columns)
    num_rows, width = (64, 8) if options.small else (NUM_ROWS, 96)
    for num_workers in (0, 2):
        for kept in ("in memory", "in a store"):
            network = Timed(width)
            with TemporaryDirectory() as folder:
                store = Path(folder) if kept == "in a store" else None
                began = time.perf_counter()
                bll.extract(network, Images(num_rows), store=store, batch_size=BATCH, num_workers=num_workers)
                seconds = time.perf_counter() - began
            computing = network.clock.seconds.value
            busy = computing / seconds
            row = {"workers": num_workers, "kept": kept, "seconds": seconds, "computing": computing}
            table.rows.append(row | {"busy": busy})
            if num_workers == 2 and kept == "in memory":
                report.targets.append(Target("busy with 2 workers, in memory", busy, 0.9, ">="))
    report.tables.append(table)
    report.notes += [
        f"Loading a row waits for {LOADING * 1e3:.0f} ms, as for a disk, and makes its numbers. One process starts two workers and "
        "computes on the CPU; their start is in the seconds.",
        "With a store the call reads the data twice: once for their hash, by which a later call finds the features, and once to "
        "compute. The first of these passes computes nothing.",
    ]
    return report
