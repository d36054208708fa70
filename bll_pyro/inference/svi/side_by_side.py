"""Mean-field fits of all folds at several prior scales side by side, as one batch of tensors.

Cross-validation of a scale takes (folds x scales) fits of a few rows each. One after the other they cost that many fits;
their steps are so small that side by side they cost little more than one. With F fits, masks ``m_f`` of the rows that
fit f has, and scales ``tau_f``, the objective is the sum of their ELBOs,

``sum_f [ sum_n m_fn E_q_f[log p(y_n | f_n)] + E_q_f[log p(W, b | tau_f)] + H[q_f] ]``,

and every fit goes its own way as if it were alone: Adam scales each number by itself. Steps, schedule and start are
those of :class:`bll_pyro.SVI` with ``guides.Diagonal()`` (a point for ``guides.MAP()``), so that what is chosen is best for
that fit as it is, and not for an ideal one. Noise and sampled hyper-parameters stay at those of the fit of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from bll_pyro.gaussian import Delta, Diagonal, OutputGaussian
from bll_pyro.guides import Start
from bll_pyro.inference.prior_scale.folds import NUM_POINTS, Fold, divided
from bll_pyro.inference.prior_scale.held_out import rows_at_once, total_loss
from bll_pyro.inference.row_targets import NoiseValues, expected_log_prob
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.svi.train import Stepper, adam
from bll_pyro.layer import LastLayer
from bll_pyro.observation import stage

SMALLEST_SHARE = 1e-10  # of the largest eigenvalue; less is rounding

StartOf = Callable[[DesignRows, dict[str, Tensor]], Start]
"""Where a fit of some rows at some hyper-parameters starts."""


@dataclass(frozen=True, eq=False)
class FoldFits:
    """Fits of folds of the rows.

    Parameters
    ----------
    layer, rows
        What is fitted, in the coordinates in which weights are independent.
    held_out
        Fold of each row, ``[N]``.
    noise, hyper
        Noise and sampled hyper-parameters.
    start
        Where the fit of a fold starts.
    is_point
        No spread: the posterior mode.
    num_steps, batch_size, learning_rate
        Of the training.
    """

    layer: LastLayer
    rows: DesignRows
    held_out: Tensor
    noise: NoiseValues
    hyper: dict[str, Tensor]
    start: StartOf
    is_point: bool
    num_steps: int
    batch_size: int
    learning_rate: float

    @cached_property
    def folds(self) -> list[Fold]:
        """Rows that are fitted and rows that are predicted, of each fold."""
        return divided(self.rows, self.held_out)

    def losses(self, learned: list[dict[str, Tensor]], generator: torch.Generator) -> list[float]:
        """Negative log predictive density of the rows by the fits without them, nats a row, for each setting."""
        loc, scale = self._fit(learned, generator)
        losses = [self._loss(*one) for one in zip(loc, scale, self.folds * len(learned), strict=True)]
        return torch.tensor(losses, dtype=torch.float64).view(len(learned), -1).sum(-1).tolist()

    def _fit(self, learned: list[dict[str, Tensor]], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Means and standard deviations ``[F, K, P]``: all folds at the first setting, then at the next."""
        starts = [self.start(fold.fitted, each) for each in learned for fold in self.folds]
        masks = self.held_out != torch.arange(len(self.folds), device=self.rows.device)[:, None]
        masks = masks.repeat(len(learned), 1)
        loc = torch.stack([start.loc for start in starts]).requires_grad_()
        first = torch.stack([start.scale for start in starts])
        raw = (first + torch.log(-torch.expm1(-first))).requires_grad_()  # softplus(raw) = first
        shared = {
            name: torch.stack([each[name] for each in learned]).repeat_interleave(len(self.folds), 0)
            for name in learned[0]
        }
        optimizer = adam([loc] if self.is_point else [loc, raw], self.learning_rate)
        num_rows = self.rows.num_rows

        def gradient(batch: Tensor) -> Tensor:
            scale = functional.softplus(raw)
            value = self._log_prior(loc, scale, shared)
            if not self.is_point:
                value = value + scale.log().sum()
            fit = (self._log_likelihood(loc, scale, batch, generator) * masks[:, batch]).sum()
            value = value + fit * (num_rows / len(batch))
            optimizer.zero_grad()
            (-value / num_rows).backward()
            return value.detach()

        stepper, batches = Stepper(optimizer, self.num_steps), self._batches(generator)
        with stage("folds", self.num_steps) as steps:
            for _ in range(self.num_steps):
                value = stepper.step(gradient, next(batches))
                if steps.observed:
                    steps.advance(elbo=value / len(loc))
        return loc.detach(), functional.softplus(raw).detach()

    def _batches(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Row numbers of one batch after the other, without end; a new random order whenever all rows were seen."""
        index = torch.arange(self.rows.num_rows, device=self.rows.device)
        while True:
            order = torch.randperm(len(index), generator=generator, device=generator.device).to(index)
            if self.batch_size >= len(index):
                yield index
            else:
                yield from order.split(self.batch_size)

    def _outputs(self, loc: Tensor, scale: Tensor, design: Tensor) -> OutputGaussian:
        """Outputs of all fits, ``[F n, K]``."""
        num_outputs = loc.shape[1]
        mean = (loc @ design.mT).mT.reshape(-1, num_outputs)
        if self.is_point:
            return OutputGaussian(mean)
        variance = (scale.square() @ design.square().mT).mT.reshape(-1, num_outputs)
        return OutputGaussian(mean, variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt())

    def _log_likelihood(
        self, loc: Tensor, scale: Tensor, batch: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Expected log likelihood ``[F, n]`` of some rows under each fit."""
        design, _ = self.rows[batch]
        targets = self.rows.targets.index_select(0, batch.repeat(len(loc)))
        outputs = self._outputs(loc, scale, design)
        rows = expected_log_prob(self.layer.likelihood, outputs, targets, generator, self.noise)
        return rows.view(len(loc), -1)

    def _log_prior(self, loc: Tensor, scale: Tensor, learned: dict[str, Tensor]) -> Tensor:
        """Expected log prior density, summed over the fits."""

        def one(loc: Tensor, scale: Tensor, learned: dict[str, Tensor]) -> Tensor:
            weights = Delta(loc) if self.is_point else Diagonal(loc, scale)
            return self.layer.expected_log_prior(weights, {**learned, **self.hyper})

        total: Tensor = torch.vmap(one, randomness="different")(loc, scale, learned)
        return total.sum()

    def _loss(self, loc: Tensor, scale: Tensor, fold: Fold) -> float:
        """Negative log predictive density of the rows that one fit has not seen, over the number of all rows."""
        assert fold.held_out is not None

        def outputs(design: Tensor) -> OutputGaussian:
            return self._outputs(loc[None], scale[None], design)

        noise = {name: value[None, None] for name, value in self.noise.items()}
        blocks = fold.held_out.blocks(rows_at_once(NUM_POINTS, len(loc)))
        total = total_loss(self.layer.likelihood, outputs, blocks, noise, NUM_POINTS)
        return total / self.rows.num_rows


def principal(layer: LastLayer, rows: DesignRows) -> tuple[LastLayer, DesignRows]:
    """The same in those principal axes of the rows in which they vary, where the prior is the same in all axes.

    Along the others no row says anything of the weights, which stay at their prior, and no row's output depends on them:
    of N rows with more features N axes are left.
    """
    if not layer.prior.can_rotate:
        return layer, rows
    num_features = rows.frame.num_features
    features = torch.cat([design[:, :num_features] for design, _ in rows.blocks()]).double()
    values, vectors = torch.linalg.eigh(rows.ranks.sums(features.mT @ features)[0])
    kept = vectors[:, values > SMALLEST_SHARE * values[-1]].to(rows.frame.center)
    return layer.rotated(kept), rows.rotated(kept)
