"""What a likelihood is: the distribution of a target given the outputs, and global noise with priors of its own."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from bll_pyro.declaration import Declaration
from bll_pyro.gaussian import OutputGaussian, Outputs
from bll_pyro.gaussian.information import DiagonalInformation, Information
from bll_pyro.gaussian.points import halves, joined

TargetShape = tuple[
    int, ...
]  # shape of one row's target: () for a single number or label, (T,) for T of them


class Likelihood(Declaration):
    """Distribution of the target ``y`` of a row given its outputs ``f [K]``; it never knows the size of the data.

    Inside the library a row's target is a label, or a vector ``[T]`` of the real or counted values (T = 1 where the
    user gave one number a row). Likelihoods of counts take each row's ``exposure [N, 1]`` or ``[N, T]`` beside the noise.
    """

    family: ClassVar[str] = "likelihoods"
    real_valued: ClassVar[bool] = False  # targets are real and may be standardised
    is_discrete: ClassVar[bool] = (
        False  # targets are classes: predictions are probabilities, uncertainty is entropy
    )
    is_count: ClassVar[bool] = False  # targets are whole numbers, so are quantiles; rows may have an exposure
    is_binary: ClassVar[bool] = (
        False  # targets are labels 0 or 1, each with a probability and an entropy of its own
    )

    independent_targets: ClassVar[bool] = (
        True  # given the outputs, the log densities of a row's targets add up
    )
    pair_sites: ClassVar[tuple[str, ...]] = ()  # noise with a value for each pair of targets

    has_slope: ClassVar[bool] = False  # whether ``slope`` is there
    noise_moves_outputs: ClassVar[bool] = (
        False  # noise and outputs are correlated a posteriori and have to be drawn together
    )

    @abstractmethod
    def num_outputs(self, target_shape: TargetShape) -> int:
        """Number of outputs K for targets of this shape."""

    @abstractmethod
    def check_targets(self, targets: Tensor) -> Shaped[Tensor, "N *T"]:
        """Validate targets before any work starts; return them as they are used inside (labels ``[N]`` or ``[N, T]``)."""

    def check_training(self, targets: Shaped[Tensor, "N *T"]) -> None:
        """Raise if targets, each of them valid, are not enough to fit on; :meth:`check_targets` has returned them."""

    @abstractmethod
    def distribution(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> dist.Distribution:
        """Distribution of the target given outputs ``[..., N, K]``: batch shape ``[..., N]``."""

    def sites(self, target_shape: TargetShape) -> dict[str, dist.Distribution]:
        """Global noise parameters by name, with their priors.

        All dimensions are in the event, and one value for each target is a vector ``[T]`` even where T = 1, so that
        a value with leading axes (draws, particles) broadcasts against outputs ``[..., N, T]`` as it is.
        """
        return {}

    def sample_noise(self, target_shape: TargetShape) -> dict[str, Tensor]:
        """The Pyro program of the noise: one sample site each."""
        return {name: pyro.sample(name, prior) for name, prior in self.sites(target_shape).items()}

    def in_units(self, scale: Float[Tensor, " T"]) -> Self:
        """Return the same likelihood for targets divided by ``scale [T]``: constants in the user's units follow."""
        return self

    def log_prob(
        self, outputs: Float[Tensor, "*#S N K"], targets: Shaped[Tensor, "N *T"], **noise: Tensor
    ) -> Float[Tensor, "*#S N"]:
        """Log density or probability of targets given outputs ``[..., N, K]``: ``[..., N]``."""
        return self.distribution(outputs, **noise).log_prob(targets)

    def expected_log_prob(
        self,
        outputs: OutputGaussian,
        targets: Shaped[Tensor, "N *T"],
        generator: torch.Generator | None = None,
        **noise: Tensor,
    ) -> Float[Tensor, " N"]:
        """``E_q(f)[log p(y | f)]`` of each row, ``[N]``: at two mirrored draws of the outputs, or in closed form.

        The draws are in output space, a pair for each row (local reparameterisation, Kingma, Salimans and Welling
        2015). In a pair the linear part of the log likelihood cancels, which has most of the variance.
        """
        draws = outputs.mirrored(generator)
        num_draws = len(draws) // len(outputs.loc)
        if "exposure" in noise:
            noise = {**noise, "exposure": torch.cat([noise["exposure"]] * num_draws)}
        log_probs = self.log_prob(draws, torch.cat([targets] * num_draws), **noise)
        return log_probs.view(num_draws, -1).mean(0)

    def components(
        self, outputs: Outputs, num_points: int, seed: int = 0, **noise: Tensor
    ) -> dist.Distribution:
        """Marginal predictive of each target as an equally weighted mixture: batch shape ``[S, N, T]``.

        Noise comes as draws ``[S, 1, ...]``. By default one component for each draw of the outputs.
        """
        return self.marginals(outputs.draws(num_points, seed), **noise)

    def joint_components(
        self, outputs: Outputs, num_points: int, seed: int = 0, **noise: Tensor
    ) -> dist.Distribution:
        """Predictive of a row's targets together as such a mixture: batch shape ``[S, N]``, event shape ``[T]``."""
        return self.distribution(outputs.draws(num_points, seed), **noise)

    def marginals(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> dist.Distribution:
        """Distribution of each target given outputs ``[..., N, K]``: batch shape ``[..., N, T]``."""
        return self.distribution(outputs, **noise).base_dist

    def predictive_log_prob(
        self,
        outputs: Outputs,
        targets: Shaped[Tensor, "N *T"],
        num_points: int,
        seed: int = 0,
        **noise: Tensor,
    ) -> Float[Tensor, " N"]:
        """``log E[p(y | f, noise)]`` of each row's targets together, ``[N]``; noise as draws ``[S, 1, ...]``."""
        log_probs = self.log_prob(outputs.draws(num_points, seed), targets, **noise)
        return torch.logsumexp(log_probs, 0) - math.log(len(log_probs))

    def moments(
        self, outputs: Outputs, num_points: int, seed: int = 0, **noise: Tensor
    ) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"], Float[Tensor, "N T"]]:
        """Predictive mean ``E[y]``, aleatoric ``E[Var(y | f)]`` and epistemic ``Var(E[y | f])``, each ``[N, T]``."""
        given = self.marginals(outputs.draws(num_points, seed), **noise)
        mean, variance = given.mean, given.variance
        return mean.mean(0), variance.mean(0).expand(mean.shape[1:]), mean.var(0, correction=0)

    def with_noise_times(
        self, factor: float, outputs: Outputs, noise: dict[str, Tensor]
    ) -> tuple[Likelihood, Outputs, dict[str, Tensor]]:
        """Likelihood, outputs and draws of the noise with the standard deviation of the noise times ``factor``.

        For a recalibration on held-out rows; likelihoods without a noise scale refuse.
        """
        raise TypeError(
            f"calibrate: expected classes, labels, or a likelihood with a noise scale, got {self!r}: the spread of counts "
            "follows from their mean, so there is no scale to change; NegativeBinomial() learns the spread with the rest"
        )

    def class_probs(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> Float[Tensor, "*#S N C"]:
        """Class probabilities ``[..., N, C]`` given the outputs (discrete likelihoods)."""
        raise NotImplementedError(f"{type(self).__name__} has no classes")

    def class_expectations(
        self, outputs: Outputs, chunks: Iterable[slice], num_points: int, seed: int = 0, **noise: Tensor
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, " N"], Float[Tensor, " N"]]:
        """``E[p(y | f)]`` ``[N, C]``, ``E[H(p(y | f))]`` in nats ``[N]``, and the error of the former ``[N]``: see ``halves``.

        ``chunks`` are the rows whose draws are held at once.
        """
        parts = []
        for rows in chunks:
            probs = self.class_probs(outputs.rows(rows).draws(num_points, seed), **noise)
            mean, error = halves(probs)
            parts.append((mean, torch.special.entr(probs).sum(-1).mean(0), error.square().mean(-1).sqrt()))
        return joined(parts)

    def label_probs(self, outputs: Float[Tensor, "*S N T"], **noise: Tensor) -> Float[Tensor, "*S N T"]:
        """Probability ``[..., N, T]`` of each label given the outputs (binary likelihoods)."""
        raise NotImplementedError(f"{type(self).__name__} has no binary labels")

    def slope(
        self, outputs: Float[Tensor, "*S N K"], targets: Shaped[Tensor, "N *T"]
    ) -> tuple[Float[Tensor, "*S N"], Float[Tensor, "*S N K"]]:
        """Log density ``[..., N]`` of targets given outputs ``[..., N, K]``, and its gradient in them, in closed form.

        For likelihoods without noise for which automatic differentiation is slower.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no slope in closed form; use automatic differentiation"
        )

    def expected_derivatives(
        self, draws: Float[Tensor, "S N K"], targets: Shaped[Tensor, "N *T"], **noise: Tensor
    ) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K K"]]:
        """Gradient ``[N, K]`` and negative Hessian ``[N, K, K]`` of ``log p(y | f)``, averaged over draws ``[S, N, K]``.

        By automatic differentiation; likelihoods with a closed form override it.
        """
        num_draws, num_rows, num_outputs = draws.shape
        noise = {name: value[None] if name == "exposure" else value for name, value in noise.items()}
        shared = {name: value.expand(num_draws, num_rows, *value.shape[2:]) for name, value in noise.items()}

        def row(outputs: Tensor, target: Tensor, row_noise: dict[str, Tensor]) -> Tensor:
            single = {name: value[None] for name, value in row_noise.items()}
            return self.log_prob(outputs[None], target[None], **single).squeeze(0)

        def both(outputs: Tensor, target: Tensor, row_noise: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            slope = torch.func.grad(row)
            return slope(outputs, target, row_noise), -torch.func.jacrev(slope)(outputs, target, row_noise)

        over_rows = torch.func.vmap(both)
        gradient = draws.new_zeros(num_rows, num_outputs)
        curvature = draws.new_zeros(num_rows, num_outputs, num_outputs)
        for index in range(num_draws):  # one draw at a time: nothing of size S x N x K x K is built
            first, second = over_rows(draws[index], targets, {k: v[index] for k, v in shared.items()})
            gradient, curvature = gradient + first / num_draws, curvature + second / num_draws
        return gradient, curvature

    def output_curvature(self, outputs: Float[Tensor, "*S N K"], **noise: Tensor) -> Float[Tensor, "*S N K"]:
        """Diagonal ``[N, K]`` of the expected negative Hessian of ``log p(y | f)`` in the outputs ``[N, K]``."""
        raise NotImplementedError(f"{type(self).__name__} gives no curvature")

    def information(self, outputs: Float[Tensor, "N K"], **noise: Tensor) -> Information:
        """Fisher information of the outputs ``[N, K]``: expected negative Hessians of ``log p(y | f)``.

        By default each part of a target depends on one output, and the diagonal is all there is.
        """
        return DiagonalInformation(self.output_curvature(outputs, **noise))

    @property
    def independent_outputs(self) -> bool:
        """Whether each part of a target depends on one output, so that ``information`` is diagonal."""
        return type(self).information is Likelihood.information


def scale_site(prior: dist.Distribution | None, num_targets: int) -> dist.Distribution:
    """Prior of a noise scale for each target, ``[T]``: the given one, of one target or of all, or ``HalfNormal(1)``."""
    given: Any = dist.HalfNormal(torch.tensor(1.0)) if prior is None else prior
    return given if given.event_shape else given.expand((num_targets,)).to_event(1)


def exposed(
    outputs: Float[Tensor, "*#S N T"], exposure: Float[Tensor, "*#S N #T"] | None
) -> Float[Tensor, "*#S N T"]:
    """Log means of counts: outputs plus the offset ``log(exposure)``."""
    return outputs if exposure is None else outputs + exposure.to(outputs).log()
