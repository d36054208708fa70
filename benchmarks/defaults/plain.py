"""What a user would have done otherwise, with scikit-learn: cross-validated heads, a temperature, Gaussian processes.

All take features as float64. Tables are standardised by columns, as scikit-learn's own examples have it; pixels and
features of networks, whose columns share a unit, are given to logistic regression both raw and standardised.
"""

from functools import lru_cache
from inspect import signature
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge, LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.defaults.predictions import Classes, Predict, Values
from benchmarks.defaults.splits import DataSet, Split

NUM_FOLDS = 10  # for the temperature
MAX_ITERATIONS = 1000  # scikit-learn's message asks for more than its 100
LARGE: dict[str, Any] = {"Cs": (0.1, 1.0, 10.0, 100.0), "cv": 3, "max_iter": 100}  # minutes a fit as it is


def head(data: DataSet, made: Split, scaled: bool) -> Any:
    """Logistic regression whose penalty is cross-validated by log loss: ten values, five folds; for many classes four and three."""
    options = LARGE if data.is_large else {"Cs": 10, "cv": 5, "max_iter": MAX_ITERATIONS}
    # scikit-learn warns without these since 1.8, and before it warns about the one and lacks the other
    later = {"l1_ratios": (0,), "use_legacy_attributes": False}
    has_both = later.keys() <= signature(LogisticRegressionCV).parameters.keys()
    search = LogisticRegressionCV(**options, scoring="neg_log_loss", **(later if has_both else {}))
    return make_pipeline(StandardScaler(), search) if scaled else search


@lru_cache(maxsize=4)
def fitted_head(data: DataSet, made: Split, scaled: bool) -> Any:
    """The cross-validated head, fitted once for the methods that build on it."""
    return head(data, made, scaled).fit(made.features.astype(float), made.targets)


def logistic(data: DataSet, made: Split, seed: int, *, scaled: bool = True) -> Predict:
    """The cross-validated head."""
    fitted_head.cache_clear()  # its time is to be measured
    fitted = fitted_head(data, made, scaled)
    return lambda rows: Classes(fitted.predict_proba(rows.astype(float)))


def logistic_temperature(data: DataSet, made: Split, seed: int, *, scaled: bool = True) -> Predict:
    """The same, and one temperature for the log odds of out-of-fold rows at the penalty that was picked."""
    features = made.features.astype(float)
    fitted = fitted_head(data, made, scaled)
    search = fitted[-1] if scaled else fitted
    one: Any = LogisticRegression(C=float(np.ravel(search.C_)[0]), max_iter=search.max_iter)
    one = make_pipeline(StandardScaler(), one) if scaled else one
    num_folds = max(2, min(3 if data.is_large else NUM_FOLDS, np.bincount(made.targets).min()))
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    logs = cross_val_predict(one, features, made.targets, cv=folds, method="predict_log_proba")
    logs = np.maximum(logs, -700.0)

    def loss(log_temperature: float) -> float:
        scaled_logs = log_softmax(logs * np.exp(-log_temperature), axis=1)
        return -float(scaled_logs[np.arange(len(logs)), made.targets].mean())

    temperature = np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x)

    def predict(rows: np.ndarray) -> Classes:
        logs = np.maximum(fitted.predict_log_proba(rows.astype(float)), -700.0)
        return Classes(softmax(logs / temperature, axis=1))

    return predict


def bayesian_ridge(data: DataSet, made: Split, seed: int) -> Predict:
    """Linear regression with both precisions by the evidence; noise is part of its standard deviation."""
    fitted = make_pipeline(StandardScaler(), BayesianRidge())
    fitted.fit(made.features.astype(float), made.targets.astype(float))
    return lambda rows: Values.normal(*fitted.predict(rows.astype(float), return_std=True))


def gaussian_process(data: DataSet, made: Split, seed: int) -> Predict:
    """A Gaussian process with an RBF kernel, hyperparameters by the evidence.

    Values: with noise, best of three starts. Classes: one process a class against the rest, by Laplace.
    """
    kernel = ConstantKernel() * RBF()
    process: Any = GaussianProcessClassifier(kernel, random_state=seed)
    if not made.num_classes:
        process = GaussianProcessRegressor(
            kernel + WhiteKernel(), normalize_y=True, n_restarts_optimizer=2, random_state=seed
        )
    fitted = make_pipeline(StandardScaler(), process).fit(made.features.astype(float), made.targets)
    if made.num_classes:
        return lambda rows: Classes(fitted.predict_proba(rows.astype(float)))
    return lambda rows: Values.normal(*fitted.predict(rows.astype(float), return_std=True))
