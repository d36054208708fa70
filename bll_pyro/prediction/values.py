"""Predictions of real values and counts: the mixture itself is kept, not a Normal with its moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import count, share
from bll_pyro.features.arrays import to_tensor
from bll_pyro.gaussian import OutputMixture, Outputs
from bll_pyro.gaussian.points import joined
from bll_pyro.likelihoods import Likelihood
from bll_pyro.prediction.base import Prediction, as_targets
from bll_pyro.prediction.integration import QuasiMonteCarlo
from bll_pyro.prediction.intervals import IntervalKind, check_kind, randomised_pit
from bll_pyro.prediction.mixtures import count_crps, mixture_crps, shortest_interval, shortest_range
from bll_pyro.prediction.quantiles import NARROW, average, mixture_quantile
from bll_pyro.scope import generator, own_modes
from bll_pyro.summary import Summary


@dataclass(frozen=True, eq=False)
class Mixture(Summary):
    """What a predictive is made of: Gaussian (or drawn) outputs, draws of the noise, and the targets' units.

    Components are made on demand, chunk by chunk, so that a prediction of a million rows stays small.
    """

    outputs: Outputs
    likelihood: Likelihood
    noise: dict[str, Tensor]
    center: Float[Tensor, " T"]
    spread: Float[Tensor, " T"]
    integration: QuasiMonteCarlo
    exposure: Float[Tensor, "N #T"] | None = None

    @property
    def weights(self) -> Float[Tensor, "M 1 T"] | None:
        """Weights ``[S, 1, T]`` of the components; None where all are equal."""
        return self.outputs.weights[:, None] if isinstance(self.outputs, OutputMixture) else None

    def map(
        self, function: Callable[[dist.Distribution, Tensor], Tensor], values: Float[Tensor, "N T"]
    ) -> Float[Tensor, "N T ..."]:
        """Apply a function of components ``[S, n, T]`` and standardised values ``[n, T]`` to all rows."""
        results = []
        for index in self.integration.chunks(self.outputs):
            results.append(function(self.likelihood.components(**self.given(index)), values[index]))
        return torch.cat(results)

    def sample(self, num_draws: int, random: torch.Generator) -> Float[Tensor, "S N T"]:
        """Draw standardised targets ``[num_draws, N, T]``: a component, then the targets of a row from it together.

        Of an :class:`OutputMixture` every target has components of its own.
        """
        results = []
        for index in self.integration.chunks(self.outputs):
            given, device = self.given(index), self.outputs.mean.device
            if self.weights is None:
                parts = self.likelihood.joint_components(**given)
                num_components, num_rows = parts.batch_shape
                size = (num_draws, num_rows)
                chosen = torch.randint(num_components, size, generator=random, device=device)
            else:
                parts = self.likelihood.components(**given)
                _, num_rows, num_targets = parts.batch_shape
                share, number = self.weights[:, 0].mT, num_draws * num_rows
                flat = torch.multinomial(share, number, replacement=True, generator=random)
                chosen = flat.mT.reshape(num_draws, num_rows, num_targets)
            drawn = self.likelihood.choose(parts, chosen, **given)
            results.append(seeded_sample(drawn, random))
        return torch.cat(results, 1)

    def given(self, index: slice) -> dict[str, Any]:
        """Arguments of the likelihood for some rows: outputs, points of the integration, noise, exposure."""
        points = {"num_points": self.integration.num_points, "seed": self.integration.seed}
        known = self.noise if self.exposure is None else {**self.noise, "exposure": self.exposure[index]}
        return {"outputs": self.outputs.rows(index), **points, **known}

    def standardized(self, values: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """Values in the frame of the fit, centred in the wider type of values and constants."""
        centred = values.to(self.center.device) - self.center
        return (centred / self.spread).to(self.outputs.mean)


@dataclass(frozen=True, eq=False)
class ValuePrediction(Prediction):
    """Posterior predictive of real values or counts, an equally weighted mixture for each row.

    Parameters
    ----------
    mean
        Predictive mean ``[N]``, or ``[N, T]`` for several targets, in the user's units. It has the floating-point type of the
        training targets, or that of the features if this is wider; so have quantiles, intervals and draws.
    total, aleatoric, epistemic
        Variances of the same shape: ``Var(y) = E[Var(y | f)] + Var(E[y | f])``.
    """

    mean: Float[Tensor, "N ..."]
    mixture: Mixture

    @property
    def scale(self) -> Float[Tensor, "N *T"]:
        """Predictive standard deviation."""
        return self.total.sqrt()

    @own_modes(gradients=False)
    def log_prob(self, targets: Any) -> Float[Tensor, " N"]:
        """Log density of the mixture, jointly over the targets of a row, nats ``[N]``."""
        mixture = self.mixture
        values = mixture.standardized(mixture.likelihood.check_targets(as_targets(targets, self)))
        parts = [
            mixture.likelihood.predictive_log_prob(targets=values[index], **mixture.given(index))
            for index in mixture.integration.chunks(mixture.outputs)
        ]
        return torch.cat(parts) - mixture.spread.log().sum()

    @own_modes(gradients=False)
    def cdf(self, values: Any) -> Float[Tensor, "N *T"]:
        """Distribution function of the mixture at values that broadcast against the mean."""
        given = to_tensor(values, "values")
        if given.shape == self.mean.shape:  # one for each row
            given = as_targets(given, self)
        target = given.to(self.mean).expand_as(self.mean)
        return self._map(lambda parts, v, weights: average(parts.cdf(v), weights), target)

    @own_modes(gradients=False)
    def quantile(self, q: float) -> Float[Tensor, "N *T"]:
        """Quantile of the mixture, of the shape of the mean, from its distribution function.

        For counts it is the smallest whole number whose distribution function reaches ``q``.
        """
        share(q, "q", "quantile")
        return self._quantiles(q)[0]

    @own_modes(gradients=False)
    def interval(
        self, prob: float = 0.9, kind: IntervalKind = "equal_tailed"
    ) -> tuple[Float[Tensor, "N *T"], Float[Tensor, "N *T"]]:
        """Interval of the mixture that holds a target with probability ``prob``: its lower and upper ends.

        Parameters
        ----------
        prob
            Between 0 and 1.
        kind
            ``"equal_tailed"``: between two quantiles, with as much below as above. ``"hdi"``: the shortest one, which for
            one mode is that of highest density; for counts the fewest neighbouring whole numbers.
        """
        share(prob, "prob", "interval")
        if check_kind(kind) == "equal_tailed":
            lower, upper = self._quantiles((1 - prob) / 2, (1 + prob) / 2)
            return lower, upper
        shortest = shortest_range if self.mixture.likelihood.is_count else shortest_interval
        ends = self._map(
            lambda parts, v, weights: torch.stack(shortest(parts, prob, v, weights), -1), self.mean, (2,)
        )
        return self._in_units(ends[..., 0]), self._in_units(ends[..., 1])

    @own_modes(gradients=False)
    def crps(self, targets: Any) -> Float[Tensor, "N *T"]:
        """Continuous ranked probability score of each target, in its units; smaller is better (Gneiting and Raftery 2007)."""
        given = self._targets(targets)
        score = count_crps if self.mixture.likelihood.is_count else mixture_crps
        values = self._map(
            lambda parts, v, weights: score(parts, v, average(parts.mean, weights), weights), given
        )
        return values.to(self.mean) * self.mixture.spread.view(self.mean.shape[1:])

    @own_modes(gradients=False)
    def pit(self, targets: Any, seed: int = 0) -> Float[Tensor, "N *T"]:
        """Probability integral transform of each target, uniform if the prediction is right; see :func:`bll_pyro.metrics.pit`.

        Counts are made uniform by random numbers between ``F(y - 1)`` and ``F(y)`` (Smith 1985), seeded.
        """
        given = self._targets(targets)
        if not self.mixture.likelihood.is_count:
            return self.cdf(given)
        return randomised_pit(self.cdf(given - 1), self.cdf(given), seed)

    def _quantiles(self, *probs: float) -> list[Float[Tensor, "N *T"]]:
        """Several quantiles of the same components, which take long to make where they come from draws."""
        narrow = NARROW if self.mixture.likelihood.is_count else 0.0

        def found(parts: dist.Distribution, start: Tensor, weights: Tensor | None) -> Tensor:
            return torch.stack([mixture_quantile(parts, q, start, weights, narrow) for q in probs], -1)

        ends = self._map(found, self.mean, (len(probs),))
        return [self._in_units(end) for end in ends.unbind(-1)]

    def _targets(self, targets: Any) -> Float[Tensor, "N *T"]:
        """Targets of the shape of the mean."""
        checked = self.mixture.likelihood.check_targets(as_targets(targets, self))
        if checked.numel() != self.mean.numel():
            raise ValueError(
                f"expected targets of shape {list(self.mean.shape)}, got {list(checked.shape)}; pass those of the same rows"
            )
        return checked.to(self.mean).view(self.mean.shape)

    def _map(
        self,
        function: Callable[[dist.Distribution, Tensor, Tensor | None], Tensor],
        values: Float[Tensor, "N *T"],
        shape: tuple[int, ...] = (),
    ) -> Float[Tensor, "N ..."]:
        """Apply a function of components, standardised values and weights; the result has the shape of the mean."""
        weights = self.mixture.weights
        standardized = self.mixture.standardized(values.reshape(len(self), -1))
        result = self.mixture.map(lambda parts, v: function(parts, v, weights), standardized)
        return result.reshape(*self.mean.shape, *shape)

    def _in_units(self, values: Float[Tensor, "N *T"]) -> Float[Tensor, "N *T"]:
        """Standardised values of the shape of the mean, in the user's units; counts are whole."""
        if self.mixture.likelihood.is_count:
            return values.round()  # bisection ends at the step
        shape = self.mean.shape[1:]
        return values.to(self.mean) * self.mixture.spread.view(shape) + self.mixture.center.view(shape)

    @own_modes(gradients=False)
    def sample(self, num_draws: int = 1000, seed: int = 0) -> Float[Tensor, "S N *T"]:
        """Draws ``[num_draws, N]`` or ``[num_draws, N, T]`` of the targets, those of a row drawn together."""
        count(num_draws, "num_draws", "sample")
        values = self.mixture.sample(num_draws, generator(seed, self.mean.device))
        return (values * self.mixture.spread + self.mixture.center).reshape(num_draws, *self.mean.shape)

    def _shown(self, prob: float | None) -> dict[str, Any]:
        return shown_values(self, prob)

    @classmethod
    def concat(cls, parts: list[ValuePrediction]) -> ValuePrediction:
        """Join the predictions of several batches."""
        joined: dict[str, Any] = {
            n: torch.cat([getattr(p, n) for p in parts]) for n in ("total", "aleatoric", "epistemic", "mean")
        }
        outputs = type(parts[0].mixture.outputs).concat([p.mixture.outputs for p in parts])
        exposures = [p.mixture.exposure for p in parts if p.mixture.exposure is not None]
        exposure = torch.cat(exposures) if exposures else None
        return cls(**joined, mixture=replace(parts[0].mixture, outputs=outputs, exposure=exposure))


def shown_values(prediction: Any, prob: float | None) -> dict[str, Any]:
    """Mean, scale and, of a given probability, the interval of a predictive over numbers, by name."""
    ends = {} if prob is None else dict(zip(("lower", "upper"), prediction.interval(prob), strict=True))
    return {"mean": prediction.mean, "scale": prediction.scale, **ends}


def seeded_sample(distribution: dist.Distribution, random: torch.Generator) -> Tensor:
    """Sample with a private generator (torch's distributions only know the global one)."""
    from bll_pyro.scope import isolated

    with isolated(int(torch.randint(2**31, (), generator=random, device=random.device))):
        return distribution.sample()


@own_modes(gradients=False)
def predict_values(mixture: Mixture, single: bool) -> ValuePrediction:
    """Moments of every row, with the mixture. ``single``: one target a row, without a target axis."""
    center, spread = mixture.center, mixture.spread
    parts = [
        mixture.likelihood.moments(**mixture.given(index))
        for index in mixture.integration.chunks(mixture.outputs)
    ]
    mean, aleatoric, epistemic = joined(parts)
    mean, aleatoric, epistemic = (
        mean * spread + center,
        aleatoric * spread.square(),
        epistemic * spread.square(),
    )
    if single:
        mean, aleatoric, epistemic = (v.squeeze(-1) for v in (mean, aleatoric, epistemic))
    return ValuePrediction(aleatoric + epistemic, aleatoric, epistemic, mean, mixture)
