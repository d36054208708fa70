"""Estimators for scikit-learn: a Bayesian last layer in pipelines, searches and cross-validation."""

from bll_pyro.sklearn.classifier import BayesianLastLayerClassifier
from bll_pyro.sklearn.counter import BayesianLastLayerCounter
from bll_pyro.sklearn.regressor import BayesianLastLayerRegressor

__all__ = ["BayesianLastLayerClassifier", "BayesianLastLayerCounter", "BayesianLastLayerRegressor"]
