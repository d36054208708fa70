"""Leave-one-out in output space: its CPU time over that of the fit, on stored Fashion-MNIST features."""

import time

import numpy as np

import bll_pyro as bll
from benchmarks.options import Options
from benchmarks.quality import task_for
from benchmarks.report import Report, Table, Target

NUM_CHOSEN = 2_000  # rows of the subsampled estimate


def run(options: Options) -> Report:
    """CPU seconds, which other work on the machine hardly affects, of a fit, of leave-one-out and of a subsample."""
    task = task_for(options)
    report = Report("loo", f"Leave-one-out on {task.name}")
    data = (task.train_features, task.train_targets)
    layer = bll.LastLayer(bll.likelihoods.Categorical(task.num_classes))
    num_chosen = min(NUM_CHOSEN, len(data[1]) // 2)
    small = (data[0][:200], data[1][:200])
    bll.loo(bll.fit(layer, small), small, num_rows=100)  # warm-up, with lazy imports
    seconds: dict[str, list[float]] = {"fit": [], "all rows": [], "some rows": []}
    elpd, part = None, None
    for seed in range(options.num_runs):
        began = time.process_time()
        fit = bll.fit(layer, data, seed=seed)
        seconds["fit"].append(time.process_time() - began)
        began = time.process_time()
        elpd = bll.loo(fit, data)
        seconds["all rows"].append(time.process_time() - began)
        began = time.process_time()
        part = bll.loo(fit, data, num_rows=num_chosen, seed=seed)
        seconds["some rows"].append(time.process_time() - began)
    assert elpd is not None and part is not None
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    num_rows = len(data[1])
    columns = {
        "method": "",
        "seconds": "CPU seconds",
        "ratio": "over the fit",
        "elpd": "ELPD, nats a row",
        "error": "error of the choice of rows",
    }
    rows = [{"method": "the fit itself (SVI, defaults)", "seconds": medians["fit"], "ratio": 1.0}]
    for name, result in (("all rows", elpd), ("some rows", part)):
        left_out = num_rows if name == "all rows" else num_chosen
        rows.append(
            {
                "method": f"bll_pyro, leave-one-out of {left_out:,} rows",
                "seconds": medians[name],
                "ratio": medians[name] / medians["fit"],
                "elpd": result.elpd / num_rows,
                "error": None if name == "all rows" else result.subsampling_se / num_rows,
            }
        )
    report.tables.append(Table("Medians", columns, rows))
    report.targets += [
        Target("all rows: CPU time over the fit", medians["all rows"] / medians["fit"], 1.0),
        Target(f"{num_chosen:,} rows: CPU time over the fit", medians["some rows"] / medians["fit"], 1.0),
    ]
    return report
