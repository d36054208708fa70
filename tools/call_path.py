#!/usr/bin/env python
"""How many functions of the package, in how many files, a call enters: ``python tools/call_path.py [--names]``.

A reader who follows a call has to open that many. Counted are functions and methods whose code lies in ``bll_pyro``,
each once; comprehensions, lambdas, generator expressions and class bodies are part of the function that they stand in.
Each call has run once before it is counted, so that imports and caches that live for the whole process are not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn

import bll_pyro as bll

PACKAGE = Path(bll.__file__).resolve().parent
CHECKS = ("read", "check_targets", "check_training")


@dataclass(frozen=True)
class Entered:
    """The functions of the package that one call entered, with the number of times each ran."""

    times: Counter[CodeType]

    @property
    def num_functions(self) -> int:
        return len(self.times)

    @property
    def files(self) -> list[str]:
        """Files of these functions, relative to the package."""
        return sorted({str(Path(code.co_filename).relative_to(PACKAGE)) for code in self.times})

    def calls_of(self, name: str) -> int:
        """How often a function or method of this name ran: ``read`` of features/data.py, or a check of targets."""
        return sum(
            times
            for code, times in self.times.items()
            if code.co_name == name and (name != "read" or code.co_filename.endswith("features/data.py"))
        )


def is_function(code: CodeType) -> bool:
    """Whether it is a function or a method of the package, and no lambda, generator expression, class body or module."""
    named = bool(code.co_flags & CO_OPTIMIZED) and not code.co_name.startswith("<")
    return named and Path(code.co_filename).is_relative_to(PACKAGE)


def follow(call: Callable[[], Any]) -> Entered:
    """Run ``call`` twice and count what the second run enters."""
    call()
    events, tool, times = sys.monitoring.events, sys.monitoring.PROFILER_ID, Counter[CodeType]()

    def enter(code: CodeType, _: int) -> Any:
        if not is_function(code):
            return sys.monitoring.DISABLE
        times[code] += 1
        return None

    sys.monitoring.use_tool_id(tool, "call_path")
    try:
        sys.monitoring.restart_events()
        sys.monitoring.register_callback(tool, events.PY_START, enter)
        sys.monitoring.set_events(tool, events.PY_START)
        call()
    finally:
        sys.monitoring.set_events(tool, 0)
        sys.monitoring.register_callback(tool, events.PY_START, None)
        sys.monitoring.free_tool_id(tool)
    return Entered(times)


def paths() -> dict[str, Entered]:
    """A default fit of three classes, its prediction and DataTree, and a joint fit of a small network.

    There are so many rows that no prior scale is chosen on held-out rows.
    """
    random = torch.Generator().manual_seed(0)
    features = torch.randn(500, 20, generator=random)
    labels = (features[:, :3] + 0.5 * torch.randn(500, 3, generator=random)).argmax(-1)
    layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes=3))
    fit = bll.fit(layer, (features, labels))
    joint = bll.SVI(backbone_learning_rate=1e-3, num_epochs=2)

    def fit_jointly() -> bll.Fit:
        backbone = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 8))
        return bll.fit(layer, (features, labels), backbone, joint)

    with torch.random.fork_rng():  # the network's first weights
        torch.manual_seed(0)
        return {
            "fit": follow(lambda: bll.fit(layer, (features, labels))),
            "predict": follow(lambda: fit.predict(features)),
            "to_datatree": follow(lambda: fit.to_datatree(features, labels)),
            "joint fit": follow(fit_jointly),
        }


def main() -> None:
    """Print a line for each call; with ``--names`` also what it entered."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", action="store_true", help="print the functions too, file by file")
    given = parser.parse_args()
    print(f"{'':12} functions  files  " + "  ".join(CHECKS))
    for name, path in paths().items():
        checks = "  ".join(f"{path.calls_of(check):{len(check)}}" for check in CHECKS)
        print(f"{name:12} {path.num_functions:9}  {len(path.files):5}  {checks}")
        if given.names:
            for file in path.files:
                inside = sorted(c.co_qualname for c in path.times if c.co_filename == str(PACKAGE / file))
                print(f"  {file}: {', '.join(inside)}")


if __name__ == "__main__":
    main()
