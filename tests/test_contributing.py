"""CONTRIBUTING.md adds a prior, a guide, a likelihood and an inference; here that is done, and each of them works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECTION = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a prior, a guide")[1].split("\n## ")[0]

SETTING = """
import math
import numpy as np
import torch
import bll_pyro as bll

random = np.random.default_rng(0)

def file_of(fit):
    fit.save("model")
    again = bll.load("model")
    assert (again.layer, again.inference) == (fit.layer, fit.inference)
    return again
"""

PRIOR_AND_GUIDE = """
x = random.normal(size=(50, 3))
y = x @ [1.0, -2.0, 0.0] + random.normal(0, 0.3, 50)
layer = bll.LastLayer(likelihood=bll.likelihoods.Gaussian(), prior=bll.priors.Logistic(scale=2.0))
for guide in (bll.guides.Diagonal(), bll.guides.Structured(num_directions=1)):
    fit = bll.fit(layer, (x, y), inference=bll.SVI(guide=guide, num_epochs=50))
    again = file_of(fit)
    assert torch.equal(again.predict(x).mean, fit.predict(x).mean)
"""

LIKELIHOOD = """
weight = np.array([[0.8, -0.5, 0.0], [0.0, 0.3, 0.3]])
x = random.normal(size=(400, 3))
y = random.exponential(np.exp(x @ weight.T + [1.0, -1.0]))
layer = bll.LastLayer(likelihood=bll.likelihoods.Exponential())
fit = file_of(bll.fit(layer, (x, y)))
assert fit.trace.converged
draws = fit.posterior.sample(1000)["weight"][0]
distance = (draws.mean(0).numpy() * fit.posterior.frame.scale.reciprocal().numpy() - weight) / 0.05  # 1 / sqrt(400)
assert np.abs(distance).max() < 4

prediction = fit.predict(x)
assert bool((prediction.epistemic > 0).all())
torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)
for kind in ("equal_tailed", "hdi"):
    lower, upper = prediction.interval(0.9, kind=kind)
    inside = ((lower.numpy() <= y) & (y <= upper.numpy())).mean(0)
    assert bool((lower > -1e-6).all()) and np.abs(inside - 0.9).max() < 4 * math.sqrt(0.09 / 400)
    shortest = (upper - lower).mean()
assert bool((lower < 0.02 * upper).all())  # the density is highest at 0
assert shortest < 0.9 * (prediction.quantile(0.95) - prediction.quantile(0.05)).mean()
uniform = np.sort(prediction.pit(y).numpy()[:, 0])
assert np.abs(uniform - np.arange(400) / 400).max() < 1.63 / math.sqrt(400)  # Kolmogorov-Smirnov, 1 percent
assert bool((prediction.sample(200) >= 0).all())
assert bool(prediction.crps(y).isfinite().all())
assert set(fit.to_datatree(x, y, num_draws=20).children) >= {"posterior", "posterior_predictive", "log_likelihood"}

one = bll.fit(layer, (x, y[:, 0]), inference=bll.SVI(output_space=False, num_epochs=30))  # Pyro's own ELBO
assert one.predict(x).mean.shape == (400,)
try:
    bll.fit(layer, (x, -y))
except ValueError as error:
    assert "expected targets with a finite density under Exponential" in str(error)
else:
    raise AssertionError("negative times were taken")
"""

INFERENCE = """
import warnings

x = random.normal(size=(12, 2))
y = x @ [1.0, -0.5] + random.normal(0, 0.5, 12)
layer = bll.LastLayer(bll.likelihoods.Gaussian(0.5), bll.priors.Normal(scale=1.0), bias_scale=1.0)
inference = bll.Importance(num_proposals=400_000, num_draws=4000)
fit = file_of(bll.fit(layer, (x, y), inference=inference, seed=1))
exact = bll.fit(layer, (x, y), inference=bll.Exact())
assert fit.trace.converged
found, right = (f.posterior.sample(20_000) for f in (fit, exact))
for name in ("weight", "bias"):
    spread = right[name].std((0, 1))
    # 4,000 draws from about as many distinct proposals: 5 standard errors of both samplings
    assert float(((found[name].mean((0, 1)) - right[name].mean((0, 1))) / spread).abs().max()) < 0.12
    assert float((found[name].std((0, 1)) / spread - 1).abs().max()) < 0.1
assert abs(fit.log_evidence - exact.log_evidence) < 0.1
at = random.normal(size=(20, 2))
assert float((fit.predict(at).mean - exact.predict(at).mean).abs().max()) < 0.1

# any prior and likelihood with a density, and unknown noise: the same call
counts = random.poisson(np.exp(x @ [0.5, 0.0]))
prior = bll.priors.HierarchicalNormal()
few = bll.Importance(num_proposals=20_000, num_draws=200)
for likelihood, targets in ((bll.likelihoods.Exponential(), np.exp(y)), (bll.likelihoods.Poisson(), counts),
                            (bll.likelihoods.Gaussian(), y), (bll.likelihoods.Categorical(3), counts.clip(0, 2))):
    fit = file_of(bll.fit(bll.LastLayer(likelihood, prior, bias_scale=1.0), (x, targets), inference=few))
    assert bool(fit.predict(x).log_prob(targets).isfinite().all())
    assert {"weight", "bias"} <= set(fit.to_datatree(x, targets)["posterior"].data_vars)

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    lost = bll.fit(layer, (x, y), inference=bll.Importance(num_proposals=50))
assert not lost.trace.converged and "likelihood that counts" in str(said[-1].message)
try:
    bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (x, y), inference=inference)
except ValueError as error:
    assert "Importance: expected a prior with a density" in str(error)
else:
    raise AssertionError("a learned scale was taken")
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package to which all four members were added; the folder that it lies in."""
    folder = tmp_path_factory.mktemp("contributing")
    copy = folder / "bll_pyro"
    shutil.copytree(ROOT / "bll_pyro", copy, ignore=shutil.ignore_patterns("__pycache__"))
    *blocks, room = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    paths = re.findall(r"This is `(bll_pyro/[\w/]+\.py)`", SECTION)
    assert len(paths) == 4 and len(blocks) == 2 * len(paths)
    for path, file, line in zip(paths, blocks[::2], blocks[1::2], strict=True):
        assert line.count("\n") == 1 and f"from {path.removesuffix('.py').replace('/', '.')} import" in line
        (folder / path).write_text(file)
        with (folder / path).with_name("__init__.py").open("a") as init:
            init.write(line)
    assert room.count("\n") == 1
    door = (copy / "__init__.py").read_text()
    assert door.count("_ROOMS = {\n") == 1
    (copy / "__init__.py").write_text(door.replace("_ROOMS = {\n", "_ROOMS = {\n" + room))
    return folder


@pytest.mark.slow
def test_members_are_added_as_the_page_says(package: Path, tmp_path: Path) -> None:
    """In one process, since starting one costs more than these fits."""
    done = subprocess.run(
        [sys.executable, "-c", SETTING + PRIOR_AND_GUIDE + LIKELIHOOD + INFERENCE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_added_files_keep_the_style(package: Path) -> None:
    """What the page shows passes the checks that a contributor's file has to pass."""
    paths = re.findall(r"This is `(bll_pyro/[\w/]+\.py)`", SECTION)
    settings = ["--config", str(ROOT / "pyproject.toml")]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ruff"), *command, *settings, "--no-cache", *paths],
            cwd=package,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
