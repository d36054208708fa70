"""``Stack``: several fits that predict together, each with a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from bll_pyro.checks import fitted
from bll_pyro.comparison.mixture import LabelMixture, ValueMixture, mix_classes
from bll_pyro.comparison.same_rows import check_same_classes
from bll_pyro.features.data import read
from bll_pyro.fitting import Fit
from bll_pyro.prediction import ClassPrediction, LabelPrediction, Prediction, ValuePrediction
from bll_pyro.prediction.integration import Integration
from bll_pyro.scope import own_modes

NEGLIGIBLE = 1e-6  # a fit with a smaller weight is left out


@dataclass(frozen=True, eq=False)
class Stack:
    """A mixture of the predictive distributions of several fits (Yao, Vehtari, Simpson and Gelman 2018).

    Parameters
    ----------
    fits
        The fits by name.
    weights
        Their weights: not negative, with sum 1.
    """

    fits: Mapping[str, Fit]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not isinstance(self.fits, Mapping) or not isinstance(self.weights, Mapping):
            raise TypeError(
                f"Stack: expected fits and weights by name, {{'a': fit, ...}}, got {type(self.fits).__name__} and "
                f"{type(self.weights).__name__}"
            )
        for fit in self.fits.values():
            fitted(fit, "Stack")
        values = list(self.weights.values())
        if set(self.weights) != set(self.fits):
            raise ValueError(
                f"Stack(weights=...): expected weights for the fits {sorted(self.fits)}, got {sorted(self.weights)}"
            )
        if not values or min(values) < 0 or abs(sum(values) - 1) > 1e-4:
            raise ValueError(
                f"Stack(weights=...): expected weights >= 0 that sum to 1, got {dict(self.weights)}"
            )

    @own_modes(gradients=False)
    def predict(
        self,
        inputs: Any,
        *,
        exposure: Any = None,
        integration: Integration | None = None,
        batch_size: int = 256,
    ) -> Prediction:
        """Mixture of the predictions for inputs that every fit takes.

        Of classes a :class:`~bll_pyro.prediction.ClassPrediction` like that of a fit; of labels and numbers a mixture with
        the same attributes. Disagreement between the fits is epistemic uncertainty.
        """
        source = read(inputs, need_targets=False, what="inputs")
        if source.shuffled:
            raise ValueError(
                "Stack.predict: expected rows in a fixed order, since every fit reads them, got a DataLoader that shuffles; pass "
                "its dataset"
            )
        used = {name: fit for name, fit in self.fits.items() if self.weights[name] > NEGLIGIBLE}
        mixed = self.mix(
            {
                name: fit.predict(inputs, exposure=exposure, integration=integration, batch_size=batch_size)
                for name, fit in used.items()
            }
        )
        return replace(mixed, table=source.table)

    @own_modes(gradients=False)
    def mix(self, predictions: Mapping[str, Prediction]) -> Prediction:
        """Mixture of predictions that were made already, by name."""
        names = [name for name in predictions if self.weights[name] > NEGLIGIBLE]
        parts: list[Any] = [predictions[name] for name in names]
        weights = torch.tensor([self.weights[name] for name in names], dtype=torch.float64)
        weights = weights / weights.sum()
        check_same_classes({name: predictions[name].coding for name in names}, "Stack")
        if all(isinstance(part, ClassPrediction) for part in parts):
            return mix_classes(parts, weights)
        if all(isinstance(part, LabelPrediction) for part in parts):
            return LabelMixture.of(parts, weights)
        if all(isinstance(part, ValuePrediction) for part in parts):
            return ValueMixture.of(parts, weights)
        kinds = sorted({type(part).__name__ for part in parts})
        raise ValueError(
            f"Stack: expected predictions of one kind, got {kinds}; stack fits of the same kind of target"
        )
