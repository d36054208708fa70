"""``bll demo``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from bll_pyro.cli.console import Console
from bll_pyro.demo import demo


def demo_command(  # noqa: D103  its docstring is that of the demo
    console: Console, out: Path = Path("runs/demo"), seed: int = 0, quick: bool = False
) -> None:
    with contextlib.redirect_stdout(sys.stderr) if console.json else contextlib.nullcontext():
        demo(out, seed, quick)
    if console.json:
        console.result("", json.loads((out / "metrics.json").read_text()))


demo_command.__doc__ = demo.__doc__
