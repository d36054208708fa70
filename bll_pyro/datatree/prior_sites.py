"""Densities of a fit's sites under its prior, and draws of them from it."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from bll_pyro.datatree.row_evaluation import in_float64
from bll_pyro.inference.exact.noise_mixture import NoiseMixturePosterior
from bll_pyro.posterior import Draws, Posterior
from bll_pyro.priors import Posterior as PosteriorPrior
from bll_pyro.scope import isolated


def log_prior_of_draws(posterior: Posterior, draws: Draws) -> Draws:
    """Log density ``{site: [chain, draw]}`` of draws ``{site: [chain, draw, *event]}``, nats, in float64.

    All numbers of a site are summed. Learned hyper-parameters have no prior: they are taken at their values.
    """
    if isinstance(posterior, NoiseMixturePosterior):
        return posterior.log_prior(draws)
    layer, shape = posterior.layer, draws["weight"].shape[:2]
    with isolated(seed=0, dtype=torch.float64):
        flat = {
            name: value.flatten(0, 1).double()
            for name, value in posterior.global_sites.from_user(draws).items()
        }
        parts = {name: prior.log_prob(flat[name]) for name, prior in posterior.global_sites.priors.items()}
        hyper = {**in_float64(posterior.learned), **posterior.global_sites.hyper(flat)}
        if isinstance(layer.prior, PosteriorPrior):
            parts |= _joint(posterior, layer.prior, flat)
        else:
            if layer.prior.has_density:
                given = layer.prior.distribution(posterior.global_sites.weight_shape, **hyper)
                parts["weight"] = given.log_prob(flat["weight"]).sum((-2, -1))
            else:
                parts["weight"] = _by_program(posterior, flat, hyper)
            if layer.bias:
                center = layer.bias_center(flat["bias"][0])
                parts["bias"] = dist.Normal(center, layer.bias_scale).log_prob(flat["bias"]).sum(-1)
    return {name: value.reshape(shape) for name, value in parts.items()}


def sample_prior(posterior: Posterior, num_draws: int, seed: int) -> Draws:
    """Independent draws ``{site: [1, S, *event]}`` from the prior of all sites."""
    layer, sites, shape = posterior.layer, posterior.global_sites, posterior.global_sites.weight_shape
    like = posterior.frame.center
    with isolated(seed, dtype=like.dtype):
        values = {name: prior.sample((num_draws,)) for name, prior in sites.priors.items()}
        if isinstance(posterior, NoiseMixturePosterior):
            values |= _mixture_sites(posterior, num_draws)
        elif isinstance(layer.prior, PosteriorPrior):
            values |= posterior.frame.split(layer.prior.weights.rsample(num_draws).to(like))
        else:
            hyper = {**posterior.learned, **sites.hyper(values)}
            if layer.prior.has_density:
                given = layer.prior.distribution(shape, **hyper)
                values["weight"] = given.expand((num_draws, *shape)).sample()
            else:
                values |= _program_draws(posterior, num_draws)
            if layer.bias:
                noise = torch.randn(num_draws, shape[0])
                values["bias"] = layer.bias_center(noise) + layer.bias_scale * noise
    return {name: value.to(like)[None] for name, value in posterior.global_sites.to_user(values).items()}


def _joint(posterior: Posterior, prior: PosteriorPrior, flat: Draws) -> Draws:
    """One Gaussian over weight and bias, in the frame's axes: weight from its marginal, bias given the weight."""
    values = posterior.frame.join(flat["weight"], flat.get("bias"))
    joint = prior.log_prob(values)
    if not prior.bias:
        return {"weight": joint}
    loc, covariance = prior.bias_given(values[..., :-1])
    bias = dist.MultivariateNormal(loc, covariance).log_prob(flat["bias"])
    return {"weight": joint - bias, "bias": bias}


def _by_program(posterior: Posterior, flat: Draws, hyper: Draws) -> Tensor:
    """Density of the weight, by running the prior's program on each draw; other sites of the program do not count."""
    prior, shape, results = posterior.layer.prior, posterior.global_sites.weight_shape, []
    for index in range(len(flat["weight"])):
        values = {name: flat[name][index] for name in ("weight", *posterior.global_sites.hyper_names)}
        learned = {name: hyper[name] for name in posterior.learned}
        trace = poutine.trace(poutine.condition(prior.sample, values)).get_trace(shape, **learned)
        results.append(trace.nodes["weight"]["fn"].log_prob(values["weight"]).sum())
    return torch.stack(results)


def _program_draws(posterior: Posterior, num_draws: int) -> Draws:
    prior, shape = posterior.layer.prior, posterior.global_sites.weight_shape
    names = ("weight", *posterior.global_sites.hyper_names)
    drawn: list[Draws] = []
    for _ in range(num_draws):
        trace = poutine.trace(prior.sample).get_trace(shape, **posterior.learned)
        drawn.append({name: trace.nodes[name]["value"] for name in names})
    return {name: torch.stack([values[name] for values in drawn]) for name in names}


def _mixture_sites(posterior: NoiseMixturePosterior, num_draws: int) -> Draws:
    """Weight, bias and noise under the model that exact inference used, whose scales may be multiples of the noise."""
    model, num_outputs = posterior.model, posterior.num_outputs
    noise = posterior.noise_prior.distribution.expand((num_outputs,)).sample((num_draws,)).double()
    factor = noise if model.relative else torch.ones_like(noise)
    rotation = posterior.frame.rotation
    loc = model.loc if rotation is None else model.loc @ rotation.double().mT
    spread = torch.randn(num_draws, *loc.shape, dtype=torch.float64)
    values = {"noise_scale": noise, "weight": loc + (posterior.prior_scale * factor)[..., None] * spread}
    if posterior.layer.bias:
        values["bias"] = torch.randn(num_draws, num_outputs, dtype=torch.float64) * model.bias_scale * factor
    return values
