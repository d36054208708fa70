"""Rows with their targets as one fit sees them: what everything takes that judges or calibrates a fit on rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.classes import Classes, Labels
from bll_pyro.features.columns import Columns, Data
from bll_pyro.features.data import check_finite, paired, read
from bll_pyro.inference.training_data import numbered
from bll_pyro.observation import collected

if TYPE_CHECKING:
    from bll_pyro.fitting.result import Fit


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Rows, read once: the features that a fit makes of them, and targets, weights and exposures in their order.

    Parameters
    ----------
    features
        Features ``[N, D]``.
    given
        Targets as they were given, in the shape of the fit's: ``[N]`` or ``[N, T]``; of classes their numbers.
    targets
        Targets as the likelihood uses them.
    columns
        Weights and exposures.
    classes
        What ``given`` are class numbers of; None where they are as they were given.
    """

    features: Float[Tensor, "N D"]
    given: Tensor
    targets: Tensor
    columns: Columns
    classes: Classes | None = None

    @property
    def labels(self) -> Tensor | Labels:
        """The targets for what takes those of the user."""
        return self.given if self.classes is None else Labels(self.given, self.classes)

    @property
    def data(self) -> Data:
        """The same for ``fit.head``."""
        return Data((self.features, self.labels), self.columns.weight, self.columns.exposure)


def labelled_rows(fit: Fit, inputs: Any, targets: Any, what: str, batch_size: int) -> LabelledRows:
    """Rows with targets in any form, read once and checked; see :meth:`bll_pyro.Fit.rows`."""
    likelihood = fit.layer.likelihood
    source = numbered(read(paired(inputs, targets), need_targets=True, what=what), likelihood, what)
    columns = fit.columns(source)
    if fit.backbone is not None and (whole := source.tensors()) is not None:
        likelihood.check_targets(whole[1])  # type: ignore[arg-type]  # before the backbone runs
    parts = collected("features", source.num_rows, fit.feature_batches(source, batch_size))
    given = torch.cat([part for _, part in parts if part is not None])
    check_finite(given, f"targets of {what}")
    checked = likelihood.check_targets(given)
    shape = [len(given), *fit.posterior.target_shape]
    if given.numel() != math.prod(shape):
        raise ValueError(
            f"targets of {what}: expected shape {shape}, got {list(given.shape)}; pass as many targets a row as in training"
        )
    features = torch.cat([part for part, _ in parts])
    return LabelledRows(features, given.reshape(shape), checked, columns, likelihood.coding)
