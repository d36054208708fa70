"""Detectors: the rule, the batch rule, the tie to a fit, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bll_pyro as bll
from bll_pyro import ood

GENERATOR = torch.Generator().manual_seed(1)
FEATURES = torch.randn(500, 4, generator=GENERATOR)
LABELS = (FEATURES[:, 0] > 0).long() + (FEATURES[:, 1] > 0.5).long()
TRAIN, KNOWN, NEW = (FEATURES[:200], LABELS[:200]), FEATURES[200:399], FEATURES[399:]
UNKNOWN = 6 * torch.randn(50, 4, generator=GENERATOR)


@pytest.fixture(scope="module")
def fit():
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))
    return bll.fit(layer, TRAIN, inference=bll.SVI(num_epochs=30))


@pytest.fixture(scope="module")
def detector(fit):
    return ood.Detector(ood.Leverage(normalize=False), alpha=0.1).calibrate(fit, KNOWN)


def test_p_values_are_ranks_among_the_calibration_rows(fit, detector):
    calibration = ood.Leverage(normalize=False).of(ood.View(KNOWN, fit.posterior)).numpy()
    verdict = detector.detect(NEW)
    expected = [(1 + np.sum(calibration >= s)) / (len(calibration) + 1) for s in verdict.score.numpy()]
    np.testing.assert_allclose(verdict.p_value, expected)
    assert torch.equal(verdict.is_ood, verdict.p_value <= 0.1 * (1 + 1e-12))
    # 20 of 200 p-values are possible alarms: the rate on known rows is at most alpha, on the others larger
    assert 0 < verdict.is_ood.double().mean() < 0.25 < detector.detect(UNKNOWN).is_ood.double().mean()


def test_batches_by_benjamini_hochberg(detector):
    rows = torch.cat([NEW, UNKNOWN])
    verdict = detector.detect(rows, fdr=0.2)
    p = np.sort(verdict.p_value.numpy())
    allowed = np.flatnonzero(p <= 0.2 * np.arange(1, len(p) + 1) / len(p))
    cut = p[allowed.max()] if len(allowed) else -1.0
    np.testing.assert_array_equal(verdict.is_ood, verdict.p_value.numpy() <= cut)
    assert bool(verdict.is_ood[len(NEW) :].any())
    torch.testing.assert_close(verdict.p_value, detector.detect(rows).p_value)


def test_false_discoveries_stay_below_the_rate(fit):
    """Over many calibration sets the mean share of false alarms among the alarms is at most the rate (Bates et al. 2023)."""
    random = np.random.default_rng(0)
    shares = []
    bare = ood.Detector(ood.Leverage(normalize=False))
    for _ in range(300):
        known = np.sort(random.normal(size=200)).astype(np.float32)
        calibrated = replace(bare, calibration_scores=torch.from_numpy(known), fingerprint="made up")
        batch = np.concatenate([random.normal(size=40), random.normal(4, 1, size=10)]).astype(np.float32)
        alarm = bll.conformal.benjamini_hochberg(calibrated.judge(torch.from_numpy(batch)).p_value, 0.2)
        shares.append(alarm[:40].sum() / max(1, alarm.sum()))
    assert np.mean(shares) <= 0.2 + 3 * np.std(shares) / 300**0.5


def test_predict_applies_it(fit, detector):
    watched = fit.with_detector(detector)
    assert fit.predict(NEW).ood is None
    prediction, verdict = watched.predict(NEW), detector.detect(NEW)
    for name in ("is_ood", "p_value", "score"):
        torch.testing.assert_close(getattr(prediction.ood, name), getattr(verdict, name))
    # the detector keeps its own points of integration, so that its threshold stays right
    coarse = ood.Detector(ood.Epistemic(), 0.1).calibrate(fit, KNOWN)
    few = fit.with_detector(coarse).predict(NEW, integration=bll.QuasiMonteCarlo(num_points=8))
    torch.testing.assert_close(few.ood.score, coarse.detect(NEW).score)
    assert watched.with_detector(None).predict(NEW).ood is None


def test_saved_with_the_fit_and_alone(tmp_path: Path, fit):
    score = ood.Combination((ood.Epistemic(), ood.Mahalanobis(), ood.RelativeMahalanobis()))
    detector = ood.Detector(score, 0.1).calibrate(fit, KNOWN, train=TRAIN)
    before = detector.detect(NEW)
    fit.with_detector(detector).save(tmp_path / "model")
    again = bll.load(tmp_path / "model")
    detector.save(tmp_path / "detector.safetensors")
    alone = ood.Detector.load(tmp_path / "detector.safetensors", again)
    for verdict in (again.predict(NEW).ood, alone.detect(NEW)):
        for name in ("is_ood", "p_value", "score"):
            assert torch.equal(getattr(verdict, name), getattr(before, name))
    assert alone == detector


def test_not_calibrated(fit):
    bare = ood.Detector()
    for use in (
        lambda: bare.detect(NEW),
        lambda: fit.with_detector(bare),
        lambda: bare.threshold,
        lambda: bare.save("x"),
    ):
        with pytest.raises(ValueError, match=r"expected a calibrated declaration.*calibrate\(fit"):
            use()


def test_too_few_rows(fit):
    detector = ood.Detector(ood.Leverage(normalize=False), alpha=0.05)
    with pytest.raises(ValueError, match=r"at least 1/alpha = 20 rows for alpha=0.05, got 19"):
        detector.calibrate(fit, KNOWN[:19])
    assert detector.calibrate(fit, KNOWN[:20]).is_calibrated


def test_another_fit(tmp_path: Path, fit, detector):
    other = bll.fit(fit.layer, TRAIN, inference=bll.SVI(num_epochs=30), seed=1)
    recalibrated = bll.calibrate(fit, KNOWN, LABELS[200:399])
    detector.save(tmp_path / "detector")
    for stranger in (other, recalibrated):
        with pytest.raises(ValueError, match=r"expected the fit that it was calibrated on.*calibrate again"):
            stranger.with_detector(detector)
        with pytest.raises(ValueError, match="expected the fit that it was calibrated on"):
            ood.Detector.load(tmp_path / "detector", stranger)
    unbound = ood.Detector.load(tmp_path / "detector")
    with pytest.raises(ValueError, match="expected a fit to use"):
        unbound.detect(NEW)
    with pytest.raises(ValueError, match="then calibrate a detector anew"):
        fit.with_detector(detector).update(TRAIN)


def test_damaged_and_foreign_files(tmp_path: Path, fit, detector):
    path = tmp_path / "detector"
    detector.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"expected .* got .*; save it again"):
        ood.Detector.load(path)
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(ValueError, match="as it was saved"):
        ood.Detector.load(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a PredictionSets, got a Detector"):
        bll.conformal.PredictionSets.load(path)
    with pytest.raises(ValueError, match="expected a complete file"):
        ood.Detector.load(tmp_path / "nothing")


def test_scores_that_need_training_rows_say_so(fit):
    for score in (ood.Mahalanobis(), ood.Combination((ood.Leverage(normalize=False), ood.Epistemic()))):
        with pytest.raises(ValueError, match=r"needs training rows, got none; pass train="):
            ood.Detector(score).calibrate(fit, KNOWN)


def test_a_point_estimate_has_no_spread(fit):
    point = bll.fit(fit.layer, TRAIN, inference=bll.SVI(guide=bll.guides.MAP(), num_epochs=5))
    with pytest.raises(ValueError, match=r"a point estimate \(MAP\) has no epistemic uncertainty"):
        ood.Detector(ood.Leverage(normalize=False)).calibrate(point, KNOWN)
    assert ood.Detector(ood.Energy()).calibrate(point, KNOWN).is_calibrated


@pytest.mark.unchecked
def test_declarations_that_make_no_sense(fit):
    with pytest.raises(TypeError, match="expected a score such as"):
        ood.Detector("epistemic")
    with pytest.raises(ValueError, match=r"between 0 and 1, got 5; 5 % is 0.05"):
        ood.Detector(alpha=5)
    with pytest.raises(TypeError, match=r"expected a bll.ood.Detector, got str"):
        fit.with_detector("a detector")
