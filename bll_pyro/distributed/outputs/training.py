"""SVI of a softmax over classes that are spread over ranks: each rank has all rows, and the weights of its classes.

The model is that of ``LastLayer(Categorical(C), Normal(prior_scale))`` with standardised features, and the guide that of
``guides.Diagonal()`` or ``guides.MAP()``. What couples classes is the normaliser of the softmax:

======================================================== ================================================
on paper                                                 ranks meet for
======================================================== ================================================
``log sum_c exp f_nc``, the largest ``f_nc`` first       ``largest``, then ``sums`` of exponentials
``f_{n y_n}``, which one rank has                        the same ``sums``
``tau^2 = mean(m^2 + s^2)`` of a learned prior scale     the same ``sums``
======================================================== ================================================

Gradients are in closed form, those of ``svi/mean_field.py``, and stay on the rank. Outputs are computed by blocks of classes. Each
block draws from a generator of its own, so that the fit does not depend on the number of ranks, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bll_pyro.checks import count, positive, positive_or_none
from bll_pyro.distributed.outputs.layer import BLOCK, OutputShards, classes_of_rank, lowered_by
from bll_pyro.features.data import read
from bll_pyro.features.identity import rows_identity
from bll_pyro.gaussian.weights import LOG_TWO_PI
from bll_pyro.guides import MAP, Diagonal, Guide
from bll_pyro.inference.rows import FeatureRows
from bll_pyro.inference.standardization import BATCH_SIZE, common_scale, evenly_spaced, weighted_moments
from bll_pyro.inference.svi.svi import OUTPUT_SCALE, SVI
from bll_pyro.inference.svi.train import Stepper, adam
from bll_pyro.inference.training_data import numbered
from bll_pyro.likelihoods import Categorical
from bll_pyro.observation import stage
from bll_pyro.ranks import ALONE, Processes, agree
from bll_pyro.scope import generator, isolated

PRIOR_COUNT = 0.5  # rows that each class has more in the start of its bias


def fit_outputs(
    data: Any,
    num_classes: int,
    ranks: Processes = ALONE,
    *,
    guide: Guide | None = None,
    prior_scale: float | None = None,
    bias_scale: float = 10.0,
    num_epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float | None = None,
    seed: int = 0,
) -> OutputShards:
    """Fit a last layer over so many classes that their weights do not fit into one process.

    Parameters
    ----------
    data
        Features ``[N, D]`` and class numbers ``[N]`` from 0 to C - 1, as a pair or a ``bll.Features`` store: all rows on each rank.
    num_classes
        C.
    ranks
        The processes that share the classes, :class:`bll_pyro.distributed.Ranks`; each has about ``C / size`` of them.
    guide
        ``guides.Diagonal()`` (default) or ``guides.MAP()``.
    prior_scale
        Standard deviation of the prior of the weights; None (default) takes the one of the highest ELBO, which a point has not.
    bias_scale
        The same of the bias.
    num_epochs, batch_size
        Passes over the rows (None: about 1,500 steps, and at least 6 passes), and rows a step.
    learning_rate
        Step of Adam at the start; None takes that of :class:`bll_pyro.SVI`.
    seed
        Of the order of the rows and of the draws.

    Raises
    ------
    ValueError
        If ranks have different rows or arguments, or there are fewer than 1,024 classes for a rank.
    """
    if not isinstance(guide, (Diagonal, MAP, type(None))):
        raise TypeError(f"fit_outputs(guide=...): expected guides.Diagonal() or guides.MAP(), got {guide!r}")
    is_point = isinstance(guide, MAP)
    count(num_classes, "num_classes", "fit_outputs", 2)
    count(batch_size, "batch_size", "fit_outputs")
    count(1 if num_epochs is None else num_epochs, "num_epochs", "fit_outputs")
    positive(bias_scale, "bias_scale", "fit_outputs")
    for name, number in (("prior_scale", prior_scale), ("learning_rate", learning_rate)):
        positive_or_none(number, name, "fit_outputs")
    if is_point and prior_scale is None:
        raise ValueError(
            "fit_outputs(guide=guides.MAP()): expected a prior_scale, which a point cannot learn, got None"
        )
    with ranks.together(), isolated(seed, torch.float32):
        arguments = (
            num_classes,
            is_point,
            prior_scale,
            bias_scale,
            num_epochs,
            batch_size,
            learning_rate,
            seed,
        )
        features, labels, identity = rows_of(data, num_classes)
        agree(ranks, {"arguments of fit_outputs": arguments, "rows of fit_outputs": identity}, {})
        training = ShardTraining(
            features, labels, num_classes, ranks, is_point, prior_scale, bias_scale, seed
        )
        rate = learning_rate or SVI().rate(features.shape[1])
        return training.run(num_epochs, batch_size, rate, generator(seed))


def rows_of(data: Any, num_classes: int) -> tuple[FeatureRows, Tensor, Any]:
    """Features, class numbers and the identity of rows in any form; ValueError for others."""
    likelihood = Categorical(num_classes)
    source = numbered(read(data, need_targets=True, what="data", min_rows=2), likelihood, "data")
    whole = source.tensors()
    features: Any = source.stored if source.stored is not None else None if whole is None else whole[0]
    labels = source.all_targets()
    if features is None or labels is None or len(features.shape) != 2:
        raise ValueError(
            "fit_outputs: expected features [N, D] with labels in memory or in a bll.Features store, got others; extract them first"
        )
    return features, likelihood.check_targets(labels), rows_identity(source)


class ShardTraining:
    """The state of a fit: means, and standard deviations before their softplus, of the own classes ``[k, P]``."""

    def __init__(
        self,
        features: FeatureRows,
        labels: Tensor,
        num_classes: int,
        ranks: Processes,
        is_point: bool,
        prior_scale: float | None,
        bias_scale: float,
        seed: int,
    ) -> None:
        self.features, self.labels, self.ranks, self.num_classes = features, labels, ranks, num_classes
        self.num_rows, num_features = features.shape
        parts = evenly_spaced(self.num_rows, self.num_rows, BATCH_SIZE)
        moments = weighted_moments((features[part] for part in parts), None)
        self.center, self.feature_scale = moments.mean.float(), float(common_scale(moments)[0])
        own = classes_of_rank(num_classes, ranks)
        self.first, number = own.start, own.stop - own.start
        self.learns, self.tau, self.bias_scale = prior_scale is None, prior_scale or 1.0, bias_scale
        if self.learns:  # as in SVI
            self.tau = min(1.0, OUTPUT_SCALE / num_features**0.5)
        frequency = (torch.bincount(labels, minlength=num_classes)[own] + PRIOR_COUNT).float()
        frequency /= self.num_rows + PRIOR_COUNT * num_classes
        self.loc = torch.zeros(number, num_features + 1)
        total, number_of_all = ranks.sums(frequency.log().sum(), torch.tensor(float(number)))
        self.loc[:, -1] = frequency.log() - total / number_of_all  # the prior is centred at 0
        self.loc.grad = torch.zeros_like(self.loc)
        self.raw: Tensor | None = None
        if not is_point:
            # precision of a softmax at these biases, for features of mean square 1
            data_precision = self.num_rows * frequency * (1 - frequency)
            scale = (self.precision() + data_precision[:, None]).rsqrt()
            self.raw = scale + torch.log(-torch.expm1(-scale))
            self.raw.grad = torch.zeros_like(self.raw)
        blocks = range(self.first // BLOCK, -(-own.stop // BLOCK))
        self.random = [generator((seed + 1) * 1_000_003 + block) for block in blocks]

    def precision(self) -> Tensor:
        """Precision of the prior, by column ``[P]``."""
        found = torch.full((self.loc.shape[1],), self.tau**-2)
        found[-1] = self.bias_scale**-2
        return found

    def blocks(self) -> Iterator[tuple[slice, torch.Generator]]:
        """Blocks of the own classes, with their generators."""
        for index, random in enumerate(self.random):
            yield slice(index * BLOCK, min((index + 1) * BLOCK, len(self.loc))), random

    def run(
        self, num_epochs: int | None, batch_size: int, rate: float, order: torch.Generator
    ) -> OutputShards:
        """Take all steps."""
        num_batches = -(-self.num_rows // batch_size)
        num_epochs = num_epochs or max(6, -(-1500 // num_batches))
        num_steps = num_epochs * num_batches
        parameters = [self.loc] if self.raw is None else [self.loc, self.raw]
        stepper, elbo = Stepper(adam(parameters, rate), num_steps), []
        with stage("outputs", num_steps, num_rows=self.num_rows) as steps, torch.no_grad():
            for _ in range(num_epochs):
                for batch in torch.randperm(self.num_rows, generator=order).split(batch_size):
                    shards = self.shards(torch.zeros(0))
                    elbo.append(
                        stepper.step(self.gradient, shards.design(self.features[batch]), self.labels[batch])
                    )
                    steps.advance(elbo=elbo[-1])
        found = torch.stack(elbo)
        if not bool(found.isfinite().all()):
            raise ValueError(
                "fit_outputs: expected a finite ELBO, got infinity or NaN; use a smaller learning_rate or prior_scale"
            )
        return self.shards(found)

    def shards(self, elbo: Tensor) -> OutputShards:
        """The layer at the present weights."""
        scale = None if self.raw is None else functional.softplus(self.raw) if len(elbo) else self.raw
        common = (self.first, self.num_classes, self.center, self.feature_scale, self.tau, elbo, self.ranks)
        return OutputShards(self.loc, scale, *common)

    def gradient(self, design: Tensor, labels: Tensor) -> Tensor:
        """Put the gradients of ``-ELBO / N`` of a batch ``[B, P]`` into the weights; return the ELBO estimate, nats."""
        squares = design.square()
        found = [self.drawn(block, random, design, squares) for block, random in self.blocks()]
        own_largest = torch.stack([outputs.amax(-1) for outputs, _ in found]).amax(0)
        place, target = labels - self.first, torch.zeros_like(own_largest)
        for (block, _), (outputs, _) in zip(self.blocks(), found, strict=True):
            rows = ((place >= block.start) & (place < block.stop)).nonzero().squeeze(1)
            target[:, rows] = outputs[:, rows, place[rows] - block.start]
        largest = self.ranks.largest(own_largest)
        parts = [lowered_by(outputs, own_largest).exp_().sum(-1) for outputs, _ in found]
        own_total = torch.stack(parts).sum(0)
        own_total *= (own_largest - largest).exp()
        total, target, moments = self.ranks.sums(own_total, target, self.moments())
        if self.learns:
            self.tau = math.sqrt(max(float(moments[0]) / (self.num_classes * (design.shape[1] - 1)), 1e-30))
        normaliser, precision = largest + total.log(), self.precision() / self.num_rows
        for (block, _), (outputs, ratio) in zip(self.blocks(), found, strict=True):
            probs = outputs.mul_((own_largest - normaliser).exp_()[..., None])
            of_mean = probs.sum(0)
            rows = ((place >= block.start) & (place < block.stop)).nonzero().squeeze(1)
            of_mean[rows, place[rows] - block.start] -= len(probs)
            of_variance = None if ratio is None else ratio.mul_(probs[0] - probs[1])
            self.put(block, of_mean, of_variance, design, squares, precision)
        fit = (target - normaliser).mean(0).sum() * (self.num_rows / len(design))
        return fit + self.without_rows(moments)

    def drawn(
        self, block: slice, random: torch.Generator, design: Tensor, squares: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs ``[2, B, b]`` of a block at a pair of draws, and the draw over its deviation; of a point ``[1, B, b]``."""
        mean = design @ self.loc[block].mT
        if self.raw is None:
            return mean[None], None
        spread = squares @ functional.softplus(self.raw[block]).square_().mT
        spread = spread.clamp_min_(torch.finfo(spread.dtype).tiny).sqrt_()
        noise = torch.randn(mean.shape, generator=random)
        deviation = spread * noise
        return torch.stack([mean + deviation, mean - deviation]), noise.div_(spread)

    def moments(self) -> Tensor:
        """Second moments of the own weights and biases, and the log of all standard deviations, each summed, ``[3]``."""
        found = torch.zeros(3, dtype=torch.float64)
        for block, _ in self.blocks():
            square = self.loc[block].square()
            if self.raw is not None:
                scale = functional.softplus(self.raw[block])
                found[2] += scale.log().sum()
                square += scale.square_()
            found[0] += square[:, :-1].sum()
            found[1] += square[:, -1].sum()
        return found

    def without_rows(self, moments: Tensor) -> Tensor:
        """Expected log prior and entropy, nats."""
        num_weights = self.num_classes * (self.loc.shape[1] - 1)
        total = -0.5 * (moments[0] / self.tau**2 + moments[1] / self.bias_scale**2)
        constant = num_weights * math.log(self.tau) + self.num_classes * math.log(self.bias_scale)
        total = total - constant - 0.5 * LOG_TWO_PI * (num_weights + self.num_classes)
        if self.raw is None:
            return total.float()
        return (total + moments[2] + 0.5 * (1 + LOG_TWO_PI) * (num_weights + self.num_classes)).float()

    def put(
        self,
        block: slice,
        of_mean: Tensor,
        of_variance: Tensor | None,
        design: Tensor,
        squares: Tensor,
        precision: Tensor,
    ) -> None:
        """Put the gradients of the weights of a block from those of its outputs ``[B, b]``, before the division by B."""
        assert self.loc.grad is not None
        share = 1 / (len(design) * (1 if of_variance is None else 2))
        gradient = self.loc.grad[block]
        torch.mm(of_mean.mul_(share).mT, design, out=gradient)
        gradient.addcmul_(self.loc[block], precision)
        if of_variance is None or self.raw is None or self.raw.grad is None:
            return
        of_raw = self.raw.grad[block]
        torch.mm(of_variance.mul_(share).mT, squares, out=of_raw)
        scale = functional.softplus(self.raw[block])
        of_raw.add_(precision).mul_(scale).sub_(scale.reciprocal_(), alpha=1 / self.num_rows)
        torch.ops.aten.softplus_backward(of_raw, self.raw[block], 1.0, 20.0, grad_input=of_raw)
