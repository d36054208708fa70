"""One pass of a backbone over data: batches are loaded, computed and handed on at the same time, in the order of the rows."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from bll_pyro.checks import count
from bll_pyro.checks import device as check_device
from bll_pyro.features.forward import compute_features, frozen
from bll_pyro.features.sources import Batch, Source
from bll_pyro.observation import stage

type Devices = str | torch.device | Sequence[str | torch.device] | None
MOST_WAITING = 2  # batches that wait to be kept, and batches on each of several devices


def run_backbone(
    backbone: nn.Module | None,
    source: Source,
    append: Callable[[Tensor, Tensor | None], None],
    batch_size: int,
    devices: Devices = None,
    dtype: torch.dtype | None = None,
    first_row: int = 0,
) -> None:
    """Hand features and targets of all rows from ``first_row`` on to ``append``, batch by batch, in order.

    ``append`` runs in a thread while the next batch is computed. On several devices, or one that is not the CPU, batches are
    computed in a thread each while the next are loaded.
    """
    count(batch_size, "batch_size", "features", remedy="256 suits most networks")
    one = devices is None or isinstance(devices, (str, torch.device))
    places: list[Any] = [devices] if one else list(devices)  # type: ignore[arg-type]  # several
    for place in places:
        check_device(place, "features")
    with ExitStack() as stack:
        networks = [stack.enter_context(_placed(backbone, place, k)) for k, place in enumerate(places)]
        keep = stack.enter_context(_behind(append))
        done = stack.enter_context(stage("features", source.num_rows, rows_per_step=1))
        done.skip(first_row)
        row = first_row
        for features, targets in _computed(networks, _from(source, batch_size, first_row), dtype):
            if not torch.isfinite(features).all():
                _refuse(features, row, source)
            keep(features, targets)
            row += len(features)
            done.advance(len(features))


def _from(source: Source, batch_size: int, first_row: int) -> Iterator[tuple[Batch, int]]:
    """Batches, the same as of a pass over all rows, and how many rows of each come before ``first_row``."""
    if not first_row:
        yield from ((batch, 0) for batch in source.batches(batch_size))
        return
    begin = first_row // batch_size * batch_size
    rest = None
    if begin and not source.own_order:
        rest = source.subset(torch.arange(begin, source.num_rows))
    start = 0 if rest is None else begin
    for inputs, targets in (rest or source).batches(batch_size):
        number = _num_rows(inputs) if targets is None else len(targets)
        if start + number > first_row:
            yield (inputs, targets), max(first_row - start, 0)
        start += number


def _num_rows(inputs: Any) -> int:
    while not isinstance(inputs, Tensor):
        inputs = next(iter(inputs.values())) if hasattr(inputs, "values") else inputs[0]
    return len(inputs)


def _computed(
    networks: list[nn.Module | None], batches: Iterator[tuple[Batch, int]], dtype: torch.dtype | None
) -> Iterator[Batch]:
    """Features and targets on the CPU, in the order of the batches; networks take them in turns, each in a thread of its own."""

    @torch.no_grad()
    def compute(network: nn.Module | None, batch: Batch, skipped: int) -> tuple[Tensor, Tensor | None]:
        inputs, targets = batch
        features = compute_features(network, inputs).to("cpu", dtype)
        return features[skipped:], None if targets is None else targets.cpu()[skipped:]

    if len(networks) == 1 and _on_cpu(networks[0]):
        for batch, skipped in batches:
            yield compute(networks[0], batch, skipped)
        return
    pools = [ThreadPoolExecutor(1) for _ in networks]
    waiting: deque[Future[tuple[Tensor, Tensor | None]]] = deque()
    try:
        for k, (batch, skipped) in enumerate(batches):
            turn = k % len(networks)
            waiting.append(pools[turn].submit(compute, networks[turn], batch, skipped))
            if len(waiting) >= MOST_WAITING * len(networks):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _on_cpu(network: nn.Module | None) -> bool:
    parameter = None if network is None else next(network.parameters(), None)
    return parameter is None or parameter.device.type == "cpu"


@contextmanager
def _behind[**P](function: Callable[P, None]) -> Iterator[Callable[P, None]]:
    """The function, called in a thread in the order of the calls; its error is raised at a later call, or at the end."""
    pool, waiting = ThreadPoolExecutor(1), deque[Future[None]]()

    def call(*arguments: P.args, **named: P.kwargs) -> None:
        waiting.append(pool.submit(function, *arguments, **named))
        if len(waiting) > MOST_WAITING:
            waiting.popleft().result()

    try:
        yield call
        while waiting:
            waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _placed(
    backbone: nn.Module | None, device: str | torch.device | None, number: int
) -> Iterator[nn.Module | None]:
    """The backbone in eval mode on a device, from which it comes back; for all but the first of several devices a copy."""
    if backbone is None:
        yield None
        return
    network = backbone if number == 0 else copy.deepcopy(backbone)
    with frozen(network), nullcontext() if device is None else _moved(network, device):
        yield network


@contextmanager
def _moved(network: nn.Module, device: str | torch.device) -> Iterator[None]:
    """Move a network to a device inside the block, and back afterwards."""
    original = next((p.device for p in network.parameters()), None)
    if original is None or torch.device(device) == original:
        yield
        return
    try:
        network.to(device)
        yield
    finally:
        network.to(original)


def _refuse(features: Tensor, first_row: int, source: Source) -> NoReturn:
    finite = torch.isfinite(features)
    row = first_row + int((~finite).any(1).nonzero()[0, 0])
    order = " in the order of the DataLoader" if source.shuffled else ""
    raise ValueError(
        f"features: expected finite values in {features.dtype}, got {int((~finite).sum())} that are NaN or infinite, the first "
        f"in row {row}{order}; check this input, the scale of the inputs and the backbone's weights, or use a wider dtype"
    )
