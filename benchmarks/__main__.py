"""Run benchmarks: ``python -m benchmarks [NAME ...]``; without names all of them."""

import argparse
import os
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.environment import describe
from benchmarks.options import Options

NAMES = (
    "step_time",
    "quality",
    "predict",
    "memory",
    "curves",
    "import_time",
    "first_fit",
    "cuda",
    "service",
    "inferences",
    "loo",
    "ood",
    "drift",
    "bounds",
    "referee",
    "scales",
    "joint",
    "precision",
    "pixels",
    "defaults",
    "choose",
    "bayesianize",
    "text",
    "tables",
    "recommend",
    "practice",
    "compare_command",
    "deployed",
    "store_size",
    "extraction",
    "ranks",
    "outputs",
    "capacity",
    "suite",
    "ray_data",
)


def main() -> None:
    """Read the command line, run the benchmarks that it names, write and print the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; default: all")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--runs", type=int, help="interleaved repetitions (default 5; 1 with --small)")
    parser.add_argument("--threads", type=int, help="threads for torch (default: all cores)")
    parser.add_argument(
        "--methods", nargs="+", default=[], metavar="PART", help="only methods whose name contains one"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="folder for the results (default: benchmarks/results; with --small runs/benchmarks)",
    )
    parser.add_argument("--again", metavar="ID", help="with suite: fit one row of results/suite.jsonl anew")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"expected names out of {', '.join(NAMES)}, got {', '.join(unknown)}")
    if given.again is not None and given.names != ["suite"]:
        parser.error("expected --again with the name suite alone")
    root = Path(__file__).resolve().parents[1]
    default = root / "runs" / "benchmarks" if given.small else root / "benchmarks" / "results"
    options = Options(
        small=given.small,
        num_runs=given.runs if given.runs is not None else (1 if given.small else 5),
        num_threads=given.threads if given.threads is not None else len(os.sched_getaffinity(0)),
        methods=tuple(given.methods),
        results=given.results or default,
        again=given.again,
    )
    torch.set_num_threads(options.num_threads)
    for name in given.names or NAMES:
        environment = describe(options.num_threads)
        report = import_module(f"benchmarks.{name}").run(options)
        said = {"small": options.small, "num_runs": options.num_runs, "methods": options.methods}
        report.write(options.results, environment, said)
        print(report.markdown(environment), flush=True)


if __name__ == "__main__":
    main()
