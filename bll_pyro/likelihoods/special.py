r"""Distribution functions of counts and of Student's t in plain arithmetic, for graphs: no library has them there.

============================ =============================================================================================
function                     formula
============================ =============================================================================================
``poisson_cdf``              :math:`1 - \int_0^m t^k e^{-t} dt / k!`
``negative_binomial_cdf``    :math:`I_x(r, k + 1)`, by recurrence from :math:`I_x(r + 8, k + 1)`, whose integrand is smooth at 0
``student_t_cdf``            :math:`1/2 + c \int_0^s (1 - u^2)^{\nu / 2 - 1} du` with :math:`s = z / \sqrt{\nu + z^2}`
============================ =============================================================================================

Integrals are Gauss-Legendre sums over the part of the range in which the density is more than rounding. All is computed in double
precision, and then the errors are below 1e-8 for counts, and below 2e-6 for Student's t, where they are only in the far tails of
less than four degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

NODES, WEIGHTS = (values.tolist() for values in np.polynomial.legendre.leggauss(48))
PLACES = [1 + node for node in NODES]
NODES_AT_ONCE = 12
NUM_RAISED = 8  # steps of the recurrence
WIDTH = 9.0  # standard deviations on each side of the mean
MARGIN = 24.0  # what exponential tails take beyond that, in units of their scale
LARGE = 50.0  # degrees of freedom whose tails end
TINY = 1e-300
SHIFT = 10  # arguments of Stirling's series are at least that large


def poisson_cdf(count: Float[Tensor, " *#S"], mean: Float[Tensor, " *#S"]) -> Float[Tensor, " *#S"]:
    """``P(Y <= count)`` for whole counts; 0 below 0."""
    k, mean = count.double().floor().clamp_min(0.0), mean.double()
    norm, spread = log_gamma(k + 1), WIDTH * (k + 1).sqrt()
    lower, upper = (k - spread).clamp_min(0.0), k + spread + MARGIN
    end = torch.minimum(torch.maximum(mean, lower), upper)
    tail = integral(lambda t: (k * t.clamp_min(TINY).log() - t - norm).exp(), lower, end)
    return torch.where(count < 0, 0.0, (1 - tail).clamp(0.0, 1.0))


def negative_binomial_cdf(
    count: Float[Tensor, " *#S"], concentration: Float[Tensor, " *#S"], logits: Float[Tensor, " *#S"]
) -> Float[Tensor, " *#S"]:
    """``P(Y <= count) = I_x(concentration, count + 1)`` with ``x = sigmoid(-logits)``; 0 below 0."""
    b, r, logits = count.double().floor().clamp_min(0.0) + 1, concentration.double(), logits.double()
    x, log_x, log_rest = torch.sigmoid(-logits), -softplus(logits), -softplus(-logits)
    # x^r (1 - x)^b / (r B(r, b)), and then from each term to the next
    term = (r * log_x + b * log_rest + log_gamma(r + b) - log_gamma(r + 1) - log_gamma(b)).exp()
    raised = torch.zeros_like(term)
    for i in range(NUM_RAISED):
        raised = raised + term
        term = term * x * (r + b + i) / (r + 1 + i)
    a = r + NUM_RAISED
    norm = log_gamma(a + b) - log_gamma(a) - log_gamma(b)
    mean = a / (a + b)
    spread = WIDTH * (mean * (1 - mean) / (a + b + 1)).sqrt()
    spread = spread + MARGIN / (a + b)
    lower, upper = (mean - spread).clamp_min(0.0), (mean + spread).clamp_max(1.0)
    end = torch.minimum(torch.maximum(x, lower), upper)
    whole = integral(
        lambda t: ((a - 1) * t.clamp_min(TINY).log() + (b - 1) * (1 - t).clamp_min(TINY).log() + norm).exp(),
        lower,
        end,
    )
    return torch.where(count < 0, 0.0, (raised + whole).clamp(0.0, 1.0))


def student_t_cdf(z: Float[Tensor, " *#S"], freedom: Float[Tensor, " *#S"]) -> Float[Tensor, " *#S"]:
    """``P(T <= z)`` for two degrees of freedom or more."""
    wide, nu = z.double(), freedom.double()
    end = wide / (nu + wide.square()).sqrt()
    norm = log_gamma((nu + 1) / 2) - log_gamma(nu / 2) - 0.5 * math.log(math.pi)
    most = (WIDTH + 1) / (
        nu + (WIDTH + 1) ** 2
    ).sqrt()  # beyond it large degrees of freedom have nothing left
    end = torch.where(nu > LARGE, torch.minimum(torch.maximum(end, -most), most), end)
    half = integral(lambda u: ((nu / 2 - 1) * (1 - u * u).log() + norm).exp(), torch.zeros_like(end), end)
    return (0.5 + half).clamp(0.0, 1.0).to(z)


def integral(
    function: Callable[[Tensor], Tensor], lower: Float[Tensor, " *S"], upper: Float[Tensor, " *S"]
) -> Float[Tensor, " *S"]:
    """Gauss-Legendre sum between limits of equal shape; the function takes points with a first axis more."""
    half = (upper - lower) / 2
    total = torch.zeros_like(half)
    one = half.new_ones((1,) * (half.dim() + 1))
    for first in range(0, len(NODES), NODES_AT_ONCE):
        some = slice(first, first + NODES_AT_ONCE)
        # of single numbers: a loop of a graph takes no tensors that are made of lists
        place, weight = (torch.cat([one * value for value in v[some]]) for v in (PLACES, WEIGHTS))
        total = total + (weight * function(lower + half * place)).sum(0)
    return total * half


def log_gamma(x: Float[Tensor, " *S"]) -> Float[Tensor, " *S"]:
    """Logarithm of the gamma function of positive numbers: Stirling's series, after a shift upwards."""
    product = x
    for i in range(1, SHIFT):
        product = product * (x + i)
    y = x + SHIFT
    series = (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * y**2)) / y**2) / y**2) / y
    return (y - 0.5) * y.log() - y + 0.5 * math.log(2 * math.pi) + series - product.log()


def softplus(x: Float[Tensor, " *S"]) -> Float[Tensor, " *S"]:
    """``log(1 + exp x)``."""
    return x.clamp_min(0.0) + (-x.abs()).exp().log1p()
