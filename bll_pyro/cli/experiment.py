"""``Experiment``: everything that a run depends on, as one declaration that is a YAML file.

An experiment is read in two steps. A :class:`Draft` holds the plain data; checking it builds every object once, so that each
mistake is told before anything runs. What only the data can say, a likelihood that is left out or its number of classes, is
filled in once they are open.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from bll_pyro.checks import share
from bll_pyro.cli.backbones import Network, TrainedNetwork
from bll_pyro.cli.building import WRONG, Builder
from bll_pyro.cli.data.base import DataSource, Opened
from bll_pyro.cli.data.resolve import DATA_SUFFIXES, resolve
from bll_pyro.cli.data.splits import Splits
from bll_pyro.cli.data.tables import Table
from bll_pyro.cli.importing import importable
from bll_pyro.cli.overrides import overridden
from bll_pyro.cli.run_folder import EXPERIMENT
from bll_pyro.cli.usage import UsageError
from bll_pyro.cli.yaml_file import Document, dump, read_yaml
from bll_pyro.declaration import Declaration, written
from bll_pyro.features.random_fourier import RandomFeatures
from bll_pyro.fitting import AUTOMATIC
from bll_pyro.inference.base import Inference
from bll_pyro.inference.svi.imported import Imported
from bll_pyro.inference.svi.svi import SVI
from bll_pyro.layer import LastLayer
from bll_pyro.ood import Detector
from bll_pyro.priors import Normal


@dataclass(frozen=True, eq=False)
class Experiment(Declaration):
    """What is fitted, on what, and how.

    Parameters
    ----------
    data
        Where the rows come from.
    layer
        Prior and likelihood. In a YAML the likelihood, and its number of classes, may be left to the data: ``Categorical`` for
        classes with names, ``Gaussian`` for real values. Whole numbers need one.
    splits
        Shares of the rows for calibration and test.
    backbone
        The network in front, or random features of a table; None where the inputs are features.
    inference
        How to get to a posterior.
    calibration
        As in :func:`bll_pyro.fit`: ``"automatic"``, the share of the training rows that is kept for it, or None.
    detector
        Detector of unknown inputs, whose threshold comes from the part ``calibration``; None has none.
    seed
        Of splits, random weights and fit.
    """

    family: ClassVar[str] = "experiment"
    data: DataSource
    splits: Splits = Splits()
    backbone: Network | Imported | RandomFeatures | None = None
    layer: LastLayer = None  # type: ignore[assignment]  # not left out in the end: see Draft
    inference: Inference = SVI()
    calibration: Literal["automatic"] | float | None = "automatic"
    detector: Detector | None = Detector()
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.layer, LastLayer):
            raise TypeError(
                f"Experiment(layer=...): expected bll.LastLayer(likelihood=...), got {self.layer!r}"
            )
        if isinstance(self.calibration, (int, float)):
            share(self.calibration, "calibration", "Experiment", "it is the share of the rows that is kept")
        if not 0 <= self.seed < 2**32:
            raise ValueError(
                f"Experiment(seed=...): expected a whole number from 0 to 2**32 - 1, got {self.seed!r}"
            )
        if self.inference.trains_backbone and self.backbone is None:
            raise ValueError(
                "expected a backbone to train along, got none; name one, or leave backbone_learning_rate out"
            )
        if self.inference.trains_backbone and isinstance(self.backbone, RandomFeatures):
            raise ValueError(
                "expected a backbone with weights to train along, got RandomFeatures, which are found before the fit; leave "
                "backbone_learning_rate out"
            )
        if isinstance(self.backbone, TrainedNetwork) and (
            self.layer.prior != Normal() or self.inference.trains_backbone
        ):
            raise ValueError(
                "expected a trained network as it is, with the prior around its own head, got another prior or a "
                "backbone_learning_rate; leave these out, or take the network as a plain backbone"
            )

    @property
    def calibration_argument(self) -> Any:
        """What :func:`bll_pyro.fit` takes for it."""
        return AUTOMATIC if self.calibration == "automatic" else self.calibration

    def to_yaml(self) -> str:
        """The file that gives this experiment, with all defaults."""
        plain = written(self)
        del plain["class"]
        return dump(plain)


@dataclass(frozen=True)
class Draft:
    """An experiment as it is written, before the data were opened.

    Parameters
    ----------
    document
        The plain data, with the options of the command line.
    """

    document: Document

    def check(self) -> Experiment:
        """The experiment, with a stand-in where the data will say what the likelihood is.

        Raises
        ------
        UsageError
            That lists every mistake with its line.
        """
        return self._built("Categorical", {"num_classes": 2})

    def experiment(self, opened: Opened) -> Experiment:
        """The experiment on data that are open; without a likelihood for whole numbers, a UsageError asks for one."""
        likelihood, classes = _suited_to(opened)
        if likelihood is None and not _has_likelihood(self.document.plain):
            raise UsageError(
                "expected a likelihood for targets that are whole numbers, which can be classes, counts or values, got none; "
                "write one of\n  layer: {likelihood: Categorical}\n  layer: {likelihood: NegativeBinomial}\n"
                "  layer: {likelihood: Gaussian}"
            )
        return self._built(likelihood or "Gaussian", classes)

    def _built(self, likelihood: str, classes: Mapping[str, Any]) -> Experiment:
        plain = self.document.plain
        if not isinstance(plain, dict):
            shown = repr(plain) if len(repr(plain)) <= 60 else f"{repr(plain)[:60]}..."
            raise UsageError(f"{self.document.name}: expected keys such as data: and layer:, got {shown}")
        filled = _filled(plain, likelihood, classes)
        filled.pop("class", None)
        builder = Builder(replace(self.document, plain=filled))
        with importable(self.document.folder):
            made = builder.made(Experiment, filled, ())
        builder.raise_problems()
        assert made is not WRONG
        return made


def read_draft(path: Path, overrides: Mapping[str, str] | None = None) -> Draft:
    """The draft of a YAML file and the dotted options of a command line."""
    return Draft(read_document(path, overrides))


def read_document(path: Path, overrides: Mapping[str, str] | None = None) -> Document:
    """A YAML file with the dotted options of a command line; if there are data at its path, a UsageError says what to write."""
    if (path / EXPERIMENT).is_file():
        raise UsageError(
            f"expected an experiment, which is a YAML file, got the folder of a run; give {path / EXPERIMENT}"
        )
    if path.is_dir() or path.suffix.lower() in DATA_SUFFIXES:
        line = dump({"data": {"class": type(found := resolve(str(path))).__name__, "path": str(path)}})
        columns = found.file().columns if isinstance(found, Table) else []
        remedy = (
            f"\n  target: COLUMN\nwhere COLUMN is one of {', '.join(map(str, columns))}" if columns else ""
        )
        raise UsageError(
            f"expected an experiment, which is a YAML file, got {path}, which holds data; write a file such as "
            f"{path.stem or 'experiment'}.yaml, and give its name:\n{line.rstrip()}{remedy}"
        )
    return overridden(read_yaml(path), overrides or {})


def _filled(plain: dict[str, Any], likelihood: str, classes: Mapping[str, Any]) -> dict[str, Any]:
    """The plain data with a likelihood, and its classes, where none are given; names of ordered classes have to be given."""
    filled = copy.deepcopy(plain)
    layer = filled.get("layer")
    layer = filled["layer"] = {} if layer is None else layer
    if not isinstance(layer, dict):
        return filled
    given = layer.get("likelihood") or likelihood
    given = {"class": given} if isinstance(given, str) else given
    name = str(given.get("class")) if isinstance(given, dict) else ""
    name = name.removeprefix("likelihoods.")
    if name == "Categorical" or (name == "Ordinal" and "classes" not in classes):
        given = given if "classes" in given else {**classes, **given}
    layer["likelihood"] = given
    return filled


def _has_likelihood(plain: Any) -> bool:
    layer = plain.get("layer") if isinstance(plain, dict) else None
    return isinstance(layer, dict) and bool(layer.get("likelihood"))


def _suited_to(opened: Opened) -> tuple[str | None, Mapping[str, Any]]:
    """The likelihood of targets, and fields for their classes: classes if they have names, none for whole numbers, else values."""
    if opened.targets is None:
        raise UsageError("expected data with targets, got inputs alone; name the targets in data:")
    if opened.classes is not None:
        return "Categorical", {"classes": list(opened.classes)}
    targets = np.asarray(opened.targets)
    if np.issubdtype(targets.dtype, np.integer) and targets.size > 0:
        return None, {"num_classes": int(targets.max()) + 1}
    return "Gaussian", {}
