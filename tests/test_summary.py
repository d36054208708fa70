"""Results print as a few readable lines, in notebooks too; what is in them are the numbers of the result."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

import bll_pyro as bll
from bll_pyro.scope import generator
from bll_pyro.summary import brief, spread

L = bll.likelihoods
X = torch.randn(400, 10, generator=generator(0))
LABELS = (X[:, 0] > 0).long()
NUMBERS = X[:, :2] + 0.1 * torch.randn(400, 2, generator=generator(1))


@pytest.fixture(scope="module")
def fits() -> dict[str, bll.Fit]:
    classes = bll.fit(bll.LastLayer(L.Categorical(2)), (X, LABELS), inference=bll.SVI(num_epochs=30))
    held_out = X + 0.1, LABELS
    calibrated = bll.calibrate(classes, *held_out)
    return {
        "classes": classes,
        "calibrated": calibrated.with_detector(bll.ood.Detector().calibrate(calibrated, X + 0.1)),
        "numbers": bll.fit(bll.LastLayer(L.Gaussian()), (X, NUMBERS), inference=bll.Exact()),
        "counts": bll.fit(bll.LastLayer(L.Poisson()), (X, LABELS), inference=bll.SVI(num_epochs=5)),
    }


def test_results_are_about_ten_lines(fits: dict[str, bll.Fit]) -> None:
    for fit in fits.values():
        prediction = fit.predict(X)
        posterior = fit.posterior
        shown = [
            fit,
            prediction,
            posterior,
            fit.trace,
            posterior.outputs(X),
            posterior.frame,
            fit.layer,
            fit.inference,
        ]
        shown += [getattr(prediction, "mixture", None), prediction.ood, fit.detector, bll.Data((X, LABELS))]
        for result in shown:
            text = repr(result)
            assert text == str(result)
            assert text.count("\n") <= 11 and max(map(len, text.splitlines())) < 400, (
                text
            )  # a detector of seven scores
            assert "tensor(" not in text and "array(" not in text


def test_a_fit_says_what_it_knows(fits: dict[str, bll.Fit]) -> None:
    text = repr(fits["calibrated"])
    fit = fits["calibrated"]
    for said in (
        "declaration    LastLayer(likelihood=Categorical(num_classes=2))",
        "data           400 rows, 10 features, 2 outputs",
        "SVI(num_epochs=30), seed 0: converged",
        f"tau = {float(fit.posterior.learned['tau']):.4g}",
        f"{fit.elbo:.1f} nats, {fit.elbo / 400:.4g} a row",
        "PredictiveTemperature(temperature=",
        "Detector(score=HarmonicMean(groups=(Fisher(scores=(Mahalanobis(), ",
        "rows           200 training rows, 100 reference rows, 100 threshold",
        "notes          30 steps are too few to tell",
    ):
        assert said in text, text
    assert f"log evidence  {fits['numbers'].log_evidence:.1f} nats" in repr(fits["numbers"])
    assert "2 targets a row" in repr(fits["numbers"])
    troubled = replace(fit, trace=replace(fit.trace, converged=False, messages=["look <here>"]))
    assert "not converged" in repr(troubled) and "warnings       look <here>" in repr(troubled)
    assert troubled._repr_html_() == f"<pre>{repr(troubled).replace('<', '&lt;').replace('>', '&gt;')}</pre>"


def test_a_prediction_gives_the_range_of_its_rows(fits: dict[str, bll.Fit]) -> None:
    prediction = fits["calibrated"].predict(X)
    text = repr(prediction)
    assert (
        f"0: {int((prediction.label == 0).sum())} rows, 1: {int((prediction.label == 1).sum())} rows" in text
    )
    assert f"alarm in {int(prediction.ood.is_ood.sum())} rows" in text
    mean = fits["numbers"].predict(X).mean
    assert f"mean {float(mean.mean()):.4g}, from {float(mean.min()):.4g} to" in repr(
        fits["numbers"].predict(X)
    )
    assert "<pre>ClassPrediction" in prediction._repr_html_()
    assert spread(torch.zeros(0)) == "no rows"


def test_values_in_one_line() -> None:
    assert brief(torch.tensor(1.23456)) == "1.235" and brief(np.array([1.0, 2.0])) == "[1, 2]"
    assert brief(torch.zeros(5, 3)) == "tensor[5, 3]" and brief(list(range(9))) == "9 values"
    assert brief((torch.zeros(2, 2),)) == "(tensor[2, 2],)" and brief({"tau": torch.ones(1)}) == "{tau: [1]}"
    layer = bll.LastLayer(L.Categorical(3), bll.priors.Normal(1.0, loc=torch.zeros(3, 50)))
    assert (
        "loc=tensor[3, 50]" in repr(layer) and repr(L.Gaussian(0.123456)) == "Gaussian(noise_scale=0.123456)"
    )
    assert repr(copy.deepcopy(layer)) == repr(pickle.loads(pickle.dumps(layer))) == repr(layer)
