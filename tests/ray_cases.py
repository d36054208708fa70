"""Rows and networks for the tests of Ray Data, which its workers import."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor, nn

N, D, NUM_FEATURES = 600, 6, 4
FILES = 4  # of Parquet


def columns() -> dict[str, np.ndarray]:
    """Ids that begin at 1000, inputs whose first one is the number of the row, and targets."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(N, D)).astype(np.float32)
    targets = inputs @ np.arange(1.0, D + 1.0, dtype=np.float32) + random.normal(size=N).astype(np.float32)
    inputs[:, 0] = np.arange(N) / 100
    return {"row_id": 1000 + np.arange(N), "inputs": inputs, "targets": targets.astype(np.float32)}


def table(given: dict[str, np.ndarray]) -> pa.Table:
    """The same as a table of Arrow, inputs as lists."""
    arrays = {name: pa.array(list(values)) for name, values in given.items()}
    return pa.table(arrays)


def write_files(folder: Path, given: dict[str, np.ndarray]) -> list[str]:
    """Rows in files of Parquet, of which the last is short."""
    whole, names = table(given), []
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-whole.num_rows // FILES)
    for number in range(FILES):
        names.append(str(folder / f"rows-{number}.parquet"))
        parquet.write_table(whole.slice(number * size, size), names[-1])
    return names


class Network(nn.Module):
    """Features of rows; always the same ones."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(D, NUM_FEATURES)
        with torch.no_grad():
            self.map.weight.copy_(torch.linspace(-1, 1, NUM_FEATURES * D).reshape(NUM_FEATURES, D))
            self.map.bias.copy_(torch.arange(float(NUM_FEATURES)))

    def forward(self, rows: Tensor) -> Tensor:
        for number in self.numbers(rows):
            self.meet(number)
        return torch.tanh(self.map(rows))

    def numbers(self, rows: Tensor) -> list[int]:
        return (rows[:, 0] * 100).round().long().tolist()

    def meet(self, number: int) -> None:
        """What happens at a row."""


class EndsOnce(Network):
    """Kills its process at some rows, at each of them once."""

    def __init__(self, folder: Path, at: tuple[int, ...]) -> None:
        super().__init__()
        self.folder, self.at = str(folder), at

    def meet(self, number: int) -> None:
        mark = Path(self.folder) / f"killed-{number}"
        if number in self.at and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Hangs(Network):
    """Does not come back from one row, and holds the interpreter; ends its process at another one every time."""

    def __init__(self, hangs: int, ends: int) -> None:
        super().__init__()
        self.hangs, self.ends = hangs, ends

    def meet(self, number: int) -> None:
        if number == self.hangs:
            re.match(r"(a+)+$", "a" * 60 + "b")
        if number == self.ends:
            os._exit(1)


class Slow(Network):
    """Takes a while for a batch."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, rows: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return super().forward(rows)


class SaysItsProcess(Slow):
    """Has the number of its process as its last feature."""

    def forward(self, rows: Tensor) -> Tensor:
        return torch.cat([super().forward(rows), torch.full((len(rows), 1), float(os.getpid()))], 1)


def on_full_disk(mark: str, given: Any) -> Any:
    """A transform; where there is a mark, its process can write no file of more than 1,000 bytes."""
    import resource

    if Path(mark).exists():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return torch.from_numpy(np.array(given))


DRIVER = """
import sys
import ray
from ray_cases import Slow
import bll_pyro as bll

ray.init(address=sys.argv[1], logging_level="WARNING")
workers = bll.distributed.Workers(num_actors=1, rows_per_part=50, batch_size=50)
bll.distributed.extract(sys.argv[3:], Slow(0.3), sys.argv[2], targets="targets", workers=workers)
"""
