"""The default, with nothing chosen, beside what a user would have done otherwise, on small data sets.

Results are stored line by line in ``defaults.jsonl`` and kept: a run measures what is missing, and with ``--methods``
what another version of the named methods made. ``--runs`` is the number of splits; up to ``NUM_SEEN_SEEDS`` of them
the data sets that are kept aside stay out of the run and of the tables, so that defaults can be tuned without them.
"""

from dataclasses import replace

from threadpoolctl import threadpool_limits

from benchmarks.defaults import tables, times
from benchmarks.defaults.data import NUM_SEEN_SEEDS, SETS
from benchmarks.defaults.measure import fill
from benchmarks.defaults.methods import METHODS
from benchmarks.defaults.store import Store
from benchmarks.options import Options
from benchmarks.report import Report

SMALL = ("digits", "diabetes")  # scikit-learn ships them


def run(options: Options) -> Report:
    """Measure what is not stored, and make the tables of what is."""
    sets = SETS
    if options.small:
        sets = tuple(replace(data, sizes=data.sizes[:1]) for data in SETS if data.name in SMALL)
    methods = [method for method in METHODS if method.made_with and options.keeps(method.name)]
    store = Store(options.results / "defaults.jsonl")
    report = Report("defaults", "The default beside what a user would have done otherwise")
    there, missing = [], []
    with threadpool_limits(options.num_threads):
        for data in sets:
            try:
                fill(store, data, methods, options.num_runs, again=bool(options.methods))
                there.append(data)
            except FileNotFoundError:
                missing.append(data.name)
    store.tidy()
    tables.add(report, store, there, options.num_runs)
    with threadpool_limits(1):
        times.add(report, options)
    if options.num_runs <= NUM_SEEN_SEEDS:
        report.notes.append(
            f"Seeds from {NUM_SEEN_SEEDS} on, and the sets that are kept aside, are neither measured nor shown "
            f"with --runs {options.num_runs}."
        )
    absent = [method.name for method in METHODS if method.made_with is None]
    report.notes += [f"Not installed: {', '.join(absent)}."] if absent else []
    report.notes += [f"Data not there: {', '.join(missing)}."] if missing else []
    return report
