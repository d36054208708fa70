"""Regression with intervals: a Bayesian linear layer on random features of one input.

There are noisy data in [-1, 1] and none outside. The predictive interval is narrow where there are data and wide where
there are none: aleatoric uncertainty is the noise, epistemic uncertainty would decrease with more data.

    python examples/01_regression_with_intervals.py [--small]
"""

import argparse

import numpy as np

import bll_pyro as bll


def random_fourier_features(x: np.ndarray, num_features: int = 100, lengthscale: float = 0.3) -> np.ndarray:
    """Features whose inner products approximate a squared-exponential kernel (Rahimi and Recht 2007)."""
    random = np.random.default_rng(0)
    frequency = random.normal(size=num_features) / lengthscale
    phase = random.uniform(0, 2 * np.pi, size=num_features)
    return np.sqrt(2 / num_features) * np.cos(x[:, None] * frequency + phase)


def main(small: bool = False) -> None:
    """Fit, predict, print."""
    random = np.random.default_rng(1)
    num_rows = 60 if small else 400
    x = random.uniform(-1, 1, size=num_rows)
    y = 10 * np.sin(3 * x) + random.normal(scale=1.5, size=num_rows)

    layer = bll.LastLayer(likelihood=bll.likelihoods.Gaussian())
    fit = bll.fit(layer, (random_fourier_features(x), y))

    x_new = np.array([-2.0, -0.5, 0.0, 0.5, 2.0])
    prediction = fit.predict(random_fourier_features(x_new))
    lower, upper = prediction.interval(0.9)
    print("    x    mean   90% interval       aleatoric  epistemic (variances)")
    for i, value in enumerate(x_new):
        print(
            f"{value:5.1f}  {prediction.mean[i]:6.2f}   [{lower[i]:6.2f}, {upper[i]:6.2f}]"
            f"   {prediction.aleatoric[i]:8.2f}   {prediction.epistemic[i]:8.2f}"
        )
    inside, outside = prediction.epistemic[1:4].max(), prediction.epistemic[[0, 4]].min()
    assert outside > 3 * inside, "far from the data the model has to be less sure"
    noise = prediction.aleatoric.sqrt().mean()
    print(f"noise: found {noise:.2f}, simulated 1.50")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer rows")
    main(**vars(parser.parse_args()))
