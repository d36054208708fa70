"""The methods of the comparison: names, where each applies, and how each is fitted."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

from benchmarks.defaults import plain
from benchmarks.defaults.predictions import Predict
from benchmarks.defaults.splits import DataSet, Split

MODULES = {"scikit-learn": "sklearn", "bll-pyro": "bll_pyro", "laplace-torch": "laplace", "vbll": "vbll"}
OURS = "bll_pyro"
MOST_PROCESS_ROWS = 600  # a Gaussian process costs the cube of them, once an evaluation


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes
    ----------
    name : str
        Name in the tables and in the stored rows.
    package : str
        What it comes from; where that is not installed the method is left out.
    fit : callable
        ``fit(data_set, split, seed) -> predict``, and ``predict(features) -> Classes or Values``.
    has_classes, has_values : bool
        Whether it fits classes, or values.
    is_plain : bool
        One of those that the default is judged against.
    most_rows : int or None
        Most training rows.
    not_tables : bool
        For columns that share a unit only.
    """

    name: str
    package: str
    fit: Callable[[DataSet, Split, int], Predict]
    has_classes: bool = False
    has_values: bool = False
    is_plain: bool = False
    most_rows: int | None = None
    not_tables: bool = False

    def fits(self, data: DataSet, made: Split) -> bool:
        """Whether it applies to a split of a data set."""
        kind = self.has_classes if made.num_classes else self.has_values
        small = self.most_rows is None or len(made.features) <= self.most_rows
        return kind and small and not (data.is_table and self.not_tables)

    @property
    def made_with(self) -> str | None:
        """The package with its version; None if it is not installed."""
        if find_spec(MODULES[self.package]) is None:
            return None
        return f"{self.package} {version(self.package)}"


def _logistic(name: str, fit: Callable[..., Predict], *, scaled: bool) -> Method:
    return Method(
        name,
        "scikit-learn",
        partial(fit, scaled=scaled),
        has_classes=True,
        is_plain=True,
        not_tables=not scaled,
    )


METHODS = (
    _logistic("logistic", plain.logistic, scaled=True),
    _logistic("logistic, raw", plain.logistic, scaled=False),
    _logistic("logistic + temperature", plain.logistic_temperature, scaled=True),
    _logistic("logistic + temperature, raw", plain.logistic_temperature, scaled=False),
    Method("ridge", "scikit-learn", plain.bayesian_ridge, has_values=True, is_plain=True),
)
