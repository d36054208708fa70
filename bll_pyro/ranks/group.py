"""Ranks: processes of torch.distributed that share the rows of a fit, and stop together.

All of them do the same things in the same order, and meet where something is summed or gathered. A rank that fails says so in
the store of the process group and closes its connections, which wakes the others at once. They read there what happened, or,
where a process was killed, who does not answer any more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import count as numbers
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, distributed

from bll_pyro.checks import positive
from bll_pyro.ranks.processes import Processes

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
PATIENCE = 5.0  # seconds in which the ranks that live say so after one was lost
_made = numbers()  # Ranks of this process so far: the same number on all ranks


class RankError(RuntimeError):
    """Another rank failed, ended, or did not answer in time."""


class Ranks(Processes):
    """The processes of torch.distributed, each with rows of its own, for ``bll.fit(..., ranks=ranks)``.

    Under ``torchrun`` this joins them (by gloo); where a process group is there already, as under Lightning, accelerate or Ray
    Train, it adds a gloo group of all its processes. Every process has to make it, and to close it, at the same place of the
    program: ``with bll.distributed.Ranks() as ranks: ...``.

    Parameters
    ----------
    timeout
        Seconds for which a rank waits for the others before it stops with an error.

    Attributes
    ----------
    rank, size
        Number of this process, and how many there are.

    Raises
    ------
    ValueError
        If there is no process group and no environment of ``torchrun``.
    RuntimeError
        If torch was built without gloo.
    RankError
        If a rank does not come within the time.
    """

    def __init__(self, timeout: float = 1800.0) -> None:
        positive(timeout, "timeout", "Ranks")
        if not (distributed.is_available() and distributed.is_gloo_available()):
            raise RuntimeError("Ranks: expected a torch with torch.distributed and gloo; pip install torch")
        self._wait = timedelta(seconds=float(timeout))
        if not distributed.is_initialized():
            missing = [name for name in VARIABLES if name not in os.environ]
            if missing:
                raise ValueError(
                    f"Ranks: expected a process group of torch.distributed, or the environment of torchrun, got no {missing[0]}; "
                    "start the program by: torchrun --nproc-per-node 2 program.py"
                )
            distributed.init_process_group("gloo", timeout=self._wait)
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self._name, self._stopped = f"bll_pyro/{next(_made)}", ""
        self._group: Any = distributed.new_group(backend="gloo", timeout=self._wait)
        self._store: Any = distributed.distributed_c10d._get_default_store()
        self._meet(lambda: distributed.monitored_barrier(self._group, self._wait, wait_all_ranks=True))

    def __repr__(self) -> str:
        return f"Ranks(rank {self.rank} of {self.size})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._leave(error)
        self.close()

    def close(self) -> None:
        """Close the connections of this object. The process group stays, as later Ranks of the program need it."""
        self._disconnect()
        self._stopped = self._stopped or "they were closed"

    def sums(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The sum over ranks of each tensor, of the same shape on all; the same numbers on all ranks."""
        buffer = torch.cat([value.detach().reshape(-1) for value in values])
        flat = self._reduced(buffer, distributed.ReduceOp.SUM).split([value.numel() for value in values])
        return tuple(part.to(value.dtype).view(value.shape) for part, value in zip(flat, values, strict=True))

    def largest(self, values: Tensor) -> Tensor:
        """The largest over ranks of each number of a tensor."""
        return self._reduced(values.detach().clone(), distributed.ReduceOp.MAX)

    def total(self, number: float) -> float:
        """The sum of a number over ranks, in double precision."""
        return float(self.sums(torch.tensor(float(number), dtype=torch.float64))[0])

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order: plain data, arrays and tensors."""
        found: list[Any] = [None] * self.size
        self._meet(lambda: distributed.all_gather_object(found, value, self._group))
        return found

    def cat(self, rows: Tensor) -> Tensor:
        """The rows of all ranks ``[n, ...]``, as many as each has, in their order."""
        parts, own = [], (str(rows.dtype), tuple(rows.shape[1:]))
        lengths, forms = zip(*self.gather((len(rows), own)), strict=True)
        for rank, form in enumerate(forms):
            if form != forms[0]:
                raise ValueError(
                    f"ranks: expected rows of one type and shape on all ranks, got {forms[0]} on rank 0 and {form} on rank {rank}; "
                    "convert them before"
                )
        for rank, length in enumerate(lengths):
            part = rows.detach().cpu().contiguous()
            if rank != self.rank:
                part = part.new_empty(length, *rows.shape[1:])
            if length:
                self._meet(partial(distributed.broadcast, part, rank, self._group))
            parts.append(part)
        return torch.cat(parts).to(rows.device)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block on all ranks: where it fails on one, all stop with an error that names this rank."""
        try:
            yield
            self.gather(None)
        except BaseException as error:
            self._leave(error)
            raise

    def _reduced(self, buffer: Tensor, operation: Any) -> Tensor:
        """A tensor summed, or the like, by way of the processor's memory, since gloo works there."""
        values = buffer.cpu()
        self._meet(lambda: distributed.all_reduce(values, operation, self._group))
        return values.to(buffer.device)

    def _meet(self, action: Callable[[], Any]) -> None:
        """Do something that takes all ranks; RankError if one of them is lost."""
        if self._group is None:
            raise RankError(f"rank {self.rank}: the ranks stopped before: {self._stopped}; make new Ranks")
        try:
            action()
        except RuntimeError as error:
            raise RankError(f"rank {self.rank} stopped: {self._reason(error)}") from error

    def _reason(self, error: RuntimeError) -> str:
        """What happened to the others, as far as they can still say it."""
        unknown = f"a rank has ended, or did not answer within {self._wait.total_seconds():g} s ({str(error)[:200]})"
        try:
            self._store.set(f"{self._name}/alive/{self.rank}", "1")
            ends = time.monotonic() + PATIENCE
            missing: list[int] = []
            while time.monotonic() < ends:
                if self._store.check([f"{self._name}/failed"]):
                    return str(self._store.get(f"{self._name}/failed").decode())
                names = [f"{self._name}/alive/{rank}" for rank in range(self.size)]
                missing = [rank for rank, name in enumerate(names) if not self._store.check([name])]
                if not missing:
                    return unknown
                self._disconnect()  # so that ranks that still wait for this one wake up
                time.sleep(0.05)
            said = ", ".join(map(str, missing))
            return f"rank {said} has ended, or hangs for longer than {self._wait.total_seconds():g} s"
        except RuntimeError:  # the store was in the process that ended
            return unknown

    def _leave(self, error: BaseException) -> None:
        """Say why this rank stops, unless another has, and wake the others."""
        if self._group is None and self._stopped:
            return
        self._stopped = f"{type(error).__name__}: {error}"
        if not isinstance(error, RankError):
            with suppress(RuntimeError):
                self._store.compare_set(
                    f"{self._name}/failed", "", f"rank {self.rank} failed: {self._stopped}"
                )
        self._disconnect()

    def _disconnect(self) -> None:
        group, self._group = self._group, None
        if group is not None and distributed.is_initialized():
            with suppress(RuntimeError, ValueError, AssertionError):
                distributed.destroy_process_group(group)
