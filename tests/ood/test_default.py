"""The detector without a score: its parts, which rows serve for what, its rate of false alarms, and where it is carried."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import betabinom, binom

import bll_pyro as bll
from bll_pyro import ood
from bll_pyro.ood.coordinates import row_coordinates
from bll_pyro.ood.detector import score_rows
from bll_pyro.scope import generator

FEATURES = torch.randn(1500, 4, generator=generator(1)) @ torch.randn(4, 4, generator=generator(2))
NOISE = torch.randn(1500, generator=generator(3))
SIGNAL = FEATURES[:, 0] + 0.3 * NOISE
LABELS = (SIGNAL > 0).long() + (FEATURES[:, 1] > 0.5).long()
TRAIN, KNOWN, NEW = slice(0, 200), slice(200, 600), slice(600, 1500)
UNKNOWN = 6 * torch.randn(60, 4, generator=generator(4))
KINDS = {
    "classes": (bll.likelihoods.Categorical(3), LABELS),
    "ordered classes": (bll.likelihoods.Ordinal(3), LABELS),
    "labels": (bll.likelihoods.Bernoulli(), torch.stack([LABELS > 0, LABELS > 1], -1).long()),
    "values": (bll.likelihoods.Gaussian(), SIGNAL),
    "counts": (bll.likelihoods.Poisson(), torch.poisson(SIGNAL.clamp_max(3).exp(), generator=generator(5))),
}
NAMES = ["Mahalanobis", "NearestGroup", "Length", "Leverage"]
OF_PREDICTIONS = ["Energy", "PredictiveEntropy", "Epistemic"]
SHORT = bll.SVI(num_epochs=30)


def fit_of(kind: str, inference: bll.SVI = SHORT) -> bll.Fit:
    likelihood, targets = KINDS[kind]
    return bll.fit(bll.LastLayer(likelihood), (FEATURES[TRAIN], targets[TRAIN]), inference=inference)


def groups_of(detector: ood.Detector) -> tuple[ood.Fisher, ...]:
    score = detector.score
    return score.groups if isinstance(score, ood.HarmonicMean) else (score,)


def names_of(detector: ood.Detector) -> list[list[str]]:
    return [[type(part).__name__ for part in group.scores] for group in groups_of(detector)]


@pytest.fixture(scope="module")
def fit() -> bll.Fit:
    return fit_of("classes")


@pytest.fixture(scope="module")
def train() -> tuple[torch.Tensor, torch.Tensor]:
    return FEATURES[TRAIN], LABELS[TRAIN]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_targets_has_a_default(kind: str) -> None:
    made, targets = fit_of(kind), KINDS[kind][1]
    detector = ood.Detector().calibrate(made, FEATURES[KNOWN], train=(FEATURES[TRAIN], targets[TRAIN]))
    assert names_of(detector) == ([[*NAMES, "ViM"], OF_PREDICTIONS] if kind == "classes" else [NAMES])
    known, unknown = (detector.detect(rows) for rows in (FEATURES[NEW], UNKNOWN))
    assert known.is_ood.double().mean() < 0.1 and unknown.is_ood.double().mean() > 0.8
    assert bll.metrics.auroc(known.score, unknown.score) > 0.95


def test_a_point_estimate_has_one_without_leverage(train) -> None:
    point = fit_of("classes", bll.SVI(guide=bll.guides.MAP(), num_epochs=30))
    detector = ood.Detector().calibrate(point, FEATURES[KNOWN], train=train)
    assert names_of(detector) == [[*NAMES[:3], "ViM"], OF_PREDICTIONS[:2]]
    assert detector.detect(UNKNOWN).is_ood.double().mean() > 0.8


def test_classes_of_a_single_feature_have_one_without_a_rest(train) -> None:
    column = (FEATURES[TRAIN][:, :1], LABELS[TRAIN])
    one = bll.fit(bll.LastLayer(KINDS["classes"][0]), column, inference=SHORT)
    detector = ood.Detector().calibrate(one, FEATURES[KNOWN][:, :1], train=column)
    assert names_of(detector) == [NAMES, OF_PREDICTIONS]
    assert bool(detector.detect(torch.tensor([[-30.0], [30.0]])).is_ood.all())


def test_which_rows_serve_for_what(fit, train) -> None:
    with_train = ood.Detector(alpha=0.1).calibrate(fit, FEATURES[KNOWN], train=train)
    assert with_train.split == {"reference rows": 200, "threshold": 200}
    without = ood.Detector(alpha=0.1).calibrate(fit, FEATURES[KNOWN])
    assert without.split == {"training rows": 200, "reference rows": 100, "threshold": 100}
    assert len(without.calibration_scores) == groups_of(without)[0].reference.shape[1] == 100
    assert "split={training rows: 200, reference rows: 100, threshold: 100}" in repr(without)
    many = ood.Detector().calibrate(fit, FEATURES[200:], train=train)
    assert many.split == {"reference rows": 500, "threshold": 800}
    # no row serves twice: the scores of threshold and reference rows are those of the known rows, each once
    parts = score_rows(fit, groups_of(without)[0].scores[0], fit.features(FEATURES[KNOWN])).double()
    reference = groups_of(without)[0].reference[0]
    assert bool(torch.isin(reference, parts).all())
    everything = score_rows(fit, without.score, fit.features(FEATURES[KNOWN]))
    others = everything[~torch.isin(parts, reference)]
    # the rounding of products depends on how many rows are in them
    assert float((without.calibration_scores[:, None] - others).abs().amin(1).max()) < 1e-5
    explicit = ood.Detector(ood.Epistemic()).calibrate(fit, FEATURES[KNOWN])
    assert explicit.split is None and len(explicit.calibration_scores) == 400
    again = ood.Detector(alpha=0.1).calibrate(fit, FEATURES[KNOWN])
    assert again == without  # the split has a fixed seed


def test_labels_of_the_fit_stand_in_for_those_of_training_rows(fit) -> None:
    detector = ood.Detector().calibrate(fit, FEATURES[KNOWN])
    rows = FEATURES[KNOWN][torch.randperm(400, generator=generator(0))[:200]]
    expected = ood.Mahalanobis().fitted(fit.posterior, rows, fit.predict(rows).label, lambda part: rows[:, 0])
    assert torch.equal(groups_of(detector)[0].scores[0].means, expected.means)


@pytest.mark.slow
@pytest.mark.parametrize("has_train", [True, False])
def test_false_alarms_over_many_splits(has_train: bool, fit, train) -> None:
    """The number of alarms on new rows is beta-binomial, though the parts and their p-values come from rows, too.

    Given the rows, splits are independent: so is the number of them outside a band, and their mean has a known error.
    """
    alpha, num_known, num_new, num_splits = 0.1, 400, 500, 60
    rows, alarms = FEATURES[200:], []
    detector = ood.Detector(alpha=alpha)
    for seed in range(num_splits):
        order = torch.randperm(len(rows), generator=generator(seed))
        known, new = rows[order[:num_known]], rows[order[num_known : num_known + num_new]]
        one = detector.calibrate(fit, known, train=train if has_train else None)
        alarms.append(int(one.detect(new).is_ood.sum()))
    n = 200 if has_train else 100
    num_levels = int((n + 1) * alpha + 1e-9)  # ranks that raise an alarm
    law = betabinom(num_new, num_levels, n + 1 - num_levels)
    low, high = law.interval(0.95)
    outside = sum(not low <= count <= high for count in alarms)
    share_outside = 1 - (law.cdf(high) - law.cdf(low - 1))
    assert outside <= binom.ppf(0.9999, num_splits, share_outside)
    assert abs(np.mean(alarms) - law.mean()) <= 4 * law.std() / num_splits**0.5
    assert np.mean(alarms) / num_new <= alpha + 4 * law.std() / num_new / num_splits**0.5


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_a_table_row_far_along_its_only_column_raises_an_alarm(shift: float) -> None:
    """Unit length alone would see nothing but the sign."""
    column = FEATURES[:, :1] / FEATURES[:, 0].std() + shift
    made = bll.fit(
        bll.LastLayer(bll.likelihoods.Gaussian()), (column[TRAIN], SIGNAL[TRAIN]), inference=bll.Exact()
    )
    detector = ood.Detector().calibrate(made, column[KNOWN], train=(column[TRAIN], SIGNAL[TRAIN]))
    assert bool(detector.detect(torch.tensor([[shift - 8.0], [shift + 8.0]])).is_ood.all())


def test_too_few_rows(fit, train) -> None:
    with pytest.raises(
        ValueError, match=r"at least 2/alpha = 40 rows for alpha=0.05, got 39; for reference rows half"
    ):
        ood.Detector().calibrate(fit, FEATURES[KNOWN][:39], train=train)
    assert ood.Detector().calibrate(fit, FEATURES[KNOWN][:40], train=train).split["threshold"] == 20
    with pytest.raises(
        ValueError, match=r"4/alpha = 80 rows.*or pass train=\(inputs, targets\), or name a score"
    ):
        ood.Detector().calibrate(fit, FEATURES[KNOWN][:79])
    assert ood.Detector().calibrate(fit, FEATURES[KNOWN][:80]).split["threshold"] == 20


def test_known_rows_that_are_training_rows(fit, train) -> None:
    with pytest.warns(
        RuntimeWarning, match=r"got 50% with the features of a row of train.*calibrate on held-out rows"
    ):
        ood.Detector(ood.Mahalanobis()).calibrate(fit, FEATURES[100:300], train=train)
    # repeated rows are no mistake where the training rows repeat as well (a warning would be an error here)
    coarse = FEATURES.sign()
    made = bll.fit(
        bll.LastLayer(bll.likelihoods.Categorical(3)), (coarse[TRAIN], LABELS[TRAIN]), inference=SHORT
    )
    ood.Detector(ood.Mahalanobis()).calibrate(made, coarse[KNOWN], train=(coarse[TRAIN], LABELS[TRAIN]))


def test_carried_by_predict_save_load_and_export(fit, train, tmp_path: Path) -> None:
    detector = ood.Detector().calibrate(fit, FEATURES[KNOWN], train=train)
    watched, rows = fit.with_detector(detector), torch.cat([FEATURES[NEW][:100], UNKNOWN])
    before = detector.detect(rows)
    assert "NearestGroup()" in str(watched)
    watched.save(tmp_path / "model")
    watched.save(tmp_path / "model.bll")
    files = [tmp_path / "model.bll", *(tmp_path / "model").iterdir()]
    written = b"".join(file.read_bytes() for file in files)
    for used in (train[0], row_coordinates(fit.posterior, train[0], normalize=True)):
        assert not any(row[:2].numpy().tobytes() in written for row in used)
    again = bll.load(tmp_path / "model")
    detector.save(tmp_path / "detector")
    alone = ood.Detector.load(tmp_path / "detector", again)
    assert alone == detector and alone.split == detector.split
    for verdict in (watched.predict(rows).ood, again.predict(rows).ood, alone.detect(rows)):
        torch.testing.assert_close(verdict.score, before.score, rtol=1e-4, atol=1e-4)
        assert torch.equal(verdict.is_ood, before.is_ood)
    module = bll.export.as_module(again)
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    graph = torch.export.export(module, (rows[:3],), dynamic_shapes=sizes, strict=False)
    torch.export.save(graph, tmp_path / "model.pt2")
    for deployed in (module, torch.export.load(tmp_path / "model.pt2").module()):
        found = deployed(rows)
        torch.testing.assert_close(found["score"], before.score, rtol=1e-4, atol=1e-4)
        assert torch.equal(found["is_ood"], before.is_ood)


def test_carried_by_evaluate(fit, train) -> None:
    data = {"held_out": (FEATURES[KNOWN], LABELS[KNOWN]), "train": train, "unknown": UNKNOWN}
    scores = bll.evaluate(fit, FEATURES[NEW], LABELS[NEW], **data).scores
    detector = ood.Detector().calibrate(fit, FEATURES[KNOWN], train=train)
    known, unknown = (detector.detect(rows) for rows in (FEATURES[NEW], UNKNOWN))
    mine = scores["Bayesian"]
    assert mine["AUROC detector"] == pytest.approx(bll.metrics.auroc(known.score, unknown.score), abs=1e-6)
    assert mine["false alarms"] == pytest.approx(float(known.is_ood.double().mean()))
    assert mine["caught"] == pytest.approx(float(unknown.is_ood.double().mean()))
    for name in ("AUROC detector", "false alarms", "caught"):
        assert scores["Bayesian, calibrated"][name] == mine[name]
        assert not math.isnan(scores["plain head"][name])
    few = data | {"held_out": (FEATURES[KNOWN][:39], LABELS[KNOWN][:39])}
    scores = bll.evaluate(fit, FEATURES[NEW], LABELS[NEW], **few).scores
    assert scores["Bayesian"]["AUROC detector"] is None and scores["Bayesian"]["AUROC total"] is not None


def test_scores_of_earlier_files_see_standardised_features(fit, train) -> None:
    """Files of format 1 do not say ``normalize``: there was no unit length when they were written."""
    for score in (ood.Leverage(), ood.Mahalanobis(), ood.RelativeMahalanobis()):
        plain = bll.declaration.to_plain(score, {})
        assert plain.pop("normalize") is True
        assert bll.declaration.from_plain(plain, {}).normalize is False
        assert bll.declaration.from_plain({**plain, "normalize": True}, {}) == score
