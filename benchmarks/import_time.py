"""Import time of bll_pyro compared with torch and Pyro, and a check that heavy libraries are not imported.

The package imports its modules when a name is first used, so the imports of a first fit are timed as well.
"""

import subprocess
import sys
import time

from benchmarks.harness import Measure, interleave, ratio
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

TORCH_AND_PYRO = "import torch, pyro"
FIRST_FIT = (
    "import torch, bll_pyro as bll; bll.fit, bll.LastLayer, bll.SVI, bll.likelihoods, bll.priors, bll.guides"
)
STATEMENTS = {
    "import torch, pyro": TORCH_AND_PYRO,
    "import bll_pyro": "import bll_pyro",
    "import bll_pyro, and the names of a first fit": FIRST_FIT,
}
LATER = (
    "timm",
    "transformers",
    "arviz",
    "matplotlib",
    "lightning_fabric",
    "lightning",
    "xarray",
    "pandas",
    "narwhals",
    "polars",
    "pyarrow",
    "sklearn",
    "torchvision",
)


def _seconds(statement: str) -> Measure:
    def measure() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.perf_counter() - began

    return measure


def loaded_too_early() -> list[str]:
    """Heavy libraries that the names of a first fit import and `import torch, pyro` does not."""
    listed = "print(*{name.partition('.')[0] for name in sys.modules})"
    code = f"import sys; {TORCH_AND_PYRO}; {listed}; {FIRST_FIT}; {listed}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, after = (set(line.split()) for line in done.stdout.splitlines())
    return sorted((after - before) & set(LATER))


def run(options: Options) -> Report:
    """Time fresh interpreters in interleaved rounds; the first round, which fills the disk cache, is not counted."""
    measures = {name: _seconds(code) for name, code in STATEMENTS.items()}
    timings = interleave(measures, options.num_runs, num_warm_ups=0 if options.small else 1)
    columns = {"method": "statement", "seconds": "s", "ratio": "over torch and pyro (quartiles)"}
    table = Table("A fresh interpreter", columns)
    report = Report("import_time", "Import time", [table])
    reference = timings["import torch, pyro"]
    for name, timing in timings.items():
        found = ratio(timing, reference)
        table.rows.append(
            {"method": name, "seconds": timing.median, "ratio": found, "rounds": timing.seconds}
        )
        if timing is not reference:
            report.targets.append(Target(f"{name}, over import torch, pyro", found.median, 1.3))
    early = loaded_too_early()
    report.targets.append(Target("heavy libraries loaded by the names of a first fit", float(len(early)), 0))
    report.notes.append(f"Looked for: {', '.join(LATER)}. Loaded too early: {', '.join(early) or 'none'}.")
    return report
