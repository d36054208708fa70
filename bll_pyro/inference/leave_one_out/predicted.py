"""The density that a prediction gives to the targets of rows, with or without a recalibration.

A temperature T is of the probabilities after every average, ``p(c)^(1/T) / sum_j p(j)^(1/T)``, so what is averaged over draws of
the noise is all classes of a row. A noise factor is of each density, so it is enough to average that of the target.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.gaussian import Outputs
from bll_pyro.inference.row_targets import NoiseValues, Targets, row_data, values_of
from bll_pyro.likelihoods import Likelihood


@dataclass(frozen=True, eq=False)
class PredictedDensity:
    """``log p(y | f)`` of rows, averaged over their outputs.

    Parameters
    ----------
    likelihood
        The likelihood of the model.
    temperature, noise_factor
        Of a recalibration; 1 where there is none.
    """

    likelihood: Likelihood
    temperature: float = 1.0
    noise_factor: float = 1.0

    @property
    def is_of_model(self) -> bool:
        """Whether it is the density of the model itself."""
        return self.temperature == 1.0 and self.noise_factor == 1.0

    def log_prob(
        self, outputs: Outputs, targets: Targets, noise: NoiseValues, num_points: int
    ) -> Float[Tensor, " N"]:
        """Log density ``[N]``, over draws of outputs and noise ``[S, 1, ...]`` that belong together."""
        return self._of_target(self._averaged(outputs, targets, noise, num_points), targets)

    def weighted_log_prob(
        self,
        parts: Iterable[tuple[Outputs, NoiseValues]],
        log_weights: Float[Tensor, "M N"],
        targets: Targets,
        num_points: int,
    ) -> Float[Tensor, " N"]:
        """The same over M parts ``(outputs, noise)``, of which each row has weights of its own ``[M, N]``."""
        total: Tensor | None = None
        for (outputs, noise), log_weight in zip(parts, log_weights, strict=True):
            values = self._averaged(outputs, targets, noise, num_points)
            values = values + log_weight.view(-1, *[1] * (values.dim() - 1))
            total = values if total is None else torch.logaddexp(total, values)
        assert total is not None
        return self._of_target(total, targets)

    def _averaged(
        self, outputs: Outputs, targets: Targets, noise: NoiseValues, num_points: int
    ) -> Float[Tensor, "N ..."]:
        """Logarithm of what is averaged: the density ``[N]``, or probabilities ``[N, C]`` or ``[N, T, 2]``."""
        likelihood = self.likelihood
        if self.temperature != 1.0:
            if likelihood.is_discrete:
                probs = likelihood.class_expectations(outputs, [slice(None)], num_points, 0, **noise)[0]
            else:
                one = likelihood.label_probs(outputs.draws(num_points), **noise).mean(0)
                probs = torch.stack([1 - one, one], -1)
            return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
        if self.noise_factor != 1.0:
            likelihood, outputs, noise = likelihood.with_noise_times(self.noise_factor, outputs, noise)
        return likelihood.predictive_log_prob(
            outputs, values_of(targets), num_points, 0, **noise, **row_data(targets)
        )

    def _of_target(self, averaged: Float[Tensor, "N ..."], targets: Targets) -> Float[Tensor, " N"]:
        """Log density of the targets ``[N]``; labels of a row count as independent, as in the prediction."""
        if self.temperature == 1.0:
            return averaged
        log_probs = (averaged / self.temperature).log_softmax(-1)
        labels = values_of(targets).long().view(log_probs.shape[:-1])
        return log_probs.gather(-1, labels[..., None]).flatten(1).sum(-1)
