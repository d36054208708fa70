"""Scores of known against unknown inputs: brute force over pairs and thresholds, ties and infinities included."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from bll_pyro import metrics


def scores(seed: int, *, ties: bool):
    rng = np.random.default_rng(seed)
    known, unknown = rng.normal(0, 1, 83), rng.normal(1, 1.5, 61)
    return (np.round(2 * known), np.round(2 * unknown)) if ties else (known, unknown)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_the_share_of_ordered_pairs(ties):
    known, unknown = scores(0, ties=ties)
    difference = unknown[:, None] - known
    expected = np.mean(difference > 0) + 0.5 * np.mean(difference == 0)
    assert metrics.auroc(known, unknown) == pytest.approx(expected, abs=1e-12)
    assert metrics.auroc(unknown, known) == pytest.approx(1 - expected, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_aupr_is_the_sum_over_thresholds(ties):
    known, unknown = scores(1, ties=ties)
    expected, recall_before = 0.0, 0.0
    for t in np.unique(np.concatenate([known, unknown]))[::-1]:
        hits, alarms = np.sum(unknown >= t), np.sum(unknown >= t) + np.sum(known >= t)
        expected += (hits / len(unknown) - recall_before) * hits / alarms
        recall_before = hits / len(unknown)
    assert metrics.aupr(known, unknown) == pytest.approx(expected, abs=1e-12)
    labels = np.repeat([0, 1], [len(known), len(unknown)])
    theirs = average_precision_score(labels, np.concatenate([known, unknown]))
    assert metrics.aupr(known, unknown) == pytest.approx(theirs, abs=1e-12)


def test_aupr_of_a_useless_score_is_the_share_of_unknown():
    assert metrics.aupr(np.zeros(30), np.zeros(10)) == pytest.approx(0.25)
    assert metrics.auroc(np.zeros(30), np.zeros(10)) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("tpr", [0.07, 0.5, 0.95, 0.999])
def test_fpr_is_the_smallest_over_all_thresholds_that_reach_the_tpr(seed, ties, tpr):
    known, unknown = scores(seed, ties=ties)
    thresholds = np.concatenate([known, unknown])
    accepted = [np.mean(unknown <= t) for t in thresholds if np.mean(known <= t) >= tpr]
    assert metrics.fpr_at_tpr(known, unknown, tpr) == min(accepted)
    alarmed = [np.mean(known >= t) for t in thresholds if np.mean(unknown >= t) >= tpr]
    assert metrics.fpr_at_tpr(known, unknown, tpr, known_positive=False) == min(alarmed)


def test_fpr_agrees_with_the_roc_curve():
    known, unknown = scores(7, ties=False)
    labels = np.repeat([0, 1], [len(known), len(unknown)])
    fpr, tpr, _ = roc_curve(labels, np.concatenate([known, unknown]), drop_intermediate=False)
    assert metrics.fpr_at_tpr(known, unknown, known_positive=False) == pytest.approx(fpr[tpr >= 0.95].min())


def test_fpr_with_known_positive_accepts_at_most_the_threshold():
    # 20 known scores: 19 of them, up to 18, are 95 %; of the unknown ones 17 and 18 are accepted, 18.5 is not
    assert metrics.fpr_at_tpr(np.arange(20), [17, 18, 18.5, 40]) == 0.5
    # 4 unknown: 95 % of them are all 4, from 17 on; of the known ones 17, 18 and 19 raise an alarm
    assert metrics.fpr_at_tpr(np.arange(20), [17, 18, 18.5, 40], known_positive=False) == 3 / 20


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.aupr, metrics.fpr_at_tpr])
def test_only_order_matters_and_infinity_is_a_place_in_it(metric):
    known, unknown = scores(3, ties=False)
    value = metric(known, unknown)
    assert metric(np.exp(known), np.exp(unknown)) == value
    far = np.where(unknown == unknown.max(), np.inf, unknown)
    near = np.where(known == known.min(), -np.inf, known)
    finite = metric(
        np.where(known == known.min(), -1e9, known), np.where(unknown == unknown.max(), 1e9, unknown)
    )
    assert metric(near, far) == finite


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.aupr, metrics.fpr_at_tpr])
def test_refusals(metric):
    with pytest.raises(ValueError, match="known_scores: expected no NaN, got 1 bad of 2"):
        metric([0.0, np.nan], [1.0])
    with pytest.raises(ValueError, match="unknown_scores: expected at least one value"):
        metric([0.0], [])
    with pytest.raises(ValueError, match=r"one score a row, shapes \[N\] and \[M\], got \(2, 2\) and \(2,\)"):
        metric(np.zeros((2, 2)), np.zeros(2))


def test_fpr_refuses_a_rate_in_percent():
    with pytest.raises(ValueError, match="tpr: expected a number strictly between 0 and 1, got 95"):
        metrics.fpr_at_tpr([0.0], [1.0], 95)


def test_leverage_on_fashion_features_in_both_conventions(data_dir):
    """The AUROC 0.998 of MNIST against Fashion-MNIST, and which FPR95 is the 0.009 that goes with it."""
    with np.load(data_dir / "fashion_features" / "cnn128.npz", allow_pickle=False) as f:
        train, known, unknown = (f[k].astype(np.float64) for k in ("H_train", "H_test", "H_mnist"))
    precision = train.T @ train + np.eye(train.shape[1])
    known_scores, unknown_scores = (
        np.sum(h * np.linalg.solve(precision, h.T).T, axis=1) for h in (known, unknown)
    )
    labels = np.repeat([0, 1], [len(known), len(unknown)])
    auroc = metrics.auroc(known_scores, unknown_scores)
    assert auroc == pytest.approx(
        roc_auc_score(labels, np.concatenate([known_scores, unknown_scores])), abs=1e-12
    )
    assert round(auroc, 3) == 0.998
    assert round(metrics.fpr_at_tpr(known_scores, unknown_scores, known_positive=False), 3) == 0.009
    assert metrics.fpr_at_tpr(known_scores, unknown_scores) == pytest.approx(0.0015, abs=5e-4)
