"""Laplace's approximation on few rows, where it is wide."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_wine

import bll_pyro as bll

IMAGES, DIGITS = load_digits(return_X_y=True)


@pytest.mark.parametrize("seed", range(6))
def test_24_float32_rows_of_easy_classes_warn_of_nothing(seed) -> None:
    for features, labels in (load_digits(return_X_y=True), load_wine(return_X_y=True)):
        rows = np.random.default_rng(seed).permutation(len(labels))[:24]
        layer = bll.LastLayer(bll.likelihoods.Categorical(int(labels.max()) + 1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit = bll.fit(layer, (features[rows].astype(np.float32), labels[rows]), inference=bll.Laplace())
        assert fit.trace.converged


def test_the_temperature_makes_up_for_its_width_on_separable_rows() -> None:
    """240 digits, three splits: without it the NLL is .54 where SVI has .31, with it .26 for .24."""
    layer, ratios = bll.LastLayer(bll.likelihoods.Categorical(10)), []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(DIGITS))
        train, test = order[:240], order[-597:]
        data = (IMAGES[train].astype(np.float32) / 16, DIGITS[train])
        losses = []
        for inference in (bll.SVI(), bll.Laplace()):
            fit = bll.fit(layer, data, inference=inference, seed=seed)
            prediction = fit.predict(IMAGES[test].astype(np.float32) / 16)
            losses.append(-float(prediction.log_prob(DIGITS[test]).mean()))
        ratios.append(losses[1] / losses[0])
    assert np.mean(ratios) < 1.2
