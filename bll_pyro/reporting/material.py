"""``Material``: what a report is made from, each part computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.classes import Labels
from bll_pyro.diagnostics import Diagnosis, diagnose
from bll_pyro.evaluation import Evaluation, Scored, evaluate, score_rows_of
from bll_pyro.features.data import read
from bll_pyro.features.sources import Source
from bll_pyro.fitting import Fit
from bll_pyro.fitting.labelled import LabelledRows
from bll_pyro.ood import Detector
from bll_pyro.ood.learning import least_rows
from bll_pyro.prediction import ClassPrediction, LabelPrediction, Prediction
from bll_pyro.prediction.verdict import Verdict
from bll_pyro.reporting.largest_weights import LargestWeights, largest_weights
from bll_pyro.scope import generator

if TYPE_CHECKING:
    from bll_pyro.comparison.ranking import Comparison

MOST_DRAWN = 10_000  # rows in a picture that shows each of them

MOST_WEIGHTS = 20  # in the picture of the weights


@dataclass(frozen=True, eq=False)
class Material:
    """A fit, the rows that it is judged on, and what else there is.

    Parameters
    ----------
    fit
        The fit, for inputs.
    source
        The rows that it is judged on, read once.
    rows
        The same with targets, as features; None where there are no targets.
    features
        Their features ``[N, D]``.
    train, held_out, unknown
        Training rows, rows for recalibration and detector, features of rows from elsewhere; None where they are not given.
    plain
        A plain head to compare with; None fits one to ``train``.
    comparison
        Result of :func:`bll_pyro.compare`.
    items
        What to show of single rows; None shows their inputs.
    class_names, row_names
        What to call classes and rows; None for their labels and numbers.
    seed
        Of the choice of rows, and of draws.
    """

    fit: Fit
    source: Source
    rows: LabelledRows | None
    features: Tensor
    train: LabelledRows | None = None
    held_out: LabelledRows | None = None
    unknown: Tensor | None = None
    plain: Fit | None = None
    comparison: Comparison | None = None
    items: Any = None
    class_names: Sequence[Any] | None = None
    row_names: Sequence[Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("items", "row_names"):
            value = getattr(self, name)
            if value is not None and len(value) != self.num_rows:
                raise ValueError(
                    f"report({name}=...): expected one for each of the {self.num_rows} rows, got {len(value)}"
                )
        number = getattr(self.fit.layer.likelihood, "num_classes", None)
        if self.class_names is not None and number is not None and len(self.class_names) != number:
            raise ValueError(
                f"report(class_names=...): expected one for each of the {number} classes, got {len(self.class_names)}"
            )

    @property
    def num_rows(self) -> int:
        """Number of rows that the fit is judged on."""
        return len(self.features)

    @cached_property
    def head(self) -> Fit:
        """The fit for features."""
        return self.fit.head

    @cached_property
    def prediction(self) -> Prediction:
        """Prediction of all rows, at their exposures."""
        return self.predicted(slice(None))

    def predicted(self, index: slice | Tensor) -> Prediction:
        """Prediction of some rows, at their exposures."""
        exposure = None if self.rows is None else self.rows.columns[index].exposure
        return self.head.predict(self.features[index], exposure=exposure)

    @property
    def targets(self) -> Tensor:
        """Targets of all rows, in the shape of the fit's."""
        assert self.rows is not None
        return self.rows.given

    @property
    def labels_of_sample(self) -> Tensor | Labels:
        """Targets of the rows of ``sample``, for what takes those of the user."""
        assert self.rows is not None
        chosen = self.targets[self.sample.to(self.targets.device)]
        return chosen if self.rows.classes is None else Labels(chosen, self.rows.classes)

    @property
    def decided(self) -> Tensor:
        """Number of the most probable class, or 0 or 1 for each label, of all rows."""
        assert isinstance(self.prediction, ClassPrediction | LabelPrediction)
        probs = self.prediction.probs
        return probs.argmax(-1) if isinstance(self.prediction, ClassPrediction) else (probs > 0.5).long()

    @property
    def weight(self) -> Tensor | None:
        """Weights of the rows."""
        return None if self.rows is None else self.rows.columns.weight

    @cached_property
    def sample(self) -> Tensor:
        """Numbers of the rows in pictures that show single rows: all, or ``MOST_DRAWN`` drawn at random, in order."""
        if self.num_rows <= MOST_DRAWN:
            return torch.arange(self.num_rows)
        order = torch.randperm(self.num_rows, generator=generator(self.seed))
        return order[:MOST_DRAWN].sort().values

    @cached_property
    def sampled(self) -> Prediction:
        """Prediction of the rows of ``sample``."""
        return self.prediction if self.num_rows <= MOST_DRAWN else self.predicted(self.sample)

    @property
    def of_sample(self) -> str:
        """A remark on pictures that do not show all rows; empty where they do."""
        return (
            f" Of {self.num_rows:,} rows {MOST_DRAWN:,} are shown, drawn at random."
            if self.num_rows > MOST_DRAWN
            else ""
        )

    @cached_property
    def scored(self) -> Scored:
        """Scores of the fit with their standard errors."""
        assert self.rows is not None
        return score_rows_of(self.prediction, self.rows)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """The fit beside the plain head, where there is what that takes."""
        if self.rows is None or self.held_out is None or (self.train is None and self.plain is None):
            return None
        given: dict[str, Any] = (
            {"train": self.train.data} if self.plain is None and self.train is not None else {}
        )
        plain = None if self.plain is None else self.plain.head
        return evaluate(
            self.head, self.rows.data, held_out=self.held_out.data, plain=plain, unknown=self.unknown, **given
        )

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        """The checks of the fit, where its training rows are given."""
        if self.train is None or len(self.train.targets) < 2:
            return None
        seen = True if self.fit.inference.trains_backbone else None
        return diagnose(self.head, self.train.data, seen_by_backbone=seen, seed=self.seed)

    @cached_property
    def detector(self) -> Detector | None:
        """The detector of the fit, or the default one from the held-out rows; None where there are too few of them."""
        if self.fit.detector is not None:
            return self.fit.detector
        if self.held_out is None:
            return None
        detector, learned_from = Detector(), None
        if self.train is not None:
            learned_from = (self.train.features, self.train.labels)
        if len(self.held_out.features) < least_rows(detector.alpha, 1 if learned_from else 2):
            return None
        return detector.calibrate(self.head, self.held_out.features, train=learned_from)

    @cached_property
    def verdict(self) -> Verdict | None:
        """What the detector says of the rows."""
        if self.detector is None:
            return None
        return self.prediction.ood if self.prediction.ood is not None else self.detector.detect(self.features)

    @cached_property
    def weights(self) -> LargestWeights:
        """The largest weights of the fit."""
        return largest_weights(self.fit.posterior, MOST_WEIGHTS, self.seed)

    @property
    def classes(self) -> list[str]:
        """Names of the classes of the fit, in the order of their numbers; of targets and labels where there are several."""
        prediction = self.prediction
        if isinstance(prediction, ClassPrediction):
            number = prediction.probs.shape[1]
            known = self.fit.classes if self.class_names is None else self.class_names
            return [f"class {k}" for k in range(number)] if known is None else [str(label) for label in known]
        number = self.fit.posterior.target_shape[0] if self.fit.posterior.target_shape else 1
        what = "label" if isinstance(prediction, LabelPrediction) else "target"
        return [f"{what} {t}" for t in range(number)] if number > 1 else [what]

    @property
    def feature_names(self) -> list[str]:
        """Names of the features."""
        known = self.head.feature_names
        number = self.features.shape[1]
        return (
            [f"feature {d}" for d in range(number)]
            if known is None or len(known) != number
            else [str(k) for k in known]
        )

    def by_row(self, name: str) -> np.ndarray:
        """An uncertainty of the prediction ``[N]``, summed over labels or targets."""
        values = getattr(self.prediction, name).double().cpu().numpy()
        return np.asarray(values.reshape(len(values), -1).sum(1))

    @property
    def has_entropies(self) -> bool:
        """Whether uncertainties are entropies in nats, and not variances."""
        return isinstance(self.prediction, ClassPrediction | LabelPrediction)


def gather(fit: Fit, data: Any, train: Any, held_out: Any, unknown: Any, **others: Any) -> Material:
    """Read all rows once, through the backbone where there is one."""
    source = read(data, need_targets=False, what="data")
    if source.shuffled:
        raise ValueError(
            "report(data): expected rows in a fixed order, since single rows are shown, got a DataLoader that shuffles; "
            "pass its dataset"
        )
    rows = fit.rows(source) if source.has_targets else None
    features = fit.features(source).tensor() if rows is None else rows.features
    return Material(
        fit,
        source,
        rows,
        features,
        None if train is None else fit.rows(train, what="train"),
        None if held_out is None else fit.rows(held_out, what="held_out"),
        None if unknown is None else fit.features(unknown).tensor(),
        **others,
    )
