"""An evaluation always holds the plain head and the calibrated heads, with scores that are those of the metrics."""

import numpy as np
import pytest
import torch

import bll_pyro as bll

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(900, 3, generator=GENERATOR)
NOISE = torch.randn(900, generator=GENERATOR)
LABELS = (INPUTS[:, 0] + 0.7 * NOISE > 0).long()
VALUES = INPUTS[:, 0] + 0.7 * NOISE
TRAIN, HELD_OUT, TEST = slice(0, 100), slice(100, 500), slice(500, 900)
SHORT = bll.SVI(num_epochs=50)


def test_classes():
    layer = bll.LastLayer(bll.likelihoods.Categorical(2))
    fit = bll.fit(layer, (INPUTS[TRAIN], LABELS[TRAIN]), inference=SHORT)
    found = bll.evaluate(
        fit,
        INPUTS[TEST],
        LABELS[TEST],
        train=(INPUTS[TRAIN], LABELS[TRAIN]),
        held_out=(INPUTS[HELD_OUT], LABELS[HELD_OUT]),
        unknown=8 * INPUTS[TEST],
    )
    assert list(found.scores) == ["plain head", "plain head, calibrated", "Bayesian", "Bayesian, calibrated"]
    prediction = fit.predict(INPUTS[TEST])
    mine = found.scores["Bayesian"]
    assert mine["NLL"] == pytest.approx(bll.metrics.nll(prediction.probs, LABELS[TEST]), rel=1e-5)
    assert mine["ECE"] == bll.metrics.ece(prediction.probs, LABELS[TEST])
    strange = fit.predict(8 * INPUTS[TEST])
    assert mine["AUROC epistemic"] == bll.metrics.auroc(prediction.epistemic, strange.epistemic)
    assert found.scores["plain head"]["AUROC epistemic"] is None
    for head in ("plain head", "Bayesian"):
        assert found.scores[head]["accuracy"] == found.scores[f"{head}, calibrated"]["accuracy"]
    assert "plain head, calibrated" in str(found) and str(found).count("\n") == 4
    assert found.to_pandas().loc["Bayesian", "Brier"] == mine["Brier"]
    calibrated = bll.calibrate(fit, INPUTS[HELD_OUT], LABELS[HELD_OUT]).predict(INPUTS[TEST])
    assert found.scores["Bayesian, calibrated"]["ECE"] == bll.metrics.ece(calibrated.probs, LABELS[TEST])


def test_values_with_a_given_plain_head():
    layer = bll.LastLayer(bll.likelihoods.Gaussian())
    data = (INPUTS[TRAIN], VALUES[TRAIN])
    fit = bll.fit(layer, data, inference=bll.Exact())
    plain = bll.fit(layer, data, inference=bll.SVI(guide=bll.guides.MAP(), num_epochs=50))
    found = bll.evaluate(
        fit, INPUTS[TEST], VALUES[TEST], plain=plain, held_out=(INPUTS[HELD_OUT], VALUES[HELD_OUT])
    )
    prediction = fit.predict(INPUTS[TEST])
    mine = found.scores["Bayesian"]
    assert mine["RMSE"] == pytest.approx(np.sqrt(np.mean((prediction.mean - VALUES[TEST]).numpy() ** 2)))
    assert mine["NLL"] == pytest.approx(-float(prediction.log_prob(VALUES[TEST]).mean()), rel=1e-5)
    assert 0.8 < mine["coverage"] < 1


def test_it_wants_one_plain_head():
    layer = bll.LastLayer(bll.likelihoods.Categorical(2))
    fit = bll.fit(layer, (INPUTS[TRAIN], LABELS[TRAIN]), inference=bll.SVI(num_epochs=1))
    rows = (INPUTS[HELD_OUT], LABELS[HELD_OUT])
    with pytest.raises(ValueError, match="got neither"):
        bll.evaluate(fit, *rows, held_out=rows)
    with pytest.raises(ValueError, match="got both"):
        bll.evaluate(fit, *rows, held_out=rows, train=rows, plain=fit)
