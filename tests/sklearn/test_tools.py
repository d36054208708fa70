"""scikit-learn's own tools: nested searches, cross-validation, ensembles, displays, importances, mixed tables, routed weights."""

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.calibration import CalibrationDisplay, calibration_curve
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import StackingClassifier, StackingRegressor
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, make_scorer, mean_pinball_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

import bll_pyro as bll
from bll_pyro.sklearn import BayesianLastLayerClassifier, BayesianLastLayerRegressor

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(150, 3))
VALUES = 2 * X[:, 0] - X[:, 1] + 0.5 * RANDOM.normal(size=150)
FLAGS = np.where(VALUES + RANDOM.normal(size=150) > 0, "yes", "no")


class CountingBackbone(torch.nn.Module):
    """Counts the rows that went through it or one of its copies, since searches copy what they are given."""

    seen: ClassVar[list[int]] = []

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 8, dtype=torch.float64)

    def forward(self, rows):
        self.seen.append(len(rows))
        return self.layer(rows).tanh()


def test_a_nested_search_over_priors_runs_the_backbone_once_for_each_set_of_rows(tmp_path):
    torch.manual_seed(0)
    network = CountingBackbone()
    CountingBackbone.seen.clear()
    one = BayesianLastLayerClassifier(network, calibration=None, store=str(tmp_path))
    outer, inner = StratifiedKFold(2), StratifiedKFold(3)
    scales = [0.03, 0.3, 3.0]
    search = GridSearchCV(one, {"prior__scale": scales}, scoring="neg_log_loss", cv=inner)
    done = cross_validate(search, X, FLAGS, cv=outer, scoring="neg_log_loss", return_estimator=True)
    sets = set()
    for train, test in outer.split(X, FLAGS):
        sets |= {tuple(train), tuple(test)}
        for fitted, scored in inner.split(X[train], FLAGS[train]):
            sets |= {tuple(train[fitted]), tuple(train[scored])}
    assert sum(CountingBackbone.seen) == sum(map(len, sets))
    for found in done["estimator"]:
        scores = found.cv_results_["mean_test_score"]
        assert found.best_estimator_.prior == bll.priors.Normal(scales[int(scores.argmax())])
        assert len(set(scores)) == 3  # the scale reaches the fit
    assert done["test_score"].min() > -np.log(2)


def test_cross_validate_with_a_scorer_of_probabilities():
    """Each fold's score is that of a fit by hand on its rows."""
    one = BayesianLastLayerClassifier(backbone=None)
    folds = list(StratifiedKFold(3).split(X, FLAGS))
    found = cross_validate(one, X, FLAGS, cv=folds, scoring=["neg_log_loss", "roc_auc"])
    assert found["test_roc_auc"].min() > 0.75
    train, test = folds[0]
    codes = torch.from_numpy((FLAGS[train] == "yes").astype(np.int64))
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Categorical(2)), (torch.from_numpy(X[train]), codes))
    targets = torch.from_numpy((FLAGS[test] == "yes").astype(np.int64))
    expected = fit.predict(torch.from_numpy(X[test])).log_prob(targets).mean()
    assert found["test_neg_log_loss"][0] == pytest.approx(float(expected), abs=1e-5)


def test_a_scorer_of_quantiles():
    """Predictive quantiles have a smaller pinball loss than those of rows without columns."""

    def pinball(estimator, rows, values):
        return -mean_pinball_loss(values, estimator.predict_quantiles(rows, [0.9])[:, 0], alpha=0.9)

    found = cross_validate(BayesianLastLayerRegressor(backbone=None), X, VALUES, cv=3, scoring=pinball)
    assert -found["test_score"].mean() < 0.5 * mean_pinball_loss(
        VALUES, np.full(150, np.quantile(VALUES, 0.9)), alpha=0.9
    )


def test_stacks():
    """The stack of a good and of a useless model leans on the good one."""
    useless = DecisionTreeClassifier(max_depth=1, max_features=1, random_state=0)
    members = [
        ("bayes", BayesianLastLayerClassifier(backbone=None, calibration=None)),
        ("tree", useless),
    ]
    stack = StackingClassifier(members, LogisticRegression(), cv=3).fit(X, FLAGS)
    weights = stack.final_estimator_.coef_[0]
    assert weights[0] > 2 * abs(weights[1])
    assert log_loss(FLAGS, stack.predict_proba(X)) < 0.55
    above = StackingRegressor([("ridge", Ridge())], BayesianLastLayerRegressor(backbone=None), cv=3).fit(
        X, VALUES
    )
    mean, scale = above.predict(X, return_std=True)  # reaches the final estimator
    assert np.mean(abs(VALUES - mean) < 2 * scale) > 0.9


def test_calibration_display():
    """The curve that is drawn is that of left-out probabilities, near the diagonal."""
    one = BayesianLastLayerClassifier(backbone=None)
    probs = cross_val_predict(one, X, FLAGS, cv=3, method="predict_proba")[:, 1]
    share, mean = calibration_curve(FLAGS == "yes", probs, n_bins=3, strategy="quantile")
    assert abs(share - mean).max() < 0.2  # fifty rows in each: three standard errors
    fitted = one.fit(X, FLAGS)
    shown = CalibrationDisplay.from_estimator(fitted, X, FLAGS, n_bins=3, strategy="quantile")
    expected = calibration_curve(FLAGS == "yes", fitted.predict_proba(X)[:, 1], n_bins=3, strategy="quantile")
    np.testing.assert_allclose([shown.prob_true, shown.prob_pred], expected)


def test_permutation_importance_against_the_weights():
    """The squared error that a permuted column of a linear model adds is twice its squared weight, times its variance."""
    one = BayesianLastLayerRegressor(backbone=None).fit(X, VALUES)
    found = permutation_importance(
        one, X, VALUES, scoring="neg_mean_squared_error", n_repeats=20, random_state=0
    )
    steps = one.predict(np.eye(3)) - one.predict(np.zeros((3, 3)))
    error = 4 * found.importances_std / 20**0.5 + 0.02
    assert (abs(found.importances_mean - 2 * steps**2 * X.var(0)) < error).all()


def test_transformed_targets():
    """The logarithm inside, and values in units outside."""
    logged = TransformedTargetRegressor(
        BayesianLastLayerRegressor(backbone=None), func=np.log, inverse_func=np.exp
    )
    predicted = logged.fit(X, np.exp(VALUES)).predict(X)
    direct = BayesianLastLayerRegressor(backbone=None).fit(X, VALUES).predict(X)
    np.testing.assert_allclose(np.log(predicted), direct, atol=1e-6)


def test_a_mixed_table_with_missing_values():
    """Categories and gaps go through scikit-learn's transformers; a category that is new at prediction is no error."""
    random = np.random.default_rng(1)
    size = 200
    frame = pd.DataFrame(
        {
            "area": random.uniform(20, 120, size),
            "city": random.choice(["Bern", "Lyon", "Turin"], size),
            "floor": random.integers(0, 5, size).astype(float),
        }
    )
    effect = frame["city"].map({"Bern": 30.0, "Lyon": 0.0, "Turin": -30.0})
    price = frame["area"] + effect + 5 * random.normal(size=size)
    frame.loc[random.random(size) < 0.1, "floor"] = np.nan
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["city"]),
        (make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["area", "floor"]),
    )
    model = make_pipeline(columns, BayesianLastLayerRegressor(backbone=None))
    model.fit(frame[:150], price[:150])
    mean, scale = model.predict(frame[150:], return_std=True)
    assert 4 < np.sqrt(np.mean((mean - price[150:]) ** 2)) < 6.5
    assert 4 < scale.mean() < 6.5
    moved = frame[150:].assign(city="Bern")
    known, unknown = (model.predict(rows, return_std=True)[1] for rows in (moved, moved.assign(city="Oslo")))
    assert (unknown > known).all()  # no row tells the level of a city that was never seen
    with pytest.raises(ValueError, match="contains NaN"):
        BayesianLastLayerRegressor(backbone=None).fit(frame[["floor"]], price)


@pytest.fixture
def routed():
    """Metadata routing is a global switch of scikit-learn's."""
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.mark.usefixtures("routed")
def test_weights_are_routed_through_a_pipeline_and_a_search():
    """Weights that are asked for reach the fit: rows of weight 0 count as little as rows that are left out."""
    weight = (np.arange(150) % 3 > 0).astype(float)
    wrong = np.where(weight > 0, VALUES, 100.0)  # rows that would ruin the fit
    one = BayesianLastLayerRegressor(backbone=None).set_fit_request(sample_weight=True)
    piped = make_pipeline(StandardScaler().set_fit_request(sample_weight=True), one)
    piped.fit(X, wrong, sample_weight=weight)
    assert np.sqrt(np.mean((piped.predict(X) - VALUES) ** 2)) < 0.6
    error = make_scorer(
        lambda values, means, sample_weight: np.average((values - means) ** 2, weights=sample_weight),
        greater_is_better=False,
    ).set_score_request(sample_weight=True)
    asked = BayesianLastLayerRegressor(backbone=None).set_fit_request(sample_weight=True)
    search = GridSearchCV(asked, {"prior__scale": [1.0, 0.01]}, scoring=error, cv=2)
    search.fit(X, wrong, sample_weight=weight)
    assert search.best_score_ > -0.5 and search.best_params_ == {"prior__scale": 1.0}
    deaf = BayesianLastLayerRegressor(backbone=None).set_fit_request(sample_weight=False)
    unweighted = GridSearchCV(deaf, {"prior__scale": [1.0]}, scoring=error, cv=2)
    assert unweighted.fit(X, wrong, sample_weight=weight).best_score_ < -100
