"""Training steps on a CUDA device, also at ImageNet's size: seconds per epoch, and share of the memory bandwidth.

Without a device nothing is measured, and the report says so."""

import time

import torch
from torch import Tensor

from benchmarks.competitors import handwritten
from benchmarks.harness import Measure, interleave, ratio
from benchmarks.options import Options
from benchmarks.ours import after_each_step
from benchmarks.report import Report, Table, Target
from benchmarks.step_time import LIMITS, SMALL

NUM_STEPS = 200  # steps in one measurement
HAND, OURS = "hand-written torch loop", "bll_pyro, SVI with Diagonal"
IMAGENET_ROWS, IMAGENET_FEATURES, IMAGENET_CLASSES, IMAGENET_BATCH = 1_281_167, 2_048, 1_000, 1_024
# Passes over arrays of the size of the weights in one step: mean and scale are each read by the forward pass, have a
# gradient written, and are updated by Adam (four reads, three writes).
PASSES = 2 * (1 + 1 + 7)


def run(options: Options) -> Report:
    """Time the steps at the three sizes, then an epoch of made-up features of ImageNet's size."""
    report = Report("cuda", "Training on a CUDA device")
    if not torch.cuda.is_available():
        report.notes.append("No CUDA device at hand: skipped, nothing was measured.")
        return report
    name = torch.cuda.get_device_name()
    for (num_features, num_classes, batch_size), limit in (SMALL if options.small else LIMITS).items():
        data = rows(20 * batch_size, num_features, num_classes, torch.float32)
        measures: dict[str, Measure] = {
            HAND: hand_written(*data, num_classes, batch_size),
            OURS: ours(*data, num_classes, batch_size),
        }
        timings = interleave(measures, options.num_runs)
        size = f"D = {num_features}, K = {num_classes}, batch {batch_size}"
        table = Table(
            f"{size}, {name}", {"method": "method", "ms": "ms a step", "ratio": "over hand-written"}
        )
        for method, timing in timings.items():
            found = ratio(timing, timings[HAND])
            table.rows.append(
                {"method": method, "ms": 1e3 * timing.median, "ratio": found, "rounds": timing.seconds}
            )
        report.tables.append(table)
        report.targets.append(
            Target(
                f"step over the hand-written one at {size}", ratio(timings[OURS], timings[HAND]).median, limit
            )
        )
    report.tables.append(imagenet(options, name))
    report.notes += [
        f"Share of the bandwidth: {PASSES} passes over the weights and one over the batch, the least that a step with Adam "
        "can move, over the time of a step, against the speed of a copy within the device.",
        "Features are made on the device; steps are timed by events of the device, first to last.",
    ]
    return report


def rows(num_rows: int, num_features: int, num_classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Features with labels that depend on them, generated on the device in blocks."""
    torch.manual_seed(0)
    features = torch.empty(num_rows, num_features, device="cuda", dtype=dtype)
    targets = torch.empty(num_rows, device="cuda", dtype=torch.long)
    head = torch.randn(num_features, num_classes, device="cuda") * (2 / num_features**0.5)
    for start in range(0, num_rows, 65_536):
        part = features[start : start + 65_536]
        part.normal_()
        logits = part.float() @ head
        targets[start : start + 65_536] = (logits - torch.rand_like(logits).log().neg().log()).argmax(-1)
    return features, targets


def hand_written(features: Tensor, targets: Tensor, num_classes: int, batch_size: int) -> Measure:
    """The reference step, with parameters and row numbers on the device."""
    with torch.device("cuda"):
        layer = handwritten.MeanField(features.shape[1], num_classes)
    optimizer = torch.optim.Adam(layer.parameters(), lr=handwritten.LEARNING_RATE, fused=True)

    def measure() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(NUM_STEPS):
            index = torch.randint(len(features), (batch_size,), device="cuda")
            optimizer.zero_grad()
            layer.loss(features[index], targets[index], len(features)).backward()
            optimizer.step()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / NUM_STEPS

    return measure


def ours(features: Tensor, targets: Tensor, num_classes: int, batch_size: int) -> Measure:
    """Seconds per step inside `bll.fit`, from the first to the last update on the device."""
    import bll_pyro as bll

    steps = -(-len(features) // batch_size)
    svi = bll.SVI(num_epochs=max(1, round(NUM_STEPS / steps)), batch_size=batch_size)
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(num_classes=num_classes))

    def measure() -> float:
        events: dict[int, list[torch.cuda.Event]] = {}

        def note(optimizer: object) -> None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            events.setdefault(id(optimizer), []).append(event)

        with after_each_step(note):
            bll.fit(layer, (features, targets), inference=svi, device="cuda")
        longest = max(events.values(), key=len)
        torch.cuda.synchronize()
        return longest[0].elapsed_time(longest[-1]) / 1e3 / (len(longest) - 1)

    return measure


def bandwidth() -> float:
    """Bytes per second that a copy within the device reads and writes."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    torch.cuda.synchronize()
    return 10 * 2 * source.numel() * source.element_size() / (time.perf_counter() - began)


def imagenet(options: Options, name: str) -> Table:
    """Seconds per epoch at ImageNet's size with half-precision features, and the share of the bandwidth."""
    num_rows = 10_000 if options.small else IMAGENET_ROWS
    features, targets = rows(num_rows, IMAGENET_FEATURES, IMAGENET_CLASSES, torch.float16)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        seconds = ours(features, targets, IMAGENET_CLASSES, IMAGENET_BATCH)()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    moved = 4 * (PASSES * IMAGENET_CLASSES * (IMAGENET_FEATURES + 1) + IMAGENET_BATCH * IMAGENET_FEATURES)
    columns = {
        "method": "method",
        "ms": "ms a step",
        "epoch": "seconds an epoch",
        "share": "share of the bandwidth",
    }
    row = {
        "method": "bll_pyro, SVI with Diagonal, TF32",
        "ms": 1e3 * seconds,
        "epoch": seconds * num_rows / IMAGENET_BATCH,
        "share": moved / seconds / bandwidth(),
    }
    title = (
        f"{num_rows:,} x {IMAGENET_FEATURES:,}, K = {IMAGENET_CLASSES:,}, batch {IMAGENET_BATCH:,}, {name}"
    )
    return Table(title, columns, [row])
