"""Draws of a fit's sites and what follows from them: their prior densities, the densities of rows, new targets.

Work is done in chunks of draws and blocks of rows, so that nothing of size draws x outputs x features is held beyond a
chunk, except what is kept in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from pyro import poutine
from torch import Tensor

from bll_pyro.inference.exact.noise_mixture import NoiseMixturePosterior
from bll_pyro.posterior import Draws, DrawsPosterior, GaussianPosterior, Posterior
from bll_pyro.priors import Posterior as PosteriorPrior
from bll_pyro.scope import SEEDS, isolated, wrong_seed

MADE_AT_ONCE = 2**26  # weights of the draws that are made together
SCORED_AT_ONCE = (
    2**20
)  # weights of the draws that are scored together: mixtures take about fifty times as much memory
OUTPUTS_AT_ONCE = 2**22  # outputs of draws and rows that are held together


def scored_draws(posterior: Posterior, num_draws: int | None, thin: int, seed: int) -> Iterator[Draws]:
    """Draws ``{site: [chain, c, *event]}`` in chunks along the draw axis that are small enough to be scored.

    The independent draws of a layer of moderate size are ``posterior.sample(num_draws, seed)``; those of larger layers
    are made in parts with further seeds. Stored draws are thinned, and then taken evenly.
    """
    made = max(1, MADE_AT_ONCE // (posterior.num_outputs * posterior.frame.num_features))
    if isinstance(posterior, DrawsPosterior):
        index, draws = stored_index(posterior, num_draws, thin), posterior.draws
        chunks = ({name: value[:, part] for name, value in draws.items()} for part in index.split(made))
    else:
        total = -(-(num_draws or 1000) // thin)
        chunks = (
            posterior.sample(min(made, total - start), seed if start == 0 else derived_seed(seed, start))
            for start in range(0, total, made)
        )
    for chunk in chunks:
        num_chains, num_made = chunk["weight"].shape[:2]
        scored = draws_at_once(posterior, num_chains)
        for start in range(0, num_made, scored):
            yield {name: value[:, start : start + scored] for name, value in chunk.items()}


def draws_at_once(posterior: Posterior, num_chains: int = 1) -> int:
    """Number of draws of each chain that are scored together."""
    return max(1, SCORED_AT_ONCE // (num_chains * posterior.num_outputs * posterior.frame.num_features))


def stored_index(posterior: DrawsPosterior, num_draws: int | None, thin: int) -> Tensor:
    """Positions in each chain of the stored draws that are taken."""
    num_chains, num_stored = posterior.draws["weight"].shape[:2]
    index = torch.arange(0, num_stored, thin)
    if num_draws is None or num_draws >= num_chains * len(index):
        return index
    return index[torch.linspace(0, len(index) - 1, max(1, num_draws // num_chains)).round().long()]


def derived_seed(*seeds: int) -> int:
    """A seed that depends on all of these."""
    for seed in seeds:
        if not (isinstance(seed, Integral) and 0 <= seed < SEEDS):
            raise wrong_seed(seed)
    return int(np.random.SeedSequence([int(seed) for seed in seeds]).generate_state(1)[0])


def in_float64(value: Any) -> Any:
    """The same with all its tensors in float64, at any depth: a tensor, a dictionary, a frame, a Gaussian."""
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, dict):
        return {name: in_float64(part) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: in_float64(getattr(value, f.name)) for f in fields(value)})
    return value


def in_double(posterior: Posterior) -> Posterior:
    """The same posterior with its constants in float64, to score draws; not for sampling, since its draws differ."""
    names = ("frame", "learned", *(("latents",) if isinstance(posterior, GaussianPosterior) else ()))
    return replace(posterior, **{name: in_float64(getattr(posterior, name)) for name in names})


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


@dataclass(frozen=True, eq=False)
class RowEvaluator:
    """What follows from draws and rows together: outputs, log likelihood, new targets.

    Parameters
    ----------
    posterior
        In float64.
    features
        The rows ``[N, D]``.
    targets
        As the likelihood uses them, in the user's units.
    given
        As the user gave them, ``[N]`` or ``[N, T]``.
    weight
        Weights ``[N]``; None where rows have none.
    exposure
        Exposures ``[N, 1]`` or ``[N, T]`` of counts; None where rows have none.
    """

    posterior: Posterior
    features: Float[Tensor, "N D"]
    targets: Tensor
    given: np.ndarray
    weight: Float[Tensor, " N"] | None = None
    exposure: Float[Tensor, "N T"] | None = None

    def log_likelihood(self, draws: Draws) -> Float[np.ndarray, "chain draw N ..."]:
        """Log density in the user's units, nats, times the weight: ``[chain, c, N]``.

        ``[chain, c, N, T]`` by target where there are several, unless the likelihood ties those of a row.
        """
        frame, likelihood = self.posterior.frame, self.posterior.layer.likelihood
        shape = self.posterior.target_shape if likelihood.independent_targets else ()
        spread = frame.target_scale.log() if likelihood.real_valued else torch.zeros(())
        result = np.empty((*draws["weight"].shape[:2], len(self.targets), *shape))
        for rows, outputs, noise in self._outputs(draws):
            targets = self.targets[rows]
            if likelihood.real_valued:
                targets = frame.targets(targets)
            elif targets.is_floating_point():
                targets = targets.double()
            if shape:
                values = likelihood.marginals(outputs, **noise).log_prob(targets) - spread
            else:
                values = likelihood.log_prob(outputs, targets, **noise) - spread.sum()
            if self.weight is not None:
                values = values * self.weight[rows].to(values).reshape(-1, *[1] * (values.dim() - 2))
            result[:, :, rows] = values.reshape(*result.shape[:2], *values.shape[1:]).cpu().numpy()
        return result

    def new_targets(self, draws: Draws, seed: int) -> Shaped[np.ndarray, "chain draw N ..."]:
        """Targets ``[chain, c, N]`` or ``[chain, c, N, T]`` drawn given the draws, in the user's units."""
        frame, likelihood = self.posterior.frame, self.posterior.layer.likelihood
        parts = []
        for rows, outputs, noise in self._outputs(draws):
            with isolated(derived_seed(seed, rows.start)):
                values = likelihood.law(outputs, **noise).sample()
            if likelihood.real_valued:
                values = values * frame.target_scale + frame.target_center
            flat = values.reshape(*draws["weight"].shape[:2], outputs.shape[1], *self.posterior.target_shape)
            whole = (
                likelihood.real_valued and self.given.dtype.kind != "f"
            )  # draws of them are no whole numbers
            parts.append(flat.cpu().numpy().astype(np.float64 if whole else self.given.dtype))
        return np.concatenate(parts, 2)

    def class_probs(self, draws: Draws) -> Float[np.ndarray, "chain draw N C"]:
        """Class probabilities ``[chain, c, N, C]`` given the draws."""
        return self._of_outputs(draws, self.posterior.layer.likelihood.class_probs)

    def label_probs(self, draws: Draws) -> Float[np.ndarray, "chain draw N ..."]:
        """Probabilities ``[chain, c, N]`` or ``[chain, c, N, T]`` of labels 1 given the draws."""
        probs = self._of_outputs(draws, self.posterior.layer.likelihood.label_probs)
        return probs.reshape(*probs.shape[:3], *self.posterior.target_shape)

    def outputs(self, draws: Draws) -> Float[np.ndarray, "chain draw N K"]:
        """Outputs ``[chain, c, N, K]`` of the draws, for standardised targets."""
        return self._of_outputs(draws, lambda outputs, **noise: outputs)

    def _of_outputs(self, draws: Draws, function: Callable[..., Tensor]) -> np.ndarray:
        """A function of the outputs ``[S, n, K]`` and noise, of all rows, in float32."""
        parts = []
        for _, outputs, noise in self._outputs(draws):
            values = function(outputs, **noise).float()
            parts.append(values.reshape(*draws["weight"].shape[:2], *values.shape[1:]).cpu().numpy())
        return np.concatenate(parts, 2)

    def _outputs(self, draws: Draws) -> Iterator[tuple[slice, Tensor, Draws]]:
        """Blocks of rows, their outputs ``[S, n, K]``, and noise ``[S, 1, *event]`` (and their exposure)."""
        exact = in_float64(draws)
        flat, names = self.posterior.global_sites.from_user(exact), self.posterior.global_sites.noise_names
        known = {name: flat[name].flatten(0, 1)[:, None] for name in flat if name in names}
        num_draws = math.prod(draws["weight"].shape[:2])
        size = max(1, OUTPUTS_AT_ONCE // (num_draws * self.posterior.num_outputs))
        for start in range(0, len(self.targets), size):
            rows = slice(start, min(start + size, len(self.targets)))
            features = self.features[rows].double()
            if self.exposure is not None:
                known["exposure"] = self.exposure[rows].to(features)
            yield rows, self.posterior.draw_outputs(exact, features), dict(known)


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
