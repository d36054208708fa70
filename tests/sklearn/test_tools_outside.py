"""Tools of others on the estimators: reports by skore, attributions by shap, conformal sets by MAPIE and crepes."""

import numpy as np
import pytest

from bll_pyro.sklearn import BayesianLastLayerClassifier, BayesianLastLayerRegressor

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(700, 4))
NOISE = RANDOM.standard_t(3, size=700)
VALUES = 2 * X[:, 0] - X[:, 1] + 0.5 * NOISE
LABELS = np.where(VALUES > 0.7, "high", np.where(VALUES < -0.7, "low", "middle"))
FITTED, CALIBRATED, NEW = slice(0, 100), slice(100, 300), slice(300, 700)


@pytest.fixture(scope="module")
def regressor():
    return BayesianLastLayerRegressor(backbone=None).fit(X[FITTED], VALUES[FITTED])


@pytest.fixture(scope="module")
def classifier():
    return BayesianLastLayerClassifier(backbone=None).fit(X[FITTED], LABELS[FITTED])


def is_covered(share: float) -> bool:
    """Whether 400 new rows are covered as 200 calibration rows promise 0.9: four standard errors of both together."""
    return abs(share - 0.9) < 4 * (0.09 / 200 + 0.09 / 400) ** 0.5


def test_mapie_on_residuals_over_the_standard_deviation(regressor):
    """``StdConformityScore`` asks for ``predict(X, return_std=True)``; its intervals are as wide as that says, times one number."""
    from mapie.conformity_scores import StdConformityScore
    from mapie.regression import SplitConformalRegressor

    conformal = SplitConformalRegressor(regressor, 0.9, StdConformityScore(), prefit=True)
    conformal.conformalize(X[CALIBRATED], VALUES[CALIBRATED])
    mean, ends = conformal.predict_interval(X[NEW])
    low, high = ends[:, 0, 0], ends[:, 1, 0]
    expected, scale = regressor.predict(X[NEW], return_std=True)
    np.testing.assert_allclose(mean, expected)
    width = (high - low) / scale
    np.testing.assert_allclose(width, width[0], rtol=1e-6)
    assert is_covered(np.mean((low <= VALUES[NEW]) & (VALUES[NEW] <= high)))


def test_mapie_fits_it_in_folds():
    from mapie.regression import CrossConformalRegressor

    conformal = CrossConformalRegressor(BayesianLastLayerRegressor(backbone=None), 0.9, cv=3)
    conformal.fit_conformalize(X[CALIBRATED], VALUES[CALIBRATED])
    ends = conformal.predict_interval(X[NEW])[1]
    assert is_covered(np.mean((ends[:, 0, 0] <= VALUES[NEW]) & (VALUES[NEW] <= ends[:, 1, 0])))


def test_mapie_sets_of_named_classes(classifier):
    from mapie.classification import SplitConformalClassifier

    conformal = SplitConformalClassifier(classifier, 0.9, prefit=True)
    conformal.conformalize(X[CALIBRATED], LABELS[CALIBRATED])
    chosen, sets = conformal.predict_set(X[NEW])
    assert (chosen == classifier.predict(X[NEW])).all()
    in_set = sets[np.arange(400), np.searchsorted(classifier.classes_, LABELS[NEW]), 0]
    assert is_covered(in_set.mean())


class StandardDeviation:
    """What crepes divides residuals by."""

    def __init__(self, regressor):
        self.regressor = regressor

    def apply(self, rows):
        return self.regressor.predict(rows, return_std=True)[1]


def test_crepes_intervals_and_p_values(regressor):
    """Normalised by our standard deviations; p-values of new rows are uniform."""
    from crepes import WrapRegressor

    mean, scale = regressor.predict(X[NEW], return_std=True)
    wrapped = WrapRegressor(regressor)
    wrapped.calibrate(X[CALIBRATED], VALUES[CALIBRATED], de=StandardDeviation(regressor))
    low, high = wrapped.predict_int(X[NEW], confidence=0.9).T
    assert is_covered(np.mean((low <= VALUES[NEW]) & (VALUES[NEW] <= high)))
    np.testing.assert_allclose((low + high) / 2, mean)
    np.testing.assert_allclose((high - low) / scale, (high - low)[0] / scale[0])
    p_values = wrapped.predict_p(X[NEW], VALUES[NEW], seed=0)
    assert abs(p_values.mean() - 0.5) < 4 * (1 / 12 * (1 / 200 + 1 / 400)) ** 0.5


def test_crepes_sets(classifier):
    from crepes import WrapClassifier

    wrapped = WrapClassifier(classifier)
    wrapped.calibrate(X[CALIBRATED], LABELS[CALIBRATED], seed=0)
    sets = wrapped.predict_set(X[NEW], confidence=0.9, seed=0)
    assert is_covered(np.mean([label in chosen for label, chosen in zip(LABELS[NEW], sets, strict=True)]))


def test_shap_values_add_up_to_the_prediction(regressor, classifier):
    """And for a linear mean they are its steps from the mean of the background rows, in closed form."""
    import shap

    background, rows = X[:20], X[300:304]
    values = shap.Explainer(regressor.predict, background)(rows)
    np.testing.assert_allclose(values.base_values + values.values.sum(1), regressor.predict(rows), atol=1e-6)
    slopes = regressor.predict(np.eye(4)) - regressor.predict(np.zeros((4, 4)))
    np.testing.assert_allclose(values.values, slopes * (rows - background.mean(0)), atol=1e-5)
    probs = shap.Explainer(classifier.predict_proba, background)(rows)
    assert probs.values.shape == (4, 4, 3)
    np.testing.assert_allclose(
        probs.base_values + probs.values.sum(1), classifier.predict_proba(rows), atol=1e-6
    )
    unsure = shap.Explainer(lambda rows: regressor.uncertainty(rows)["epistemic"].to_numpy(), background)
    found = unsure(rows)
    epistemic = regressor.uncertainty(rows)["epistemic"]
    np.testing.assert_allclose(found.base_values + found.values.sum(1), epistemic, atol=1e-6)


@pytest.mark.slow
def test_skore_reports(classifier):
    """Its figures are scikit-learn's on our predictions, and its checks come to an end."""
    import skore
    from sklearn.metrics import log_loss

    X_train, X_test, y_train, y_test = X[FITTED], X[NEW], LABELS[FITTED], LABELS[NEW]
    one = BayesianLastLayerClassifier(backbone=None)
    report = skore.EstimatorReport(one, X_train=X_train, y_train=y_train, X_test=X_test, y_test=y_test)
    figures = report.metrics.summarize().frame()
    assert figures["log_loss"] == pytest.approx(log_loss(y_test, classifier.predict_proba(X_test)))
    assert figures["accuracy"] == classifier.score(X_test, y_test)
    assert "Potential overfitting" in str(report.checks.summarize())
    folds = skore.evaluate(BayesianLastLayerRegressor(backbone=None), X[:200], VALUES[:200], splitter=3)
    assert folds.metrics.summarize().frame().loc["r2"].iloc[0] > 0.6
    importances = report.inspection.permutation_importance(n_repeats=2, metric="accuracy").frame()
    assert importances.sort_values("value_mean")["feature"].iloc[-1] == "Feature #0"
