"""The methods of the comparison: names, where each applies, and how each is fitted."""

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.defaults import bayesian, plain
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
    most_rows, most_weights : int or None
        Most training rows, and most weights of the layer.
    not_tables : bool
        For columns that share a unit only.
    before : callable or None
        ``before(data_set, split)`` makes what the method builds on, before the clock starts.
    """

    name: str
    package: str
    fit: Callable[[DataSet, Split, int], Predict]
    has_classes: bool = False
    has_values: bool = False
    is_plain: bool = False
    most_rows: int | None = None
    most_weights: int | None = None
    not_tables: bool = False
    before: Callable[[DataSet, Split], object] | None = None

    def fits(self, data: DataSet, made: Split) -> bool:
        """Whether it applies to a split of a data set."""
        kind = self.has_classes if made.num_classes else self.has_values
        small = self.most_rows is None or len(made.features) <= self.most_rows
        num_weights = (made.features.shape[1] + 1) * max(made.num_classes, 1)
        small = small and (self.most_weights is None or num_weights <= self.most_weights)
        return kind and small and not (data.is_table and self.not_tables)

    @property
    def made_with(self) -> str | None:
        """The package with its version, for ours with a hash of its code; None if it is not installed."""
        if find_spec(MODULES[self.package]) is None:
            return None
        code = f" {code_hash()}" if self.name == OURS else ""
        return f"{self.package} {version(self.package)}{code}"


@cache
def code_hash() -> str:
    """A hash of our package's code, by which results of other code are told."""
    folder = Path(importlib.import_module(MODULES["bll-pyro"]).__path__[0])
    made = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        made.update(path.read_bytes())
    return made.hexdigest()[:12]


def _logistic(*, scaled: bool) -> tuple[Method, Method]:
    suffix, rest = (
        "" if scaled else ", raw",
        {"has_classes": True, "is_plain": True, "not_tables": not scaled},
    )
    before = partial(plain.fitted_head, scaled=scaled)
    return (
        Method(f"logistic{suffix}", "scikit-learn", partial(plain.logistic, scaled=scaled), **rest),
        Method(
            f"logistic + temperature{suffix}", "scikit-learn", partial(plain.logistic_temperature, scaled=scaled),
            before=before, **rest,
        ),
    )  # fmt: skip


def _laplace(structure: str, link: str) -> Method:
    most = bayesian.MOST_FULL_WEIGHTS if structure == "full" else bayesian.MOST_KRON_WEIGHTS
    return Method(
        f"laplace-torch, {structure}, {link}", "laplace-torch",
        partial(bayesian.laplace, structure=structure, link=link), has_classes=True,
        most_weights=most,
        before=partial(bayesian.fitted_laplace, structure=structure) if link == "mc" else None,
    )  # fmt: skip


METHODS = (
    *_logistic(scaled=True),
    *_logistic(scaled=False),
    Method("ridge", "scikit-learn", plain.bayesian_ridge, has_values=True, is_plain=True),
    Method(
        "Gaussian process", "scikit-learn", plain.gaussian_process, has_classes=True, has_values=True,
        most_rows=MOST_PROCESS_ROWS,
    ),
    _laplace("kron", "probit"),
    _laplace("kron", "mc"),
    _laplace("full", "probit"),
    _laplace("full", "mc"),
    Method("laplace-torch", "laplace-torch", bayesian.laplace_values, has_values=True),
    Method("vbll", "vbll", bayesian.vbll, has_classes=True, has_values=True, most_weights=bayesian.MOST_WEIGHTS),
    Method(OURS, "bll-pyro", bayesian.ours, has_classes=True, has_values=True),
)  # fmt: skip
