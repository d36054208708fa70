"""Noise that depends on the input: a fan chart of head accelerations in a simulated motorcycle crash.

The mean and the log of the noise scale are both linear in spline features of the time, with a posterior for both. Ten-fold
cross-validation compares this with a constant noise scale. The data are Silverman's (1985), read from the folder in
BLL_DATA or from ``shared/data/motorcycle`` next to the checkout, or else similar data are simulated.

    python examples/05_heteroscedastic.py [--small] [--picture fan.png]
"""

import argparse
import os
from pathlib import Path

import numpy as np

import bll_pyro as bll

ROOT = Path(__file__).resolve().parent.parent


def motorcycle() -> tuple[np.ndarray, np.ndarray]:
    """Times in ms and accelerations in g: the data, or simulated ones if they are not available."""
    folders = [Path(os.environ["BLL_DATA"])] if "BLL_DATA" in os.environ else []
    folders += [parent / "shared" / "data" for parent in (ROOT, ROOT.parent)]
    for folder in folders:
        if (file := folder / "motorcycle" / "motorcycle.csv").exists():
            time, acceleration = np.loadtxt(file, delimiter=",", skiprows=1).T
            return time, acceleration
    random = np.random.default_rng(0)
    time = np.sort(random.uniform(2.4, 57.6, size=133))
    mean = -110 * np.exp(-(((time - 21) / 6) ** 2)) + 40 * np.exp(-(((time - 33) / 6) ** 2))
    return time, mean + random.normal(scale=np.where(time < 14, 1.5, 24.0))


def splines(time: np.ndarray, num_knots: int = 10) -> np.ndarray:
    """Cubic B-splines on evenly spaced knots from the first to the last time, ``[N, num_knots]``."""
    knots, width = np.linspace(2.4, 57.6, num_knots, retstep=True)
    distance = np.abs(time[:, None] - knots) / width
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clip(0) ** 3 / 6
    return np.where(distance < 1, near, far)


def cross_validate(
    likelihood: bll.likelihoods.Likelihood, time: np.ndarray, y: np.ndarray, num_folds: int
) -> str:
    """Held-out log density per row in nats, and the share of targets in the 90 % intervals."""
    fold = np.random.default_rng(0).permutation(len(time)) % num_folds
    log_prob, inside = [], []
    for k in range(num_folds):
        train, test = fold != k, fold == k
        prediction = fit(likelihood, time[train], y[train]).predict(splines(time[test]))
        lower, upper = (end.numpy() for end in prediction.interval(0.9))
        log_prob.append(prediction.log_prob(y[test]).numpy())
        inside.append((lower <= y[test]) & (y[test] <= upper))
    density, coverage = np.concatenate(log_prob).mean(), np.concatenate(inside).mean()
    return f"{density:8.3f}   {coverage:6.1%}"


def fit(likelihood: bll.likelihoods.Likelihood, time: np.ndarray, y: np.ndarray) -> bll.Fit:
    """Laplace's approximation with the full covariance, which takes milliseconds for 11 or 22 weights."""
    layer = bll.LastLayer(likelihood=likelihood)
    return bll.fit(layer, (splines(time), y), inference=bll.Laplace(curvature=bll.curvatures.Full()))


def main(small: bool = False, picture: str | None = None) -> None:
    """Compare, fit, draw."""
    time, y = motorcycle()
    num_folds = 3 if small else 10
    print(f"{num_folds}-fold               log density   90% intervals hold")
    for likelihood in (bll.likelihoods.Gaussian(), bll.likelihoods.HeteroscedasticGaussian()):
        print(f"{type(likelihood).__name__:24}", cross_validate(likelihood, time, y, num_folds))

    whole = fit(bll.likelihoods.HeteroscedasticGaussian(), time, y)
    grid = np.linspace(2.4, 57.6, 40 if small else 400)
    prediction = whole.predict(splines(grid))
    noise = prediction.aleatoric.sqrt()
    assert noise[0] < 0.3 * noise.max(), "before the crash there is next to no noise"
    if picture is not None:
        figure = bll.plots.fan_chart(
            prediction,
            grid,
            data=(time, y),
            title="Head acceleration after impact: the noise depends on the time",
            labels=("time, ms", "acceleration, g"),
        )
        figure.savefig(picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer folds")
    parser.add_argument("--picture", help="file for the fan chart")
    main(**vars(parser.parse_args()))
