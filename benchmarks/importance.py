"""The posterior of a small logistic or softmax regression by importance sampling, without bll_pyro.

The proposal is a multivariate Student-t at the mode with the inverse negative Hessian as its shape matrix. The mean
importance weight is the evidence; the effective number of draws measures the accuracy.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

NUM_NEWTON_STEPS = 50  # most Newton steps to the mode
DEGREES_OF_FREEDOM = 12  # degrees of freedom of the proposal
NUM_RESAMPLED = 4_000  # equally weighted draws that are kept
CHUNK = 20_000  # draws whose density is evaluated at a time


@dataclass(frozen=True)
class Reference:
    """Moments, draws and evidence of a posterior over weights ``[K, D + 1]``, flattened, with the bias last.

    Attributes
    ----------
    mean, covariance : Tensor
        ``[K P]`` and ``[K P, K P]``, float64.
    draws : Tensor
        Equally weighted draws ``[S, K, P]``.
    num_effective : float
        Effective number of independent draws.
    log_evidence : float or None
        Nats.
    """

    mean: Tensor
    covariance: Tensor
    draws: Tensor
    num_effective: float
    log_evidence: float | None = None

    @property
    def scale(self) -> Tensor:
        """Standard deviations ``[K P]``."""
        return self.covariance.diagonal().sqrt()

    @classmethod
    def of_draws(cls, draws: Tensor, num_effective: float) -> "Reference":
        """The moments of equally weighted draws ``[S, K, P]``."""
        flat = draws.double().flatten(1)
        return cls(flat.mean(0), flat.T.cov(), draws, num_effective)


def log_likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    """Sum over rows of ``log p(y | f)`` for outputs ``[..., N, K]``: Bernoulli for one output, else categorical."""
    if outputs.shape[-1] == 1:
        sign = 2.0 * targets.to(outputs) - 1.0
        return functional.logsigmoid(sign * outputs.squeeze(-1)).sum(-1)
    index = targets[:, None].expand(*outputs.shape[:-1], 1)
    return outputs.log_softmax(-1).gather(-1, index).squeeze(-1).sum(-1)


def posterior(
    features: Tensor,
    targets: Tensor,
    num_outputs: int,
    prior_scale: float,
    bias_scale: float,
    num_draws: int = 200_000,
    seed: int = 0,
) -> Reference:
    """Sample the posterior of weights ``N(0, prior_scale^2)`` and biases ``N(0, bias_scale^2)``."""
    design = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], -1)
    num_columns = design.shape[1]
    scales = torch.full((num_outputs, num_columns), prior_scale, dtype=torch.float64)
    scales[:, -1] = bias_scale

    def log_joint(flat: Tensor) -> Tensor:
        weights = flat.view(*flat.shape[:-1], num_outputs, num_columns)
        prior = torch.distributions.Normal(0.0, scales).log_prob(weights).sum((-2, -1))
        return log_likelihood(design @ weights.mT, targets) + prior

    mode = torch.zeros(num_outputs * num_columns, dtype=torch.float64)
    for _ in range(NUM_NEWTON_STEPS):
        gradient = torch.func.grad(log_joint)(mode)
        hessian = torch.func.hessian(log_joint)(mode)
        step, size = torch.linalg.solve(-hessian, gradient), 1.0
        while size > 1e-6 and log_joint(mode + size * step) < log_joint(mode):
            size /= 2
        mode = mode + size * step
        if float(gradient.abs().max()) < 1e-9:
            break
    shape = torch.linalg.inv(-hessian)
    proposal = stats.multivariate_t(
        mode.numpy(), ((shape + shape.T) / 2).numpy(), df=DEGREES_OF_FREEDOM, seed=seed
    )
    points = torch.from_numpy(np.atleast_2d(proposal.rvs(num_draws)))
    log_weights = torch.cat([log_joint(part) for part in points.split(CHUNK)])
    log_weights -= torch.from_numpy(proposal.logpdf(points.numpy()))
    log_evidence = float(log_weights.logsumexp(0)) - math.log(num_draws)
    weights = log_weights.softmax(0)
    mean = weights @ points
    centred = points - mean
    chosen = torch.multinomial(
        weights, NUM_RESAMPLED, replacement=True, generator=torch.Generator().manual_seed(seed)
    )
    return Reference(
        mean,
        (centred * weights[:, None]).T @ centred,
        points[chosen].view(-1, num_outputs, num_columns),
        1.0 / float(weights.square().sum()),
        log_evidence,
    )
