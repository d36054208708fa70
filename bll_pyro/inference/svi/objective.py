"""The ELBO of one model and guide: in output space where the guide is Gaussian, by Pyro's ``Trace_ELBO`` for any other.

In output space every constant is kept, so that it is a lower bound of the log evidence:

========================================== =====================================================
on paper                                   in code
========================================== =====================================================
``sum_n E_q[log p(y_n | f_n, theta)] N/B`` ``expected_log_prob`` at ``weights.outputs(h)``
``E_q[log p(W, b | hyper)]``               ``LastLayer.expected_log_prior`` at the marginals of W
``E_q[log p(theta, hyper)]``               ``GlobalSites.constrain`` (with the Jacobian to u)
``H[q]``                                   ``LatentGaussian.entropy``
========================================== =====================================================

The outputs of the rows are drawn and not the weights (local reparameterisation; Kingma, Salimans and Welling 2015): the
same expectation, with far less noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor

from bll_pyro.frame import Frame
from bll_pyro.gaussian import LatentGaussian
from bll_pyro.guides import GaussianGuide
from bll_pyro.inference.row_targets import Targets, expected_log_prob, row_data, values_of, weight_of
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.svi.guide_draws import draw_guide
from bll_pyro.inference.svi.mean_field import MeanFieldStep
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.model import GlobalSites, Model
from bll_pyro.posterior import DrawsPosterior, GaussianPosterior, Posterior
from bll_pyro.ranks import rows_counted

NUM_GUIDE_DRAWS = 1000  # draws that stand for a guide without a closed form
NUM_DRAWS = 8  # draws of each row for the ELBO that is reported,
MAX_EVALUATED = 2**16  # or fewer, so that rows times draws stay below this number,
MAX_EVALUATED_OUTPUTS = 2**27  # and outputs of rows and draws below this one
MAX_BLOCK = 4096  # most rows evaluated at once: a joint covariance has K P numbers for each output of each
BLOCK_NUMBERS = 2**24  # most outputs evaluated at once

StateCopy = Sequence[Tensor]  # copies of tensors, in the order in which they are put back
Learned = dict[str, Tensor]  # hyper-parameters without a distribution, by name


class Objective:
    """The ELBO of one model and guide: a batch in, nats out.

    Parameters
    ----------
    layer, model, guide
        The declaration in the coordinates of the rows, its Pyro program, and the guide of that.
    num_rows
        Number N of rows that a batch stands for.
    output_space
        Draw outputs and not weights where the guide is Gaussian.
    """

    def __init__(
        self, layer: LastLayer, model: Model, guide: PyroModule, num_rows: int, output_space: bool = True
    ) -> None:
        self.layer, self.model, self.guide, self.num_rows = layer, model, guide, num_rows
        self.closed = isinstance(guide, GaussianGuide) and layer.prior.has_density and output_space
        self.is_point: bool = getattr(guide, "is_point", False)
        self.learns = not self.is_point  # a point learns no scale
        self.learned = {k: v.detach() for k, v in model.learned.items()}
        self.chooses = self.closed and bool(self.learned)
        self._trace_elbo = None if self.closed else Trace_ELBO()(model, guide)
        self._step: MeanFieldStep | None = None
        if self.closed and MeanFieldStep.applies(guide, layer, model.global_sites):
            self._step = MeanFieldStep(guide, layer, model.global_sites, num_rows)
        self.parameters = list(guide.parameters())  # what the optimizer moves

    def hold(self, learned: dict[str, Tensor]) -> None:
        """Keep the learned scales at these values from now on."""
        self.learned, self.learns = learned, False
        if self._step is not None:
            self._step.hold(learned)

    def gradient(self, design: Tensor, targets: Targets, generator: torch.Generator) -> Tensor:
        """Put the gradient of ``-ELBO / N`` into the parameters; return the ELBO estimate in nats."""
        if self._step is not None:
            value = self._step(design, targets, generator)
            self.learned = self._step.learned
            return value
        for parameter in self.parameters:
            parameter.grad = None
        value = self(design, targets, generator)
        (-value / self.num_rows).backward()
        return value.detach()

    def prepare(self, rows: DesignRows) -> None:
        """Run Pyro's guide once, so that its parameters exist before the optimizer asks for them."""
        self._example = self.pyro_arguments(*rows[:2])
        with torch.no_grad():
            self.guide(*self._example)
        # learned scales are parameters on Pyro's path; elsewhere they are solved for
        modules = (self.guide, self.model) if self.learns else (self.guide,)
        self.parameters = [p for module in modules for p in module.parameters()]

    def __call__(
        self,
        design: Tensor,
        targets: Targets,
        generator: torch.Generator | None,
        kl_weight: float = 1.0,
        once: bool = False,
    ) -> Tensor:
        """Estimate of the ELBO in nats from a batch; with another weight of the KL divergence it is no bound.

        ``once``: it is differentiated once, by a plain backward pass, so that gradients in closed form will do where known.

        ``E[log lik] - beta KL = beta (E[log lik] / beta - KL)``: the ELBO of more rows, for all guides alike.
        """
        num_rows = self.num_rows if kl_weight == 1 else self.num_rows / kl_weight
        if self._trace_elbo is not None:
            features, values, _, *columns = self.pyro_arguments(design, targets)
            return -kl_weight * self._trace_elbo(features, values, num_rows, *columns)
        if once and self._step is not None and kl_weight == 1 and design.requires_grad:
            value = self._step.nats(design, targets, generator)
            self.learned = self._step.learned
            return value
        latents = self.guide.latents()
        return kl_weight * elbo(
            self.layer, self.model.global_sites, latents, design, targets, num_rows, self.learn(latents), generator,
            is_point=self.is_point,
        )  # fmt: skip

    @torch.no_grad()
    def learn(self, latents: LatentGaussian) -> Learned:
        """Learned scales at their best values for these weights, in closed form, unless they are held.

        By the envelope theorem, the gradient with them held there is the gradient of the ELBO maximised over them.
        """
        if self.learns:
            num_features = self.model.num_features
            loc, scale = latents.weights.loc[:, :num_features], latents.marginal_scale()[:, :num_features]
            self.learned = self.layer.prior.learned_update(loc, scale)
        return self.learned

    def pyro_arguments(self, design: Tensor, targets: Targets) -> tuple[Any, ...]:
        """What the Pyro program and its guide take for a batch."""
        features, exposure = design[:, : self.model.num_features], row_data(targets).get("exposure")
        plain = features, values_of(targets), self.num_rows
        weight = weight_of(targets)
        # guide functions of the user's take what the model takes: three arguments, and more only where there is more
        return plain if weight is None and exposure is None else (*plain, weight, exposure)

    @torch.no_grad()
    def evaluate(self, rows: DesignRows, seed: int) -> float:
        """ELBO of all rows, averaged over eight draws of each row, or fewer where there are many rows."""
        random = rows.places.generator(seed + 1, rows.device)
        num_outputs = self.model.num_outputs
        most = min(MAX_EVALUATED // rows.num_rows, MAX_EVALUATED_OUTPUTS // (rows.num_rows * num_outputs))
        num_draws, size = max(1, min(NUM_DRAWS, most)), max(64, min(MAX_BLOCK, BLOCK_NUMBERS // num_outputs))
        total = 0.0
        for _ in range(num_draws):
            # each block estimates the whole ELBO from its rows, so blocks are averaged by their size, and ranks alike
            for design, targets, num_rows in rows.blocks_of_all(size, random):
                total += float(self(design, targets, random)) * num_rows / rows.num_rows
        return rows.ranks.total(total) / (rows.ranks.size * num_draws)

    @torch.no_grad()
    def posterior_in(self, frame: Frame, target_shape: TargetShape) -> Posterior:
        """Freeze the guide into a posterior in a frame."""
        learned = (
            self.learned
            if self._trace_elbo is None
            else {k: v.detach() for k, v in self.model.learned.items()}
        )
        common = (self.layer, frame, target_shape, self.model.num_outputs, learned)
        if isinstance(self.guide, GaussianGuide):
            return GaussianPosterior(*common, latents=self.guide.latents().detach())
        draws, log_q = draw_guide(self.guide, self._example, self._free_sizes, NUM_GUIDE_DRAWS)
        if frame.rotation is not None:  # a rotation keeps volumes, and so densities
            draws["weight"] = draws["weight"] @ frame.rotation.mT
        posterior = DrawsPosterior(*common, markov_chain=False, log_q=log_q)
        return replace(posterior, draws=posterior.global_sites.to_user(draws))

    @property
    def _free_sizes(self) -> dict[str, int]:
        """Unconstrained numbers of each latent site."""
        model = self.model
        sizes = dict(zip(model.global_sites.priors, model.global_sites.sizes, strict=True))
        sizes["weight"] = math.prod(model.weight_shape)
        return sizes | ({"bias": model.num_outputs} if self.layer.bias else {})


def elbo(
    layer: LastLayer,
    sites: GlobalSites,
    latents: LatentGaussian,
    design: Tensor,
    targets: Targets,
    num_rows: float,
    learned: dict[str, Tensor],
    generator: torch.Generator | None = None,
    is_point: bool = False,
) -> Tensor:
    """One-draw estimate of the ELBO in nats; the batch ``[B, P]`` stands for ``num_rows`` rows.

    For a point (MAP) this is the log joint density in the sites' own space: no entropy, no Jacobian.
    """
    values: dict[str, Tensor] = {}
    total = latents.globals_loc.new_zeros(())
    weights = latents.weights
    if len(latents.globals_loc):
        draw = torch.randn(
            len(latents.globals_loc),
            dtype=latents.globals_loc.dtype,
            device=latents.globals_loc.device,
            generator=generator,
        )
        u, weights = latents.given(draw)
        values, log_prior_globals, log_jacobian = sites.constrain(u)
        total = log_prior_globals if is_point else log_prior_globals + log_jacobian
    outputs = weights.outputs(design)
    fit = expected_log_prob(layer.likelihood, outputs, targets, generator, sites.noise(values)).sum()
    total = total + fit * (num_rows / rows_counted(len(design), generator))
    total = total + layer.expected_log_prior(weights, {**learned, **sites.hyper(values)}, generator)
    return total if is_point else total + latents.entropy()


def snapshot(parameters: Iterable[Tensor]) -> StateCopy:
    """A copy of the parameters."""
    return [p.detach().clone() for p in parameters]


@torch.no_grad()
def restore(parameters: Iterable[Tensor], state: StateCopy) -> None:
    """Put a copy back."""
    for parameter, value in zip(parameters, state, strict=True):
        parameter.copy_(value)


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all numbers are finite."""
    return all(bool(torch.isfinite(one).all()) for one in tensors if one is not None)
