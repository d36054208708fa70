"""Fits that are killed and called again, in processes of their own, for tests/fitting/test_kills.py."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import bll_pyro as bll
from bll_pyro.checkpoint import folder as checkpoints
from bll_pyro.checkpoint import part_file
from bll_pyro.inference.svi.train import Stepper

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(48, 4, generator=GENERATOR)
LABELS = (INPUTS[:, 0] + 0.3 * torch.randn(48, generator=GENERATOR) > 0).long()
HELD_OUT = INPUTS + 0.1 * torch.randn(48, 4, generator=GENERATOR), LABELS
LAYER = bll.LastLayer(bll.likelihoods.Categorical(num_classes=2))
JOINT = bll.SVI(backbone_learning_rate=1e-2, num_epochs=4)
FROZEN = bll.SVI(batch_size=8, num_epochs=4)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Rows with noise from the global generator, as augmentation draws it."""

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return INPUTS[index] + 0.01 * torch.randn(4), LABELS[index]


def network() -> nn.Sequential:
    """A network whose steps draw random numbers, and change buffers."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2))


@dataclass(frozen=True)
class Life:
    """One process of a fit.

    Parameters
    ----------
    kind, workers
        ``joint`` or ``frozen``, and processes of the loader.
    checkpoint
        Folder of the checkpoint; None is a fit without one, whose result goes to ``result``.
    log
        File to which every step writes its number and a hash of its rows.
    kill_after
        Step after which the process is killed; None lets it live.
    in_write
        Whether it is killed while it writes the state after that step.
    number
        Of this life: which states are kept depends on it.
    """

    kind: str
    workers: int
    checkpoint: Path | None
    log: Path
    kill_after: int | None = None
    in_write: bool = False
    number: int = 0

    @property
    def result(self) -> Path:
        """Where the fit is, as ``bll.load`` reads it."""
        return self.log.with_suffix(".fit") if self.checkpoint is None else self.checkpoint / "fit"

    def load(self) -> bll.Fit:
        """The finished fit."""
        return bll.load(self.result, backbone=network() if self.kind == "joint" else None)

    def fit(self) -> bll.Fit:
        """The call that every life makes."""
        loader = DataLoader(
            Augmented(), 8, shuffle=True, num_workers=self.workers, generator=torch.Generator().manual_seed(5)
        )
        joint = self.kind == "joint"
        return bll.fit(
            LAYER, loader, network() if joint else None, JOINT if joint else FROZEN,
            validation_data=None if joint else HELD_OUT, calibration=None, checkpoint=self.checkpoint,
        )  # fmt: skip


def live(life: Life) -> None:
    """Fit, log every step, keep the state of about every other one, and die where the life says so."""
    prepare()
    checkpoints.SECONDS = checkpoints.SHARE = 0
    step, offer, random, steps = Stepper.step, checkpoints.Part.offer, Random(life.number), [0]

    def logged(self: Stepper, gradient: Callable[..., Tensor], *batch: Any) -> Tensor:
        value = step(self, gradient, *batch)
        steps[0] += 1
        inputs = (
            [part[0] for part in batch] if isinstance(batch[0], tuple) else batch[:1]
        )  # of a joint fit, or the design
        rows = hashlib.sha256(b"".join(each.numpy().tobytes() for each in inputs)).hexdigest()[:16]
        with life.log.open("a") as file:
            file.write(f"{self.done} {rows}\n")
        if steps[0] == life.kill_after and not life.in_write:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    def offered(self: checkpoints.Part, state: Callable[[], Any]) -> None:
        last = steps[0] == life.kill_after
        if last:
            part_file.os = Dying()
        if last or random.random() < 0.5:
            offer(self, state)

    Stepper.step, checkpoints.Part.offer = logged, offered  # type: ignore[method-assign]
    made = life.fit()
    if life.checkpoint is None:
        (made if life.kind == "joint" else made.head).save(life.result)


def prepare() -> None:
    """Of a process of its own: what the tests have in theirs, and workers of loaders that are forks of it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    multiprocessing.set_start_method("fork", force=True)


class Dying:
    """The module ``os`` of a process that is killed when a file would take its place."""

    def replace(self, *_: Path) -> None:
        """Die."""
        os.kill(os.getpid(), signal.SIGKILL)


def stop_at_step(number: int, kind: int, times: int = 1) -> None:
    """Let the next fit of this process get a signal in one of its steps."""
    step, steps = Stepper.step, [0]

    def signalled(self: Stepper, gradient: Callable[..., Tensor], *batch: Any) -> Tensor:
        steps[0] += 1
        for _ in range(times if steps[0] == number else 0):
            signal.raise_signal(kind)
        return step(self, gradient, *batch)

    Stepper.step = signalled  # type: ignore[method-assign]


def interrupted(life: Life, kind: int, times: int, said: Path) -> None:
    """A fit that gets a signal in its fifth step; what the interrupt says goes to a file, and so does the handler after it."""
    prepare()
    stop_at_step(5, kind, times)
    try:
        life.fit()
    except KeyboardInterrupt as stop:
        restored = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        said.write_text(f"{type(stop).__name__}: {stop}; {restored}")
