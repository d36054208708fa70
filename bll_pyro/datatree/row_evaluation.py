"""Draws of a fit's sites, and what follows from draws and rows together: the densities of rows, new targets.

Work is done in chunks of draws and blocks of rows, so that nothing of size draws x outputs x features is held beyond a
chunk, except what is kept in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bll_pyro.gaussian import OutputDraws
from bll_pyro.observation import stage
from bll_pyro.posterior import Draws, DrawsPosterior, GaussianPosterior, Posterior
from bll_pyro.prediction.recalibration import NoiseFactor, Recalibration
from bll_pyro.prediction.tilt import conditional_probs, tilt_of, tilted
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
    recalibration
        Of the fit: new targets and probabilities follow it. The log likelihood is that of the model, by which the posterior
        was made.
    """

    posterior: Posterior
    features: Float[Tensor, "N D"]
    targets: Tensor
    given: np.ndarray
    weight: Float[Tensor, " N"] | None = None
    exposure: Float[Tensor, "N T"] | None = None
    recalibration: Recalibration | None = None

    @cached_property
    def tilt(self) -> Float[Tensor, "N ..."] | None:
        """What tilts the classes of each row under a predictive temperature; None without one."""
        return tilt_of(self.posterior, self.features.double(), self.recalibration)

    def log_likelihood(self, draws: Draws) -> Float[np.ndarray, "chain draw N ..."]:
        """Log density in the user's units, nats, times the weight: ``[chain, c, N]``.

        ``[chain, c, N, T]`` by target where there are several, unless the likelihood ties those of a row.
        """
        frame, likelihood = self.posterior.frame, self.posterior.layer.likelihood
        shape = self.posterior.target_shape if likelihood.independent_targets else ()
        spread = frame.target_scale.log() if likelihood.real_valued else torch.zeros(())
        result = np.empty((*draws["weight"].shape[:2], len(self.targets), *shape))
        with stage("log likelihood", len(self.targets)) as done:
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
                done.advance(len(targets))
        return result

    def new_targets(self, draws: Draws, seed: int) -> Shaped[np.ndarray, "chain draw N ..."]:
        """Targets ``[chain, c, N]`` or ``[chain, c, N, T]`` drawn given the draws, in the user's units."""
        frame, likelihood = self.posterior.frame, self.posterior.layer.likelihood
        parts = []
        for rows, outputs, noise in self._outputs(draws):
            with isolated(derived_seed(seed, rows.start)):
                values = self._law(rows, outputs, noise).sample()
            if likelihood.real_valued:
                values = values * frame.target_scale + frame.target_center
            flat = values.reshape(*draws["weight"].shape[:2], outputs.shape[1], *self.posterior.target_shape)
            whole = (
                likelihood.real_valued and self.given.dtype.kind != "f"
            )  # draws of them are no whole numbers
            parts.append(flat.cpu().numpy().astype(np.float64 if whole else self.given.dtype))
        return np.concatenate(parts, 2)

    def _law(self, rows: slice, outputs: Tensor, noise: Draws) -> dist.Distribution:
        """Distribution of new targets of some rows given outputs ``[S, n, K]`` and noise, as the prediction has it."""
        likelihood = self.posterior.layer.likelihood
        if isinstance(self.recalibration, NoiseFactor):
            likelihood, changed, noise = likelihood.with_noise_times(
                self.recalibration.factor, OutputDraws(outputs), noise
            )
            outputs = changed.draws(0)
        if self.tilt is None:
            return likelihood.law(outputs, **noise)
        probs = self._probs(rows, outputs, noise)
        if likelihood.is_discrete:
            return dist.Categorical(probs=probs, validate_args=False)
        return dist.Bernoulli(probs=probs[..., 1], validate_args=False).to_event(1)

    def _probs(self, rows: slice, outputs: Tensor, noise: Draws) -> Float[Tensor, "S N *T C"]:
        """Probabilities of classes, or of 0 and 1 for each label, as the prediction has them."""
        probs = conditional_probs(self.posterior.layer.likelihood, outputs, noise)
        return probs if self.tilt is None else tilted(probs, self.tilt[rows])

    def class_probs(self, draws: Draws) -> Float[np.ndarray, "chain draw N C"]:
        """Class probabilities ``[chain, c, N, C]`` given the draws."""
        return self._of_outputs(draws, self._probs)

    def label_probs(self, draws: Draws) -> Float[np.ndarray, "chain draw N ..."]:
        """Probabilities ``[chain, c, N]`` or ``[chain, c, N, T]`` of labels 1 given the draws."""
        probs = self._of_outputs(draws, self._probs)[..., 1]
        return probs.reshape(*probs.shape[:3], *self.posterior.target_shape)

    def outputs(self, draws: Draws) -> Float[np.ndarray, "chain draw N K"]:
        """Outputs ``[chain, c, N, K]`` of the draws, for standardised targets."""
        return self._of_outputs(draws, lambda rows, outputs, noise: outputs)

    def _of_outputs(self, draws: Draws, function: Callable[[slice, Tensor, Draws], Tensor]) -> np.ndarray:
        """A function of rows, their outputs ``[S, n, K]`` and noise, of all rows, in float32."""
        parts = []
        for rows, outputs, noise in self._outputs(draws):
            values = function(rows, outputs, noise).float()
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
