"""What decides on a prior scale that is not given: held-out density, or the log evidence.

========================== ============================================== ==========================================
criterion                  highest                                        known to fail
========================== ============================================== ==========================================
``CrossValidation()``      log density of rows, by fits without their     rows that are copies of each other
                           fold
``LeaveOneOut()``          the same for single rows, by one step from     few rows that the layer fits nearly
                           the fit of all rows                            perfectly: too small a scale
``Evidence()``             log evidence, as the inference has it: the     the same, by more
                           ELBO, or Laplace's approximation
========================== ============================================== ==========================================

Both bounds of the evidence miss it by more, the further the posterior is from a Gaussian, and a larger scale takes it
further; so they prefer too small ones. What is predicted of rows that were not fitted says what matters, whatever the
guide.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from bll_pyro.checks import count, positive_or_none
from bll_pyro.declaration import Declaration
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.gaussian_noise import GaussianNoise

__all__ = ["Criterion", "CrossValidation", "Evidence", "LeaveOneOut"]

MAX_WEIGHTS = 100_000
MAX_FOLD_WEIGHTS = 10_000  # of the coordinates in which the rows vary


class Criterion(Declaration):
    """A way to choose the learned scale of a prior."""

    family: ClassVar[str] = "criteria"

    @property
    def num_fits(self) -> int:
        """Number of fits at each scale, one for each fold; 1 where the rows are left out of the fit of all."""
        return 1

    @abstractmethod
    def applies(self, layer: LastLayer, num_rows: int, num_outputs: int, num_columns: int) -> bool:
        """Whether scales other than the evidence's are tried for this layer on N rows with P columns."""


@dataclass(frozen=True, eq=False)
class Evidence(Criterion):
    """The scale of the highest log evidence: of the ELBO for SVI, of Laplace's approximation for Laplace."""

    def applies(self, layer: LastLayer, num_rows: int, num_outputs: int, num_columns: int) -> bool:
        """False."""
        return False


@dataclass(frozen=True, eq=False)
class CrossValidation(Criterion):
    """The scale of the highest log predictive density of rows by fits of the other folds.

    The search goes along doublings of the scale of the highest evidence, and ends at the lowest point of a parabola through
    the best three. With several learned scales (one for each output) their ratios stay those of the highest evidence. Of
    SVI all folds and scales are fitted side by side, by independent weights in principal axes (a point for ``MAP``) whatever
    the guide; of Laplace by its own modes, one after the other.

    The evidence decides alone where there is next to nothing to gain: for the Gaussian likelihood, of which it is exact or
    close to it, and with many rows for each column, where the prior hardly matters. It also does where fits of folds would
    take minutes: for layers of more than 100,000 weights, or of more than 10,000 in the directions in which the rows vary.

    Parameters
    ----------
    num_folds
        Number of folds. More of them are dearer, and choose with less noise.
    max_rows_per_column
        Rows for each column of the design matrix from which on the evidence decides.
    """

    num_folds: int = 10
    max_rows_per_column: float = 5.0

    def __post_init__(self) -> None:
        count(self.num_folds, "num_folds", "CrossValidation", 2)
        positive_or_none(self.max_rows_per_column, "max_rows_per_column", "CrossValidation")

    @property
    def num_fits(self) -> int:
        """The number of folds."""
        return self.num_folds

    def applies(self, layer: LastLayer, num_rows: int, num_outputs: int, num_columns: int) -> bool:
        """Whether rows are few for the columns, and enough for folds, and the layer is neither Gaussian nor huge."""
        few = 2 * self.num_folds <= num_rows < self.max_rows_per_column * num_columns
        small = num_outputs * min(num_rows, num_columns) <= MAX_FOLD_WEIGHTS
        return few and small and is_worth_it(layer, num_outputs * num_columns)


@dataclass(frozen=True, eq=False)
class LeaveOneOut(Criterion):
    """The scale of the highest leave-one-out density in output space, without refits (:func:`bll_pyro.loo`).

    Searched like :class:`CrossValidation`, and several times faster. On the features of networks both choose alike. Where
    rows are fewer than features and almost separable, one step from the fit overstates how far the others would
    move without the row, the more the larger the scale.

    Parameters
    ----------
    max_rows_per_column
        Rows for each column of the design matrix from which on the evidence decides.
    """

    max_rows_per_column: float = 20.0

    def __post_init__(self) -> None:
        positive_or_none(self.max_rows_per_column, "max_rows_per_column", "LeaveOneOut")

    def applies(self, layer: LastLayer, num_rows: int, num_outputs: int, num_columns: int) -> bool:
        """As for :class:`CrossValidation`."""
        few = num_rows < self.max_rows_per_column * num_columns
        return few and is_worth_it(layer, num_outputs * num_columns)


def is_worth_it(layer: LastLayer, num_weights: int) -> bool:
    """Whether a criterion other than the evidence is worth its time: the layer is neither Gaussian nor huge."""
    return num_weights <= MAX_WEIGHTS and not isinstance(layer.likelihood, GaussianNoise)


def check_criterion(value: object, owner: str) -> None:
    """Raise if this is no criterion."""
    if not isinstance(value, Criterion):
        raise TypeError(
            f"{owner}(scale_criterion=...): expected a criterion such as bll.criteria.CrossValidation() or "
            f"bll.criteria.Evidence(), got {value!r}"
        )
