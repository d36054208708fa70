"""Conformal sets and intervals of a fit cover as often as they say, whatever the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import betabinom, binom

import bll_pyro as bll
from bll_pyro.conformal import APS, LAC, PredictionIntervals, PredictionSets, conformal_quantile, set_coverage

GENERATOR = torch.Generator().manual_seed(3)
FEATURES = torch.randn(4000, 4, generator=GENERATOR)
NOISE = 0.8 * torch.randn(4000, generator=GENERATOR)
LABELS = (FEATURES[:, 0] + NOISE > 0).long() + (FEATURES[:, 1] + NOISE > 0.5).long()
VALUES = torch.stack([FEATURES[:, 0] + NOISE * FEATURES[:, 1].exp(), 50 * FEATURES[:, 2] + 9 * NOISE], -1)
NUM_TRAIN, NUM_CALIBRATION, NUM_NEW, NUM_SPLITS = 300, 200, 300, 200


def fit_of(likelihood, targets, inference):
    train = (FEATURES[:NUM_TRAIN], targets[:NUM_TRAIN])
    return bll.fit(bll.LastLayer(likelihood), train, inference=inference)


@pytest.fixture(scope="module")
def classes():
    return fit_of(bll.likelihoods.Categorical(3), LABELS, bll.SVI(num_epochs=20))


@pytest.fixture(scope="module")
def values():
    return fit_of(bll.likelihoods.Gaussian(), VALUES, bll.Exact())


def splits():
    random = torch.Generator().manual_seed(7)
    for _ in range(NUM_SPLITS):
        order = NUM_TRAIN + torch.randperm(len(FEATURES) - NUM_TRAIN, generator=random)
        yield order[:NUM_CALIBRATION], order[NUM_CALIBRATION : NUM_CALIBRATION + NUM_NEW]


def check_coverage(covered, alpha):
    """Counts over splits against the exact beta-binomial: their mean, and how many lie outside the 95 % band."""
    rank = int(np.ceil((NUM_CALIBRATION + 1) * (1 - alpha) - 1e-9))
    law = betabinom(NUM_NEW, rank, NUM_CALIBRATION + 1 - rank)
    low, high = law.interval(0.95)
    outside = sum(not low <= count <= high for count in covered)
    assert outside <= binom.ppf(0.9999, NUM_SPLITS, 1 - (law.cdf(high) - law.cdf(low - 1)))
    assert abs(np.mean(covered) - law.mean()) <= 4 * law.std() / NUM_SPLITS**0.5


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("score", [LAC(), APS()])
def test_coverage_of_sets(classes, score, alpha):
    sets, covered = PredictionSets(score, alpha), []
    probs = classes.predict(FEATURES).probs
    for calibration, new in splits():
        own = score.of(probs[calibration], new=False)[np.arange(NUM_CALIBRATION), LABELS[calibration]]
        threshold = conformal_quantile(own, alpha)
        members = torch.from_numpy(score.of(probs[new]) <= threshold)
        covered.append(int(members.gather(1, LABELS[new][:, None]).sum()))
    check_coverage(covered, alpha)
    # and the object does what the loop above does
    made = sets.calibrate(classes, FEATURES[calibration], LABELS[calibration])
    assert made.threshold == pytest.approx(threshold)
    assert torch.equal(made.predict(FEATURES[new]), members)
    assert set_coverage(made.predict(FEATURES[new]), LABELS[new]) * NUM_NEW == pytest.approx(covered[-1])


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_coverage_of_intervals(values, alpha):
    """Of each target by itself; the noise depends on the input, which the fit does not know."""
    prediction, covered = values.predict(FEATURES), []
    residual = (VALUES - prediction.mean).abs() / prediction.scale
    for calibration, new in splits():
        thresholds = [conformal_quantile(residual[calibration, t], alpha) for t in (0, 1)]
        covered.append([int((residual[new, t].double() <= thresholds[t]).sum()) for t in (0, 1)])
    for target in (0, 1):
        check_coverage([counts[target] for counts in covered], alpha)
    made = PredictionIntervals(alpha).calibrate(values, FEATURES[calibration], VALUES[calibration])
    assert made.threshold == pytest.approx(thresholds)
    lower, upper = made.predict(FEATURES[new])
    inside = (lower <= VALUES[new]) & (VALUES[new] <= upper)
    assert lower.shape == (NUM_NEW, 2)
    assert np.abs(inside.sum(0).numpy() - covered[-1]).max() <= 1  # a residual at the threshold may round


def test_one_number_a_row_has_ends_of_that_shape(values):
    fit = fit_of(bll.likelihoods.Gaussian(), VALUES[:, 0], bll.Exact())
    made = PredictionIntervals().calibrate(fit, FEATURES[300:400], VALUES[300:400, 0])
    assert made.predict(FEATURES[:7]).lower.shape == (7,)


def test_saved_loaded_and_tied_to_the_fit(tmp_path, classes, values):
    sets = PredictionSets(APS(), 0.1).calibrate(classes, FEATURES[300:500], LABELS[300:500])
    intervals = PredictionIntervals(0.1).calibrate(values, FEATURES[300:500], VALUES[300:500])
    for made, fit, other in ((sets, classes, values), (intervals, values, classes)):
        made.save(tmp_path / "file")
        again = type(made).load(tmp_path / "file", fit)
        assert again == made and str(again.predict(FEATURES[:9])) == str(made.predict(FEATURES[:9]))
        with pytest.raises(ValueError, match="expected the fit that it was calibrated on"):
            type(made).load(tmp_path / "file", other)
    with pytest.raises(ValueError, match="expected a calibrated declaration"):
        PredictionSets().predict(FEATURES)


def test_aps_without_draws_covers_at_least(classes):
    made = PredictionSets(APS(seed=None), 0.3).calibrate(classes, FEATURES[300:1300], LABELS[300:1300])
    sets = made.predict(FEATURES[1300:])
    assert set_coverage(sets, LABELS[1300:]) > 0.7 - 4 * (0.3 * 0.7 * (1 / 1000 + 1 / 2700)) ** 0.5
    assert torch.equal(made.predict(FEATURES[1300:1301]), sets[:1])


def test_empty_sets_can_be_forbidden(classes):
    made = PredictionSets(LAC(), 0.6).calibrate(classes, FEATURES[300:500], LABELS[300:500])
    assert int(made.predict(FEATURES).sum(1).min()) == 0
    full = replace(made, allow_empty=False).bound(classes)
    assert int(full.predict(FEATURES).sum(1).min()) == 1


@pytest.mark.unchecked
def test_what_they_refuse(classes, values):
    with pytest.raises(TypeError, match="use PredictionIntervals"):
        PredictionSets().calibrate(values, FEATURES, VALUES)
    with pytest.raises(TypeError, match="use PredictionSets"):
        PredictionIntervals().calibrate(classes, FEATURES, LABELS)
    with pytest.raises(ValueError, match="expected at least 9 calibration rows"):
        PredictionSets().calibrate(classes, FEATURES[:8], LABELS[:8])
    with pytest.raises(ValueError, match="between 0 and 1, got 10"):
        PredictionSets(alpha=10)
    with pytest.raises(TypeError, match=r"LAC\(\) or APS\(\)"):
        PredictionSets("lac")


def test_decisions_of_least_expected_cost(classes):
    loss = torch.tensor([[0.0, 1, 4], [1, 0, 1], [9, 1, 0], [0.3, 0.3, 0.3]])
    prediction = classes.predict(FEATURES[:50])
    decision = prediction.decide(loss)
    cost = prediction.probs.double() @ loss.double().T
    np.testing.assert_array_equal(decision.action, cost.argmin(1))
    np.testing.assert_allclose(decision.expected_cost, cost.amin(1))
    with pytest.raises(ValueError, match=r"loss_matrix: expected"):
        prediction.decide(torch.ones(3, 4))
