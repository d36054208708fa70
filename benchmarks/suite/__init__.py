"""The suite: one command, every method on the same features and splits, in an environment of its own where it needs one.

``python -m benchmarks suite`` fits what has no row in ``results/suite.jsonl`` yet, takes all measures anew of the predictions
that are kept, and makes tables, the list of losses and the picture of ranks. ``--methods PART`` fits the named ones anew where
their rows are of other versions; ``--again ID`` fits one row anew and shows both. ``--runs`` bounds the number of seeds.
"""

import torch
from threadpoolctl import threadpool_limits

from benchmarks.options import Options
from benchmarks.report import Report, Table, Target
from benchmarks.suite import tables
from benchmarks.suite.cells import cells
from benchmarks.suite.measures import measured
from benchmarks.suite.methods import BY_NAME, METHODS
from benchmarks.suite.peers import CACHE
from benchmarks.suite.ranks import picture
from benchmarks.suite.running import Runner, measure_again, versions_of
from benchmarks.suite.store import Rows
from benchmarks.suite.tasks import NUM_SEEDS, SMALL, TASKS

NOTES = (
    "One thread. CPU seconds after a short fit that is not counted; imports are not in them.",
    "Standard errors, in brackets, are over seeds or splits; losses have those of the paired differences.",
    "Every method gets the same rows. bll_pyro scales them by itself; the others get rows that were centred and scaled by the "
    "training rows: network features by one scale, inputs of networks by one a column, targets to mean 0 and scale 1.",
    "Budget of all that train by steps: 1,000 of 512 rows, Adam at 0.01; networks 600 of 100 rows (200 passes over yacht, 7 over "
    "power). vbll's head has its own rate. Competitors keep what their documentation has otherwise.",
    "How unknown a row is says the score that is the method's own, one for all tasks: mutual information; entropy where there is "
    "none; the default detector for bll_pyro. Both are also judged by entropy alone.",
    "Alarms: threshold from known rows kept aside, at a stated rate of 5% false alarms. No choice looks at rows that judge.",
    "Held-out classes are unknown to the last layer; the networks of Fashion-MNIST and CIFAR-10 were trained on them too.",
)  # fmt: skip


def run(options: Options) -> Report:
    """Fit what is missing, and make the report."""
    tasks = SMALL if options.small else TASKS
    rows = Rows(
        options.results / "suite.jsonl", (options.results if options.small else CACHE) / "predictions"
    )
    report = Report("suite", "All methods on the same features and splits")
    runner = Runner(rows, is_small=options.small)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            if options.again is not None:
                return again(runner, options.again)
            num_seeds = None if options.small or options.num_runs >= NUM_SEEDS else options.num_runs
            named = [method for method in METHODS if options.keeps(method.name)]
            missing = runner.fill(tasks, named, num_seeds, again=bool(options.methods))
            measure_again(rows, tasks, runner.splits)
    finally:
        torch.set_num_threads(num_threads)
        runner.close()
    rows.tidy()
    ranks = tables.add(report, cells(rows, tasks), rows, runner.absent)
    if ranks:
        picture(ranks, options.results / "suite.png")
        report.pictures.append("suite.png")
    report.notes += NOTES
    report.notes += [f"Data not there: {', '.join(missing)}."] if missing else []
    return report


def again(runner: Runner, name: str) -> Report:
    """Fit one row anew, and show it beside the row that is kept, which stays as it is."""
    kept = runner.rows.rows.get(name)
    if kept is None:
        some = ", ".join(list(runner.rows.rows)[:3])
        raise ValueError(f"--again: expected the id of a row, such as {some}; got {name!r}")
    task = next(task for task in (*TASKS, *SMALL) if task.name == kept["task"])
    method = BY_NAME[kept["method"]]
    if not runner.is_there(method):
        raise ValueError(f"--again {name}: {method.name} is not there: {runner.absent[method.name]}")
    split, path = task.split(kept["seed"], runner.splits)
    arrays, found = runner.fit(method, kept["seed"], split, path)
    if arrays is not None:
        found = found | measured(arrays, split)
    table = Table(
        f"Row {name}, kept and again",
        {"measure": "measure", "method": "method", "kept": "kept", "again": "again"},
    )
    for key in dict.fromkeys((*kept, *found)):
        if key not in ("id", "task", "method", "seed"):
            new = {"split": split.hash, "versions": versions_of(method)} | found
            table.rows.append(
                {"measure": key, "method": method.name, "kept": kept.get(key), "again": new.get(key)}
            )
    report = Report("suite_again", "One row again", [table])
    if "nll" in found and "nll" in kept:
        gap = abs(found["nll"] - kept["nll"])
        report.targets.append(
            Target("NLL again less NLL kept, absolute", gap, 1e-3 * max(1.0, abs(kept["nll"])))
        )
    return report
