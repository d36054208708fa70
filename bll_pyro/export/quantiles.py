r"""Quantiles of a mixture for graphs: between bounds that always hold.

A quantile lies within one-sided Chebyshev bounds (Cantelli), for every distribution with mean :math:`\mu` and variance
:math:`\sigma^2`,

.. math::
    \mu - \sigma \sqrt{(1 - q) / q} \;\le\; F^{-1}(q) \;\le\; \mu + \sigma \sqrt{q / (1 - q)}.

The bracket is halved ``NUM_HALVINGS`` times and then cut at the line through its ends. Where F is smooth over it the error is
below rounding, and it never is more than the bracket, :math:`\sigma (\sqrt{q / (1 - q)} + \sqrt{(1 - q) / q}) / 2^{18}`.
Brackets of counts are halved until they hold one whole number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.prediction.values import ValuePrediction

NUM_HALVINGS = 18

Cdf = Callable[[Tensor], Tensor]


def mixture_quantiles(prediction: ValuePrediction, probs: tuple[float, ...]) -> Float[Tensor, "N *T Q"]:
    """Quantiles of every row at Q probabilities, in the user's units; those of counts are whole."""
    mixture, shape = prediction.mixture, prediction.mean.shape
    is_count = mixture.likelihood.is_count
    parts = mixture.likelihood.components(**mixture.given(slice(None)))
    weights = mixture.weights

    def cdf(values: Float[Tensor, "Q N T"]) -> Float[Tensor, "Q N T"]:
        of_parts = parts.cdf(values[:, None])
        return of_parts.mean(1) if weights is None else (of_parts * weights).sum(1)

    # len() of a tensor is not a symbol
    mean, scale = (value.reshape(shape[0], -1) for value in (prediction.mean, prediction.scale))
    mean, scale = mixture.standardized(mean), (scale / mixture.spread).to(mixture.outputs.mean)
    q = mean.new_tensor(probs)[:, None, None]
    # Cantelli's bounds
    lower, upper = mean - scale * ((1 - q) / q).sqrt(), mean + scale * (q / (1 - q)).sqrt()
    found = whole_root(cdf, q, lower, upper) if is_count else root(cdf, q, lower, upper)
    if not is_count:
        found = found.to(prediction.mean) * mixture.spread + mixture.center
    return found.movedim(0, -1).reshape(*shape, len(probs))


def root(
    cdf: Cdf, q: Float[Tensor, "Q 1 1"], lower: Float[Tensor, "Q N T"], upper: Float[Tensor, "Q N T"]
) -> Float[Tensor, "Q N T"]:
    """The real number between two others at which a distribution function is ``q``."""

    def more(step: Tensor, lower: Tensor, width: Tensor) -> Tensor:
        return step < NUM_HALVINGS

    def halved(step: Tensor, lower: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        middle = lower + width / 2
        return step + 1, torch.where(cdf(middle) < q, middle, lower), width / 2

    _, lower, width = repeated(more, halved, (torch.zeros((), dtype=torch.int64), lower, upper - lower))
    low, high = cdf(lower), cdf(lower + width)
    share = (q - low) / (high - low).clamp_min(torch.finfo(low.dtype).tiny)
    return lower + share.clamp(0, 1) * width


def whole_root(
    cdf: Cdf, q: Float[Tensor, "Q 1 1"], lower: Float[Tensor, "Q N T"], upper: Float[Tensor, "Q N T"]
) -> Float[Tensor, "Q N T"]:
    """The least whole number between two others at which a distribution function reaches ``q``."""

    def more(lower: Tensor, upper: Tensor) -> Tensor:
        return (upper - lower).amax() > 1.0

    def halved(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        middle = ((lower + upper) / 2).floor()
        below = cdf(middle) < q
        return torch.where(below, middle, lower), torch.where(below, upper, middle)

    # F is below q at the lower end, and not at the upper one
    return repeated(more, halved, ((lower.floor() - 1).clamp_min(-1.0), upper.ceil()))[1]


def repeated(
    more: Callable[..., Tensor], step: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """``step`` while there is ``more``: a loop in a graph too."""
    if torch.compiler.is_compiling():
        step(*state)  # what cannot be traced says so here, in its own words; it leaves nothing in the graph
        from torch._higher_order_ops.while_loop import while_loop

        found: tuple[Tensor, ...] = while_loop(more, step, tuple(value.clone() for value in state))
        return found
    while bool(more(*state)):
        state = step(*state)
    return state
