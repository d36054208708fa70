"""Draws of the mean of the targets: functions of the inputs, each from one draw of all weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import count
from bll_pyro.features.columns import bundled
from bll_pyro.features.data import read
from bll_pyro.posterior import Draws, DrawsPosterior, Posterior
from bll_pyro.prediction.tilt import conditional_probs, tilt_of, tilted
from bll_pyro.scope import generator

if TYPE_CHECKING:
    from bll_pyro.fitting.result import Fit

NUMBERS_AT_ONCE = 2**24  # draws x rows x outputs that are held at once, beyond the result


@torch.no_grad()
def draw(
    fit: Fit, inputs: Any, num_draws: int, seed: int, exposure: Any, batch_size: int
) -> Float[Tensor, "S N ..."]:
    """``E[y | x, w]`` of all rows for draws of w from the posterior; see :meth:`bll_pyro.Fit.draw`."""
    count(num_draws, "num_draws", "draw")
    count(batch_size, "batch_size", "draw")
    source = read(bundled(inputs, None, exposure), need_targets=False, what="inputs")
    columns, start, parts = fit.columns(source), 0, []
    draws = sites_of(fit.posterior, num_draws, seed)
    size = max(1, NUMBERS_AT_ONCE // (num_draws * fit.posterior.num_outputs))
    for features, _ in fit.feature_batches(source, batch_size):
        for block in features.split(size):
            exposed = columns[start : start + len(block)].exposure
            tilt = tilt_of(fit.posterior, block, fit.recalibration)
            parts.append(means(fit.posterior, draws, block, exposed, tilt))
            start += len(block)
    return torch.cat(parts, 1)


def sites_of(posterior: Posterior, num_draws: int, seed: int) -> Draws:
    """Independent draws ``{site: [1, S, *event]}``; of a posterior that is draws with replacement, from all chains."""
    if not isinstance(posterior, DrawsPosterior):
        return posterior.sample(num_draws, seed)
    stored = {name: value.flatten(0, 1) for name, value in posterior.draws.items()}
    index = torch.randint(len(stored["weight"]), (num_draws,), generator=generator(seed))
    return {name: value[None, index.to(value.device)] for name, value in stored.items()}


def means(
    posterior: Posterior,
    draws: Draws,
    features: Float[Tensor, "N D"],
    exposure: Float[Tensor, "N #T"] | None = None,
    tilt: Float[Tensor, "N ..."] | None = None,
) -> Float[Tensor, "S N ..."]:
    """``E[y | x, w]`` ``[S, N]``, ``[S, N, T]`` or ``[S, N, C]`` for given draws, in the user's units; ``tilt``: of the classes."""
    likelihood, frame, sites = posterior.layer.likelihood, posterior.frame, posterior.global_sites
    outputs = posterior.draw_outputs(draws, features)
    noise = {
        name: value.flatten(0, 1)[:, None].to(outputs)
        for name, value in sites.from_user(draws).items()
        if name in sites.noise_names
    }
    if likelihood.is_discrete or likelihood.is_binary:
        probs = conditional_probs(likelihood, outputs, noise)
        probs = probs if tilt is None else tilted(probs, tilt)
        if likelihood.is_discrete:
            return probs
        values = probs[..., 1]
    else:
        known = noise if exposure is None else {**noise, "exposure": exposure.to(outputs)}
        values = likelihood.marginals(outputs, **known).mean * frame.target_scale + frame.target_center
    return values.reshape(*values.shape[:2], *posterior.target_shape)
