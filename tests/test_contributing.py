"""CONTRIBUTING.md adds a prior and a guide by one file and one line each; here that is done, and it works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import numpy as np
import bll_pyro as bll

random = np.random.default_rng(0)
x = random.normal(size=(50, 3))
y = x @ [1.0, -2.0, 0.0] + random.normal(0, 0.3, 50)
layer = bll.LastLayer(likelihood=bll.likelihoods.Gaussian(), prior=bll.priors.Logistic(scale=2.0))
for guide in (bll.guides.Diagonal(), bll.guides.Structured(num_directions=1)):
    fit = bll.fit(layer, (x, y), inference=bll.SVI(guide=guide, num_epochs=50))
    fit.save("model")
    again = bll.load("model")
    assert again.layer == layer and again.inference.guide == guide
    print(float(again.predict(x).mean.mean()))
"""


def test_a_prior_and_a_guide_are_one_file_and_one_line_each(tmp_path: Path) -> None:
    package = tmp_path / "bll_pyro"
    shutil.copytree(ROOT / "bll_pyro", package, ignore=shutil.ignore_patterns("__pycache__"))
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a prior, a guide")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for file, line, folder, name in [
        (*blocks[:2], "priors", "logistic"),
        (*blocks[2:], "guides", "structured"),
    ]:
        (package / folder / f"{name}.py").write_text(file)
        assert line.count("\n") == 1
        with (package / folder / "__init__.py").open("a") as init:
            init.write(line)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
