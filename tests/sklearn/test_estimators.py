"""The estimators: parameters, labels, predictives, and the fit inside."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bll_pyro as bll
from bll_pyro.sklearn import BayesianLastLayerClassifier, BayesianLastLayerCounter, BayesianLastLayerRegressor

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(120, 3))
VALUES = 2 * X[:, 0] - X[:, 1] + 0.5 * RANDOM.normal(size=120)
LABELS = np.where(VALUES > 0.5, "high", np.where(VALUES < -0.5, "low", "middle"))
NEW = RANDOM.normal(size=(40, 3))


@pytest.fixture(scope="module")
def regressor():
    return BayesianLastLayerRegressor().fit(X, VALUES)


@pytest.fixture(scope="module")
def classifier():
    return BayesianLastLayerClassifier().fit(X, LABELS)


def test_fields_of_declarations_are_parameters():
    one = BayesianLastLayerClassifier(inference=bll.SVI(guide=bll.guides.LowRank(rank=4)))
    assert one.get_params()["inference__guide__rank"] == 4
    other = clone(one).set_params(inference__guide__rank=2, inference__num_epochs=3, prior__scale=0.5)
    assert other.inference.guide.rank == 2 and other.inference.num_epochs == 3
    assert other.prior == bll.priors.Normal(0.5)
    assert one.inference.guide.rank == 4 and one.prior is None  # declarations are not changed in place
    both = clone(one).set_params(inference__guide=bll.guides.FullRank(), inference__patience=2)
    assert isinstance(both.inference.guide, bll.guides.FullRank) and both.inference.patience == 2
    assert set(BayesianLastLayerClassifier().get_params(deep=False)) == {
        "backbone", "prior", "likelihood", "inference", "standardize", "calibration", "store", "random_state",
    }  # fmt: skip


def test_wrong_parameters_change_nothing():
    one = BayesianLastLayerClassifier(inference=bll.SVI())
    before = one.inference
    with pytest.raises(ValueError, match=r"expected fields of SVI .*guide.*got gude"):
        one.set_params(inference__gude=bll.guides.FullRank())
    with pytest.raises(ValueError, match=r"expected fields of Diagonal .principal_axes., got rank"):
        one.set_params(prior__scale=2.0, inference__guide__rank=3)
    with pytest.raises(
        ValueError, match="likelihood: expected a declaration, whose fields df could be set, got None"
    ):
        one.set_params(likelihood__df=3)
    with pytest.raises(ValueError, match="Invalid parameter 'priors'"):
        one.set_params(priors=bll.priors.Laplace())
    assert one.inference is before and one.prior is None


def test_a_search_over_priors_and_guides():
    search = GridSearchCV(
        BayesianLastLayerClassifier(calibration=None),
        {
            "prior": [bll.priors.Normal(), bll.priors.Laplace(1.0)],
            "inference__guide": [bll.guides.Diagonal()],
        },
        scoring="neg_log_loss",
        cv=2,
    )
    search.fit(X, LABELS)
    assert search.best_estimator_.predict_proba(NEW).shape == (40, 3)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_classifier_is_the_fit(classifier):
    codes = np.unique(LABELS, return_inverse=True)[1]
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))
    fit = bll.fit(layer, (torch.from_numpy(X), torch.from_numpy(codes)), bll.random_features(256))
    probs = fit.predict(torch.from_numpy(NEW)).probs.double().numpy()
    np.testing.assert_allclose(classifier.predict_proba(NEW), probs, atol=1e-6)
    assert list(classifier.classes_) == ["high", "low", "middle"]
    assert (classifier.predict(NEW) == classifier.classes_[probs.argmax(1)]).all()
    assert classifier.score(X, LABELS) > 0.8
    parts = classifier.uncertainty(NEW)
    np.testing.assert_allclose(parts["total"], parts["aleatoric"] + parts["epistemic"], rtol=1e-4)
    np.testing.assert_allclose(np.exp(classifier.predict_log_proba(NEW)), classifier.predict_proba(NEW))


def test_the_default_is_random_features_where_they_pay():
    one = BayesianLastLayerRegressor().set_params(backbone__num_features=64, backbone__seed=3)
    assert clone(one).backbone == bll.random_features(64, seed=3)
    curved = np.sin(2 * X[:, 0]) + 0.1 * RANDOM.normal(size=120)
    one.fit(X, curved)
    assert one.score(X, curved) > 0.9 and one.fit_.backbone.length_scales is not None
    linear = BayesianLastLayerRegressor().fit(X, VALUES)
    plain = BayesianLastLayerRegressor(backbone=None).fit(X, VALUES)
    assert linear.fit_.backbone.length_scales is None and plain.fit_.backbone is None
    np.testing.assert_allclose(linear.predict(NEW), plain.predict(NEW), atol=0.02)
    with pytest.raises(ValueError, match='backbone: expected "automatic"'):
        BayesianLastLayerRegressor("auto").fit(X, VALUES)


def test_one_row_a_class_and_two_rows():
    assert BayesianLastLayerClassifier().fit(X[:3], ["a", "b", "c"]).predict_proba(NEW).shape == (40, 3)
    assert np.isfinite(BayesianLastLayerRegressor().fit(X[:2], VALUES[:2]).predict(NEW)).all()


def test_two_classes_by_bernoulli():
    flags = VALUES > 0
    one = BayesianLastLayerClassifier(likelihood=bll.likelihoods.Bernoulli()).fit(X, flags)
    assert one.predict_proba(NEW).shape == (40, 2) and one.predict(NEW).dtype == bool
    np.testing.assert_allclose(one.predict_proba(NEW).sum(1), 1)
    assert one.score(X, flags) > 0.85


def test_draws_of_labels_have_the_probabilities(classifier):
    draws = classifier.sample_y(NEW, 4000, random_state=1)
    shares = np.stack([(draws == name).mean(1) for name in classifier.classes_], 1)
    probs = classifier.predict_proba(NEW)
    assert (abs(shares - probs) <= 5 * np.sqrt(probs * (1 - probs) / 4000) + 1e-3).all()


def test_regressor_against_the_predictive(regressor):
    mean, scale = regressor.predict(NEW, return_std=True)
    np.testing.assert_allclose(regressor.predict(NEW), mean)
    assert isinstance(regressor.fit_.inference, bll.Exact)
    low, high = regressor.predict_interval(NEW, coverage=0.8).T
    # the predictive is a scale mixture of normals with many degrees of freedom here
    np.testing.assert_allclose((high - low) / (2 * stats.norm.ppf(0.9) * scale), 1, rtol=0.02)
    quantiles = regressor.predict_quantiles(NEW, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles[:, [0, 2]], np.stack([low, high], 1))
    np.testing.assert_allclose(quantiles[:, 1], mean, atol=0.01)
    draws = regressor.sample_y(NEW, 2000, random_state=3)
    assert draws.shape == (40, 2000)
    assert (abs(draws.mean(1) - mean) <= 5 * scale / 2000**0.5).all()


def test_several_values_a_row():
    both = np.stack([VALUES, -3 * VALUES + 1], 1)
    one = BayesianLastLayerRegressor().fit(X, both)
    mean, scale = one.predict(NEW, return_std=True)
    assert mean.shape == scale.shape == (40, 2) and one.predict_interval(NEW).shape == (40, 2, 2)
    assert list(one.uncertainty(NEW)) == [
        f"{name}_{t}" for name in ("total", "aleatoric", "epistemic") for t in (0, 1)
    ]


def test_partial_fit_is_an_update():
    one = BayesianLastLayerRegressor().partial_fit(X[:80], VALUES[:80]).partial_fit(X[80:], VALUES[80:])
    updated = BayesianLastLayerRegressor().fit(X[:80], VALUES[:80]).fit_.update((X[80:], VALUES[80:]))
    np.testing.assert_allclose(one.predict(NEW), updated.predict(NEW).mean.double(), rtol=1e-6)
    assert one.fit_.num_rows == 120
    assert not hasattr(BayesianLastLayerRegressor(inference=bll.SVI()), "partial_fit")
    assert not hasattr(BayesianLastLayerRegressor(likelihood=bll.likelihoods.StudentT()), "partial_fit")


def test_counts_and_their_exposure():
    hours = RANDOM.uniform(1, 5, 120)
    counts = RANDOM.poisson(hours * np.exp(0.5 * X[:, 0]))
    one = BayesianLastLayerCounter(likelihood=bll.likelihoods.Poisson()).fit(X, counts, exposure=hours)
    rate = one.predict(NEW)  # of one hour
    assert np.corrcoef(np.log(rate), NEW[:, 0])[0, 1] > 0.9
    with pytest.raises(ValueError, match=r"expected whole numbers >= 0.*BayesianLastLayerRegressor"):
        BayesianLastLayerCounter().fit(X, VALUES)


def test_frames_keep_their_names_and_index(regressor):
    frame = pd.DataFrame(X, columns=["a", "b", "c"], index=[f"row {i}" for i in range(120)])
    one = BayesianLastLayerRegressor().fit(frame, VALUES)
    assert list(one.feature_names_in_) == ["a", "b", "c"]
    np.testing.assert_allclose(one.predict(frame), regressor.predict(X))
    assert list(one.uncertainty(frame.iloc[:3]).index) == ["row 0", "row 1", "row 2"]
    with pytest.raises(ValueError, match="feature names"):
        one.predict(frame[["b", "a", "c"]])


def test_inside_the_tools_of_scikit_learn(regressor):
    piped = make_pipeline(StandardScaler(), BayesianLastLayerRegressor())
    scores = cross_validate(piped, X, VALUES, cv=3, scoring="r2")["test_score"]
    assert (scores > 0.7).all()
    logged = TransformedTargetRegressor(BayesianLastLayerRegressor(), func=np.log, inverse_func=np.exp)
    assert logged.fit(X, np.exp(VALUES)).predict(NEW).min() > 0
    found = permutation_importance(regressor, X, VALUES, n_repeats=2, random_state=0)
    assert found.importances_mean.argsort()[::-1].tolist()[:2] == [0, 1]


def test_a_backbone_and_its_stored_features(tmp_path):
    calls = []

    class Backbone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 8, dtype=torch.float64)

        def forward(self, rows):
            calls.append(len(rows))
            return self.layer(rows).tanh()

    torch.manual_seed(0)
    network = Backbone()
    options = {"calibration": None, "store": str(tmp_path)}
    first = BayesianLastLayerClassifier(network, **options).fit(X, LABELS)
    made = sum(calls)
    again = BayesianLastLayerClassifier(network, bll.priors.Laplace(1.0), **options).fit(X, LABELS)
    assert sum(calls) == made  # the store had the features
    assert first.predict_proba(NEW).shape == again.predict_proba(NEW).shape == (40, 3)


def test_copies_predict_the_same(classifier, regressor):
    for one in (classifier, regressor):
        copy = pickle.loads(pickle.dumps(one))
        assert (copy.predict(NEW) == one.predict(NEW)).all()


def test_errors_that_users_of_scikit_learn_know():
    with pytest.raises(NotFittedError):
        BayesianLastLayerRegressor().predict_interval(X)
    with pytest.raises(ValueError, match="at least two classes, got only"):
        BayesianLastLayerClassifier().fit(X, ["a"] * 120)
    with pytest.raises(ValueError, match='calibration: expected "automatic"'):
        BayesianLastLayerClassifier(calibration="auto").fit(X, LABELS)
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        BayesianLastLayerRegressor().fit(X, VALUES, sample_weight=-np.ones(120))
