"""scikit-learn's own checks of estimators, none left out."""

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from bll_pyro.sklearn import BayesianLastLayerClassifier, BayesianLastLayerRegressor

WEIGHTS = "a row of weight 2 is left out as one row, and two equal rows one at a time: the temperatures differ a little"


def expected(estimator: Any) -> dict[str, str]:
    """scikit-learn exempts its own iterative classifiers from this check too."""
    if isinstance(estimator, BayesianLastLayerClassifier):
        return {f"check_sample_weight_equivalence_on_{kind}_data": WEIGHTS for kind in ("dense", "sparse")}
    return {}


@pytest.mark.slow
@pytest.mark.unchecked
@pytest.mark.filterwarnings(
    "ignore::bll_pyro.inference.base.FitWarning"
)  # targets of some checks have no noise
@parametrize_with_checks(
    [BayesianLastLayerClassifier(), BayesianLastLayerRegressor()],
    expected_failed_checks=expected,
)
def test_estimator(estimator: Any, check: Any) -> None:
    check(estimator)
