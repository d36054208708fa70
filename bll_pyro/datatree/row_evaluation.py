"""Passes over the draws of a fit, in chunks: their densities, and data drawn at them.

Nothing of size draws x outputs x features is held beyond a chunk, except what is kept in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bll_pyro.datatree.fit_prior import in_float64
from bll_pyro.features.columns import NO_COLUMNS, Columns
from bll_pyro.features.store import Features
from bll_pyro.gaussian import LatentGaussian
from bll_pyro.gaussian.precision import weights_in_double
from bll_pyro.posterior import Draws, DrawsPosterior, GaussianPosterior, Posterior
from bll_pyro.scope import isolated

WEIGHT_NUMBERS = 2**26  # weights of the draws that are made at once
SCORED_NUMBERS = 2**20  # weights of the draws that are scored at once: mixtures take some fifty times as much
OUTPUT_NUMBERS = 2**22  # outputs of draws and rows that are held at once


def posterior_draws(posterior: Posterior, num_draws: int | None, thin: int, seed: int) -> Iterator[Draws]:
    """Draws ``{site: [chain, c, *event]}`` in chunks along the draw axis.

    Independent draws are made chunk by chunk; the first chunk, and the only one of a layer of moderate size, is
    ``posterior.sample(num_draws, seed)``. Stored draws are thinned, and then taken evenly.
    """
    if isinstance(posterior, DrawsPosterior):
        for part in stored_index(posterior, num_draws, thin).split(_size(posterior, WEIGHT_NUMBERS)):
            yield {name: value[:, part] for name, value in posterior.draws.items()}
        return
    total = -(-(num_draws or 1000) // thin)
    size = _size(posterior, WEIGHT_NUMBERS)
    for start in range(0, total, size):
        yield posterior.sample(min(size, total - start), seed if start == 0 else derived_seed(seed, start))


def stored_index(posterior: DrawsPosterior, num_draws: int | None, thin: int) -> Tensor:
    """Positions in each chain of the stored draws that are taken."""
    num_chains, num_stored = posterior.draws["weight"].shape[:2]
    index = torch.arange(0, num_stored, thin)
    if num_draws is None or num_draws >= num_chains * len(index):
        return index
    return index[torch.linspace(0, len(index) - 1, max(1, num_draws // num_chains)).round().long()]


def parts_of(draws: Draws, size: int) -> Iterator[Draws]:
    """Split draws along the draw axis."""
    num_draws = draws["weight"].shape[1]
    for start in range(0, num_draws, size):
        yield {name: value[:, start : start + size] for name, value in draws.items()}


def scored_size(posterior: Posterior, num_chains: int = 1) -> int:
    """How many draws of a chain are scored at once."""
    return _size(posterior, SCORED_NUMBERS, num_chains)


def _size(posterior: Posterior, numbers: int, num_chains: int = 1) -> int:
    return max(1, numbers // (num_chains * posterior.num_outputs * posterior.frame.num_features))


def derived_seed(*seeds: int) -> int:
    """A seed that depends on all of these."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


def in_double(posterior: Posterior) -> Posterior:
    """The same posterior with its constants in float64, to score draws; not for sampling (its draws differ)."""
    constants: dict[str, Any] = in_float64(posterior.frame.tensors)
    changes: dict[str, Any] = {
        "frame": replace(posterior.frame, **constants),
        "learned": in_float64(posterior.learned),
    }
    if isinstance(posterior, GaussianPosterior):
        latents = posterior.latents
        coupling = None if latents.coupling is None else latents.coupling.double()
        changes["latents"] = LatentGaussian(
            weights_in_double(latents.weights),
            latents.globals_loc.double(),
            latents.globals_factor.double(),
            coupling,
        )
    return replace(posterior, **changes)


@dataclass(frozen=True, eq=False)
class RowEvaluator:
    """What is made of draws and rows together: outputs, log likelihood, new targets.

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
    columns
        Weights and exposures.
    """

    posterior: Posterior
    features: Features
    targets: Tensor
    given: np.ndarray
    columns: Columns = NO_COLUMNS

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one row's target."""
        return self.given.shape[1:]

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.targets)

    def log_likelihood(self, draws: Draws) -> np.ndarray:
        """Log density in the user's units, nats, times the weight: ``[chain, c, N]``.

        ``[chain, c, N, T]`` by target where there are several, unless the likelihood ties those of a row.
        """
        frame, likelihood = self.posterior.frame, self.posterior.layer.likelihood
        shape = self.target_shape if likelihood.independent_targets else ()
        spread = frame.target_scale.log() if likelihood.real_valued else torch.zeros(())
        result = np.empty((*draws["weight"].shape[:2], self.num_rows, *shape))
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
            weight = self.columns[rows].weight
            if weight is not None:
                values = values * weight.to(values).reshape(-1, *[1] * (values.dim() - 2))
            result[:, :, rows] = values.reshape(*result.shape[:2], *values.shape[1:]).cpu().numpy()
        return result

    def new_targets(self, draws: Draws, seed: int) -> np.ndarray:
        """Targets ``[chain, c, N]`` or ``[chain, c, N, T]`` drawn given the draws, in the user's units."""
        frame, likelihood = self.posterior.frame, self.posterior.layer.likelihood
        parts = []
        for rows, outputs, noise in self._outputs(draws):
            with isolated(derived_seed(seed, rows.start)):
                values = likelihood.distribution(outputs, **noise).sample()
            if likelihood.real_valued:
                values = values * frame.target_scale + frame.target_center
            flat = values.reshape(*draws["weight"].shape[:2], outputs.shape[1], *self.target_shape)
            parts.append(flat.cpu().numpy().astype(self.given.dtype))
        return np.concatenate(parts, 2)

    def class_probs(self, draws: Draws) -> np.ndarray:
        """Class probabilities ``[chain, c, N, C]`` given the draws."""
        return self._of_outputs(draws, self.posterior.layer.likelihood.class_probs)

    def label_probs(self, draws: Draws) -> np.ndarray:
        """Probabilities ``[chain, c, N]`` or ``[chain, c, N, T]`` of labels 1 given the draws."""
        probs = self._of_outputs(draws, self.posterior.layer.likelihood.label_probs)
        return probs.reshape(*probs.shape[:3], *self.target_shape)

    def outputs(self, draws: Draws) -> np.ndarray:
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
        flat = self.posterior.global_sites.from_user(in_float64(draws))
        noise_names = self.posterior.global_sites.noise_names
        noise = {name: value.flatten(0, 1)[:, None] for name, value in flat.items() if name in noise_names}
        num_draws = math.prod(draws["weight"].shape[:2])
        size = max(1, OUTPUT_NUMBERS // (num_draws * self.posterior.num_outputs))
        for start in range(0, self.num_rows, size):
            rows = slice(start, min(start + size, self.num_rows))
            features = self.features[rows].double()
            exposure = self.columns[rows].exposure
            known = noise if exposure is None else {**noise, "exposure": exposure.to(features)}
            yield rows, self.posterior.draw_outputs(in_float64(draws), features), known
