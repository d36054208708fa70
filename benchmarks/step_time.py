"""Seconds of one training step against a hand-written step with local reparameterisation."""

from benchmarks import ours
from benchmarks.competitors import REFERENCE, STEPS
from benchmarks.data import made_up
from benchmarks.harness import Measure, interleave, ratio, repeated_for
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

# (features, classes, batch): target for the time of bll_pyro's step over the hand-written one
LIMITS = {(512, 10, 256): 1.2, (768, 100, 1024): 1.1, (2048, 1000, 256): 1.1}
SMALL = {(8, 3, 16): 1.2}
NUM_BATCHES = 20
BLOCK_SECONDS = 0.5
COLUMNS = {"method": "method", "milliseconds": "ms a step", "ratio": "over hand-written (quartiles)"}
OURS = "bll_pyro, SVI with Diagonal"


def run(options: Options) -> Report:
    """Time the steps at every size."""
    report = Report("step_time", "One training step, mean-field, Categorical likelihood")
    for (num_features, num_classes, batch_size), limit in (SMALL if options.small else LIMITS).items():
        task = made_up(NUM_BATCHES * batch_size, num_features, num_classes)
        data = (task.train_features, task.train_targets, num_classes, batch_size, 0)
        block = 0.01 if options.small else BLOCK_SECONDS
        measures: dict[str, Measure] = {}
        skipped: list[str] = []
        for method in STEPS:
            if method.name != REFERENCE.name and not options.keeps(method.name):
                continue
            if options.small and "torch.compile" in method.name:
                continue  # compiling takes longer than all the rest of a small run
            if method.step is None or not method.is_available:
                skipped.append(method.name)
                continue
            measures[method.name] = repeated_for(method.step(*data), block)
        if options.keeps(OURS):
            wide = num_features * num_classes > 1_000_000
            measures[OURS] = ours.step_seconds(*data, num_steps=40 if options.small else 60 if wide else 200)
        timings = interleave(measures, options.num_runs)
        size = f"D = {num_features}, K = {num_classes}, batch {batch_size}"
        table = Table(size, COLUMNS)
        for name, timing in timings.items():
            table.rows.append(
                {
                    "method": name,
                    "milliseconds": 1e3 * timing.median,
                    "ratio": ratio(timing, timings[REFERENCE.name]),
                    "seconds": timing.seconds,
                }
            )
        report.tables.append(table)
        if OURS in timings:
            found = ratio(timings[OURS], timings[REFERENCE.name]).median
            report.targets.append(
                Target(f"bll_pyro's step over the hand-written one at {size}", found, limit)
            )
        if skipped:
            report.notes.append(f"{size}: not installed, left out: {', '.join(skipped)}.")
    report.notes += [
        "A step takes the next batch out of features in memory, and makes loss, gradient and update; all in float32.",
        "bll_pyro's step is timed inside `bll.fit`: mean gap between its optimiser's steps, standardised features.",
        "plain Pyro samples weights: besides its own cost, its gradient is noisier (see `quality` for what comes out).",
    ]
    return report
