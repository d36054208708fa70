"""The ELBO in output space: every constant kept, so that it is a lower bound of the log evidence.

========================================== =====================================================
on paper                                   in code
========================================== =====================================================
``sum_n E_q[log p(y_n | f_n, theta)] N/B`` ``expected_log_prob`` at ``weights.outputs(h)``
``E_q[log p(W | hyper)]``                  ``prior.expected_log_prob`` at the marginals of W
``E_q[log p(b)]``                          ``bias_log_prob``
``E_q[log p(theta, hyper)]``               ``GlobalSites.constrain`` (with the Jacobian to u)
``H[q]``                                   ``LatentGaussian.entropy``
========================================== =====================================================

The rows' outputs are drawn and not the weights (local reparameterisation): the same expectation, far less noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bll_pyro.gaussian import LatentGaussian, WeightGaussian
from bll_pyro.inference.expected_prior import log_prior
from bll_pyro.inference.targets import Targets, expected_log_prob
from bll_pyro.layer import LastLayer
from bll_pyro.model import GlobalSites


def log_likelihood(
    layer: LastLayer,
    weights: WeightGaussian,
    design: Tensor,
    targets: Targets,
    noise: dict[str, Tensor],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Expected log likelihood of a batch, summed over its rows."""
    return expected_log_prob(layer.likelihood, weights.outputs(design), targets, generator, noise).sum()


def elbo(
    layer: LastLayer,
    sites: GlobalSites,
    latents: LatentGaussian,
    design: Tensor,
    targets: Targets,
    num_rows: int,
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
    if latents.num_globals:
        draw = torch.randn(
            latents.num_globals,
            dtype=latents.globals_loc.dtype,
            device=latents.globals_loc.device,
            generator=generator,
        )
        u, weights = latents.given(draw)
        values, log_prior_globals, log_jacobian = sites.constrain(u)
        total = log_prior_globals if is_point else log_prior_globals + log_jacobian
    fit = log_likelihood(layer, weights, design, targets, sites.noise(values), generator)
    total = total + fit * (num_rows / len(design))
    total = total + log_prior(layer, weights, {**learned, **sites.hyper(values)}, generator)
    return total if is_point else total + latents.entropy()


def learn(layer: LastLayer, latents: LatentGaussian) -> dict[str, Tensor]:
    """Learned hyper-parameters at their best values for these weights, global unknowns integrated out (closed form).

    By the envelope theorem, following the gradient with them held at their best is the gradient of the ELBO
    maximised over them.
    """
    num_features = latents.weights.loc.shape[1] - int(layer.bias)
    with torch.no_grad():
        loc, scale = latents.weights.loc[:, :num_features], latents.marginal_scale()[:, :num_features]
        return layer.prior.learned_update(loc, scale)
