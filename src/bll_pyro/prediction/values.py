"""Predictions of real values and counts: the mixture itself is kept, and never a Normal fitted to its moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bll_pyro.gaussian import OutputMixture, Outputs
from bll_pyro.likelihoods import Likelihood
from bll_pyro.prediction.base import Prediction, as_targets
from bll_pyro.prediction.integration import QuasiMonteCarlo
from bll_pyro.scope import generator

if TYPE_CHECKING:
    import pandas as pd

NUM_BISECTIONS = 60


@dataclass(frozen=True, eq=False)
class Mixture:
    """Where a predictive comes from: Gaussian (or drawn) outputs, draws of the noise, and the targets' units.

    Components are made on demand, chunk by chunk, so that a prediction of a million rows stays small.
    """

    outputs: Outputs
    likelihood: Likelihood
    noise: dict[str, Tensor]
    center: Tensor
    spread: Tensor
    integration: QuasiMonteCarlo
    exposure: Tensor | None = None

    @property
    def weights(self) -> Tensor | None:
        """Weights ``[S, 1, T]`` of the components; None where all are equal."""
        return self.outputs.weights[:, None] if isinstance(self.outputs, OutputMixture) else None

    def map(self, function: Callable[[dist.Distribution, Tensor], Tensor], values: Tensor) -> Tensor:
        """Apply a function of components ``[S, n, T]`` and standardised values ``[n, T]`` to all rows."""
        results = []
        for index in self.integration.chunks(self.outputs):
            results.append(function(self.likelihood.components(**self.given(index)), values[index]))
        return torch.cat(results)

    def given(self, index: slice) -> dict[str, Any]:
        """What the likelihood is told of some rows: outputs, points to integrate at, noise, exposure."""
        points = {"num_points": self.integration.num_points, "seed": self.integration.seed}
        known = self.noise if self.exposure is None else {**self.noise, "exposure": self.exposure[index]}
        return {"outputs": self.outputs.rows(index), **points, **known}

    def standardized(self, values: Tensor) -> Tensor:
        """Values in the frame of the fit."""
        return (values.to(self.center) - self.center) / self.spread


@dataclass(frozen=True, eq=False)
class ValuePrediction(Prediction):
    """Posterior predictive of real values or counts, an equally weighted mixture for each row.

    Parameters
    ----------
    mean
        Predictive mean ``[N]``, or ``[N, T]`` for several targets, in the user's units.
    total, aleatoric, epistemic
        Variances of the same shape: ``Var(y) = E[Var(y | f)] + Var(E[y | f])``.
    """

    mean: Tensor
    mixture: Mixture

    @property
    def scale(self) -> Tensor:
        """Predictive standard deviation."""
        return self.total.sqrt()

    @torch.no_grad()
    def log_prob(self, targets: Any) -> Tensor:
        """Log density of the mixture, jointly over the targets of a row, nats ``[N]``."""
        mixture = self.mixture
        values = mixture.standardized(mixture.likelihood.check_targets(as_targets(targets, len(self))))
        parts = [
            mixture.likelihood.predictive_log_prob(targets=values[index], **mixture.given(index))
            for index in mixture.integration.chunks(mixture.outputs)
        ]
        return torch.cat(parts) - mixture.spread.log().sum()

    @torch.no_grad()
    def cdf(self, values: Any) -> Tensor:
        """Distribution function of the mixture at values that broadcast against the mean."""
        target = torch.as_tensor(values, dtype=self.mean.dtype, device=self.mean.device).expand_as(self.mean)
        standardized = self.mixture.standardized(target.reshape(len(self), -1))
        weights = self.mixture.weights
        return self.mixture.map(lambda parts, v: average(parts.cdf(v), weights), standardized).view(
            self.mean.shape
        )

    @torch.no_grad()
    def quantile(self, q: float) -> Tensor:
        """Quantile of the mixture, of the shape of the mean, by bisection of its distribution function.

        For counts it is the smallest whole number whose distribution function reaches ``q``.
        """
        if not isinstance(q, (int, float)) or not 0 < q < 1:
            raise ValueError(f"quantile: expected a probability between 0 and 1, got {q!r}")
        start = self.mixture.standardized(self.mean.reshape(len(self), -1))
        weights = self.mixture.weights
        values = self.mixture.map(lambda parts, v: mixture_quantile(parts, q, v, weights), start)
        if self.mixture.likelihood.is_count:
            values = values.round()  # bisection ends at the step
        return (values * self.mixture.spread + self.mixture.center).view(self.mean.shape)

    def interval(self, prob: float = 0.9) -> tuple[Tensor, Tensor]:
        """Equal-tailed interval of the mixture: its lower and upper ends."""
        if not isinstance(prob, (int, float)) or not 0 < prob < 1:
            raise ValueError(f"interval: expected a probability between 0 and 1, got {prob!r}")
        return self.quantile((1 - prob) / 2), self.quantile((1 + prob) / 2)

    @torch.no_grad()
    def sample(self, num_draws: int = 1000, seed: int = 0) -> Tensor:
        """Draws ``[num_draws, N]`` or ``[num_draws, N, T]`` of the targets."""
        random, weights = generator(seed, self.mean.device), self.mixture.weights

        def draw(parts: dist.Distribution, _: Tensor) -> Tensor:
            num_components, num_rows, num_targets = parts.batch_shape
            shape = (num_draws, num_rows, num_targets)
            if weights is None:  # a component belongs to all targets of a row
                chosen = torch.randint(num_components, shape[:2], generator=random, device=self.mean.device)
                chosen = chosen[..., None].expand(shape)
            else:
                flat = torch.multinomial(
                    weights[:, 0].mT, num_draws * num_rows, replacement=True, generator=random
                )
                chosen = flat.mT.reshape(shape)
            picked = select(parts, chosen)
            return seeded_sample(picked, random).transpose(0, 1)

        values = self.mixture.map(draw, self.mixture.outputs.mean).transpose(0, 1)
        return (values * self.mixture.spread + self.mixture.center).reshape(num_draws, *self.mean.shape)

    def to_pandas(self) -> pd.DataFrame:
        """One line for each row: mean, scale and variances (a column for each target)."""
        import pandas as pd

        names = ("mean", "scale", "total", "aleatoric", "epistemic")
        if self.mean.dim() == 1:
            return pd.DataFrame({name: getattr(self, name).cpu().numpy() for name in names})
        num_targets = self.mean.shape[1]
        return pd.DataFrame(
            {f"{n}_{t}": getattr(self, n)[:, t].cpu().numpy() for n in names for t in range(num_targets)}
        )

    @classmethod
    def concat(cls, parts: list[ValuePrediction]) -> ValuePrediction:
        """Join the predictions of several batches."""
        joined = {
            n: torch.cat([getattr(p, n) for p in parts]) for n in ("total", "aleatoric", "epistemic", "mean")
        }
        outputs = type(parts[0].mixture.outputs).concat([p.mixture.outputs for p in parts])
        exposures = [p.mixture.exposure for p in parts if p.mixture.exposure is not None]
        exposure = torch.cat(exposures) if exposures else None
        return cls(**joined, mixture=replace(parts[0].mixture, outputs=outputs, exposure=exposure))


def average(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the components of ``values [S, n, T]``."""
    return values.mean(0) if weights is None else (values * weights).sum(0)


def mixture_quantile(
    parts: dist.Distribution, q: float, start: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Bisect the mixture's distribution function, after widening a bracket around ``start`` ``[n, T]``."""
    spread = (parts.mean - average(parts.mean, weights)).square()
    width = average(parts.variance + spread, weights).sqrt().clamp_min(1e-12).expand_as(start)
    lower, upper = start - width, start + width
    for _ in range(NUM_BISECTIONS):
        too_high, too_low = average(parts.cdf(lower), weights) > q, average(parts.cdf(upper), weights) < q
        if not bool((too_high | too_low).any()):
            break
        width = width * 2
        lower, upper = torch.where(too_high, lower - width, lower), torch.where(too_low, upper + width, upper)
    for _ in range(NUM_BISECTIONS):
        middle = (lower + upper) / 2
        below = average(parts.cdf(middle), weights) < q
        lower, upper = torch.where(below, middle, lower), torch.where(below, upper, middle)
    return (lower + upper) / 2


def select(parts: dist.Distribution, chosen: Tensor) -> dist.Distribution:
    """Pick component ``chosen [num_draws, n, T]`` of a mixture with batch shape ``[S, n, T]``."""
    arguments = {}
    for name in parts.arg_constraints:
        if name not in parts.__dict__:
            continue
        value = getattr(parts, name).expand(parts.batch_shape)
        arguments[name] = value.gather(0, chosen)
    return type(parts)(**arguments, validate_args=False)


def seeded_sample(distribution: dist.Distribution, random: torch.Generator) -> Tensor:
    """Sample with a private generator (torch's distributions only know the global one)."""
    from bll_pyro.scope import isolated

    with isolated(int(torch.randint(2**31, (), generator=random, device=random.device))):
        return distribution.sample()


@torch.no_grad()
def predict_values(mixture: Mixture, single: bool) -> ValuePrediction:
    """Moments of every row; the mixture comes along. ``single``: one target a row, without a target axis."""
    center, spread = mixture.center, mixture.spread
    parts = [
        mixture.likelihood.moments(**mixture.given(index))
        for index in mixture.integration.chunks(mixture.outputs)
    ]
    mean, aleatoric, epistemic = (torch.cat(values) for values in zip(*parts, strict=True))
    mean, aleatoric, epistemic = (
        mean * spread + center,
        aleatoric * spread.square(),
        epistemic * spread.square(),
    )
    if single:
        mean, aleatoric, epistemic = (v.squeeze(-1) for v in (mean, aleatoric, epistemic))
    return ValuePrediction(aleatoric + epistemic, aleatoric, epistemic, mean, mixture)
