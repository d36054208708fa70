"""What an import loads: nothing at first, and no heavy library for a first fit."""

import subprocess
import sys

from benchmarks.import_time import LATER

PROGRAM = """
import sys
import bll_pyro as bll
first = set(sys.modules)
bll.fit, bll.LastLayer, bll.SVI, bll.likelihoods, bll.priors, bll.guides
print("torch" in first, *(name for name in sys.argv[1:] if name in sys.modules))
"""


def test_heavy_libraries_load_when_they_are_first_used() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *LATER], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False"]
