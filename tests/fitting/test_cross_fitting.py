"""A default fit recalibrates itself: what left-out rows say is what refits without them say."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_digits

import bll_pyro as bll
from bll_pyro.features.columns import NO_COLUMNS
from bll_pyro.fitting import calibration
from bll_pyro.inference.leave_one_out import outputs, outputs_left_out
from bll_pyro.prediction import PredictiveTemperature, predict_outputs

RANDOM = np.random.default_rng(11)
ROWS = RANDOM.normal(size=(60, 4)).astype(np.float32)
SCORES = ROWS @ RANDOM.normal(size=(4, 3)).astype(np.float32)
LABELS = (SCORES + 0.75 * RANDOM.normal(size=(60, 3))).argmax(1)
VALUES = SCORES[:, 0] + (0.2 + 0.3 * np.abs(ROWS[:, 1])) * RANDOM.normal(size=60).astype(np.float32)
CLASSES = bll.LastLayer(bll.likelihoods.Categorical(3))


@pytest.fixture(autouse=True)
def any_gain(request, monkeypatch):
    """The number is kept whatever it gains, but in tests of that rule."""
    if "gain" not in request.node.name:
        monkeypatch.setattr(calibration, "GAIN", -math.inf)


def log_probs_left_out(fit, rows, labels, seed=0):
    """``[n, C]`` log probabilities of left-out rows, and their numbers."""
    features, targets = torch.tensor(rows), torch.tensor(labels)
    left = outputs_left_out(fit.posterior, features, targets, NO_COLUMNS, seed, fit.inference.at_mode)
    return predict_outputs(fit.posterior, left.outputs).probs.double().log(), left.index


def best_temperature(log_probs, labels, prior_scale=calibration.PRIOR_SCALE):
    """That of the labels; below 1 that of labels of which a share is spread over the other classes, but no more than 1."""

    def best(share, most):
        wanted = np.full(log_probs.shape, share / (log_probs.shape[1] - 1))
        wanted[range(len(labels)), labels] = 1 - share

        def loss(log_t):
            tempered = (log_probs / math.exp(log_t)).log_softmax(-1).numpy()
            return (log_t / prior_scale) ** 2 / 2 - float((wanted * tempered).sum())

        bounds = (math.log(calibration.LEAST), math.log(most))
        return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)

    found = best(0.0, 50)
    return found if found >= 1 else best(calibration.SMOOTHING, 1)


def test_the_temperature_is_that_of_refits_without_each_row() -> None:
    """60 fits of 59 rows, with the constants and the scale of the fit of all rows: log T within 0.1."""
    rows = RANDOM.normal(size=(60, 12)).astype(np.float32)
    labels = (rows @ RANDOM.normal(size=(12, 3)) + RANDOM.normal(size=(60, 3))).argmax(1)
    fit = bll.fit(CLASSES, (rows, labels))
    (tau,) = (float(value) for value in fit.posterior.learned.values())
    frame = fit.posterior.frame
    scaled = ((torch.tensor(rows) - frame.center) / frame.scale).numpy()
    given = bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Normal(scale=tau), standardize=False)
    refits = []
    for row in range(60):
        others = np.arange(60) != row
        without = bll.fit(given, (scaled[others], labels[others]), calibration=None)
        refits.append(without.predict(scaled[row : row + 1]).probs.double().log())
    log_refits = torch.cat(refits)
    log_left_out, index = log_probs_left_out(fit, rows, labels)
    assert index.tolist() == list(range(60))
    wanted = best_temperature(log_refits, labels)
    assert calibration.LEAST < wanted < 0.95
    assert math.log(fit.recalibration.temperature) == pytest.approx(math.log(wanted), abs=0.1)
    assert fit.recalibration.temperature == pytest.approx(best_temperature(log_left_out, labels), rel=1e-3)
    # and row by row: closer to the refits than the fit that has seen the row
    target = log_refits[range(60), labels]
    left, seen = (
        log_left_out[range(60), labels],
        fit.with_recalibration(None).predict(rows).probs.double().log()[range(60), labels],
    )
    assert float((left - target).abs().mean()) < 0.25 * float((seen - target).abs().mean())


def test_outputs_one_by_one_agree_with_tied_ones_where_rows_have_little_influence(monkeypatch) -> None:
    """600 rows of 4 features. Without the ties of a softmax a row loses up to half as much again, here .008 nats of 1."""
    rows = RANDOM.normal(size=(600, 4)).astype(np.float32)
    labels = (rows @ RANDOM.normal(size=(4, 3)) + RANDOM.gumbel(size=(600, 3))).argmax(1)
    fit = bll.fit(CLASSES, (rows, labels), calibration=None)
    tied, _ = log_probs_left_out(fit, rows, labels)
    monkeypatch.setattr(outputs, "MAX_TIED_WORK", 0)
    free, _ = log_probs_left_out(fit, rows, labels)
    gap = (tied - free)[range(600), labels]
    lost = (fit.predict(rows).probs.double().log() - tied)[range(600), labels].mean()
    assert float(lost) > 0 and 0 <= float(gap.mean()) < 0.7 * float(lost)
    monkeypatch.setattr(outputs, "MOST_ROWS", 150)
    monkeypatch.setattr(outputs, "ROWS_PER_NUMBER", 40)
    part, index = log_probs_left_out(fit, rows, labels)
    assert len(index) == len(index.unique()) == 150
    gap = (part - free[index])[range(150), labels[index]]
    assert abs(float(gap.mean())) < 0.2 * float(lost)


def test_a_row_counts_once_whatever_it_counts_for_in_the_sums(monkeypatch) -> None:
    """All 60 rows twice over, of which half are summed and count twice, is the fit of these rows once."""
    fit = bll.fit(CLASSES, (ROWS, LABELS), calibration=None)
    monkeypatch.setattr(outputs, "MAX_TIED_WORK", 0)
    whole, _ = log_probs_left_out(fit, ROWS, LABELS)
    near = outputs.RowByRow.of(fit.posterior, outputs.NUM_POINTS)
    frame = fit.posterior.frame
    rows = outputs.DesignRows(torch.tensor(ROWS), torch.tensor(LABELS), frame)
    every = torch.arange(60)
    once = outputs._one_by_one(near, fit.posterior, rows, every, 1.0)
    torch.testing.assert_close(predict_outputs(fit.posterior, once).probs.double().log(), whole)
    twice = outputs._one_by_one(near, fit.posterior, rows, every, 2.0)
    # more is known of the weights, so less moves; but the row itself is taken out once and not twice
    assert float((twice.mean - once.mean).abs().max()) < float(
        (once.mean - near.weights.outputs(rows[:][0]).mean).abs().max()
    )


def test_it_is_recorded_printed_saved_and_undone(tmp_path) -> None:
    fit = bll.fit(CLASSES, (ROWS, LABELS))
    found = fit.recalibration
    assert isinstance(found, PredictiveTemperature)
    assert found.found_on.num_rows == 60 and "left out" in found.found_on.source and "left out" in str(fit)
    assert found.found_on.aim == pytest.approx(found.found_on.after, abs=0.1)
    fit.save(tmp_path / "fit")
    torch.testing.assert_close(bll.load(tmp_path / "fit").predict(ROWS).probs, fit.predict(ROWS).probs)
    plain, undone = bll.fit(CLASSES, (ROWS, LABELS), calibration=None), fit.with_recalibration(None)
    assert plain.recalibration is None
    assert torch.equal(undone.predict(ROWS).probs, plain.predict(ROWS).probs)
    assert torch.equal(fit.predict(ROWS).probs.argmax(-1), plain.predict(ROWS).probs.argmax(-1))
    again = bll.fit(CLASSES, (ROWS, LABELS)).recalibration
    assert again.temperature == found.temperature


@pytest.mark.parametrize(
    ("likelihood", "targets", "expected"),
    [
        (bll.likelihoods.Categorical(3), LABELS, "PredictiveTemperature"),
        (bll.likelihoods.Ordinal(3), LABELS, "PredictiveTemperature"),
        (bll.likelihoods.Bernoulli(), LABELS == 0, "PredictiveTemperature"),
        (bll.likelihoods.Bernoulli(), np.stack([LABELS == 0, LABELS == 1], 1), "PredictiveTemperature"),
        (bll.likelihoods.HeteroscedasticGaussian(), VALUES, "NoiseFactor"),
        (bll.likelihoods.StudentT(), VALUES, "NoiseFactor"),
        (bll.likelihoods.Gaussian(), VALUES, "NoneType"),
        (bll.likelihoods.Poisson(), LABELS, "NoneType"),
        (bll.likelihoods.NegativeBinomial(), LABELS, "NoneType"),
    ],
)
def test_what_each_likelihood_gets(likelihood, targets, expected) -> None:
    fit = bll.fit(bll.LastLayer(likelihood), (ROWS, targets))
    assert type(fit.recalibration).__name__ == expected
    assert not fit.trace.messages


@pytest.mark.parametrize(
    "inference",
    [bll.SVI(guide=bll.guides.MAP()), bll.SVI(guide=bll.guides.FullRank()), bll.Laplace()],
)
def test_every_gaussian_posterior_gets_one(inference) -> None:
    fit = bll.fit(CLASSES, (ROWS, LABELS), inference=inference)
    log_probs, _ = log_probs_left_out(fit, ROWS, LABELS)
    assert fit.recalibration.temperature == pytest.approx(best_temperature(log_probs, LABELS), rel=1e-3)


@pytest.mark.nuts
@pytest.mark.filterwarnings("ignore:NUTS")
def test_draws_get_none() -> None:
    fit = bll.fit(CLASSES, (ROWS, LABELS), inference=bll.NUTS(num_warmup=50, num_samples=50, num_chains=1))
    assert fit.recalibration is None


def test_rows_of_weight_zero_say_nothing() -> None:
    weight = np.where(np.arange(60) < 40, 1.0, 0.0)
    wrong = np.where(weight > 0, LABELS, (LABELS + 1) % 3)
    weighted = bll.fit(CLASSES, (ROWS, wrong), sample_weight=weight)
    alone = bll.fit(CLASSES, (ROWS[:40], LABELS[:40]))
    assert weighted.recalibration.temperature == pytest.approx(alone.recalibration.temperature, rel=0.05)


def test_few_rows_and_a_class_of_one_row() -> None:
    """Under ten rows the number would be noise; a class with one row is predicted without any of it."""
    assert bll.fit(CLASSES, (ROWS[:9], LABELS[:9])).recalibration is None
    labels = np.zeros(30, int)
    labels[0], labels[1:12] = 2, 1
    fit = bll.fit(CLASSES, (ROWS[:30], labels))
    assert 0 < fit.recalibration.temperature < 5


def test_separable_classes_are_at_most_twice_as_certain() -> None:
    """Rows without an error call for T = 0."""
    rows = np.concatenate([ROWS[:20] + 8, ROWS[20:40] - 8])
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Categorical(2)), (rows, np.repeat([0, 1], 20)))
    assert calibration.LEAST <= fit.recalibration.temperature < 1


def test_features_that_know_their_rows_sharpen_new_rows_by_less_than_left_out_rows_ask_for() -> None:
    """A network that has learned its 400 rows puts them at their labels; of new rows a tenth is put elsewhere.

    Left-out rows have hardly an error and call for the bound of 0.5, where new rows want a temperature above 1.
    """
    random = np.random.default_rng(5)
    labels, new = random.integers(0, 10, 400), random.integers(0, 10, 4000)
    shown = np.where(random.random(4000) < 0.1, random.integers(0, 10, 4000), new)
    centres = random.normal(size=(10, 16))
    rows, new_rows = (
        (centres[of] + 0.6 * random.normal(size=(len(of), 16))).astype(np.float32) for of in (labels, shown)
    )
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Categorical(10)), (rows, labels))
    log_probs, _ = log_probs_left_out(fit, rows, labels)
    sharper = [(log_probs / t).log_softmax(-1)[range(400), labels].mean() for t in (1.0, 0.7, 0.5)]
    assert sharper[0] < sharper[1] < sharper[2]
    found = (fit.recalibration, None, PredictiveTemperature(calibration.LEAST))
    now, plain, asked = (
        float(fit.with_recalibration(one).predict(new_rows).log_prob(new).mean()) for one in found
    )
    assert 0 <= plain - now < 0.6 * (plain - asked)


def test_there_is_none_without_a_gain_of_two_standard_errors() -> None:
    """Rows drawn from the model of a fit on many rows call for none; few separable rows do."""
    random = np.random.default_rng(3)
    rows = random.normal(size=(2000, 3)).astype(np.float32)
    scores = rows @ random.normal(size=(3, 3))
    labels = (scores + random.gumbel(size=(2000, 3))).argmax(1)
    assert bll.fit(CLASSES, (rows, labels)).recalibration is None
    images, digits = load_digits(return_X_y=True)
    images, digits = images[:100].astype(np.float32), digits[:100]
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Categorical(10)), (images, digits))
    log_probs, _ = log_probs_left_out(fit, images, digits)
    tempered = (log_probs / fit.recalibration.temperature).log_softmax(-1)
    gain = (tempered - log_probs)[range(100), digits]
    assert float(gain.sum()) > 2 * math.sqrt(100) * float(gain.std())


def test_rare_labels_keep_their_base_rate_without_a_gain() -> None:
    """Twenty of 20,000 rows have the label: a temperature from rows that happen to hold many of them would multiply it."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(20_000, 3)).astype(np.float32)
    labels = np.zeros(20_000)
    labels[random.choice(20_000, 20, replace=False)] = 1
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Bernoulli()), (rows, labels))
    assert float(fit.predict(rows).probs.sum()) == pytest.approx(20, rel=0.05)
