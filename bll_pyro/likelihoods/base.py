"""What a likelihood is: the distribution of a target given the outputs, and global noise with priors of its own."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from bll_pyro.declaration import Declaration
from bll_pyro.gaussian import OutputGaussian, Outputs
from bll_pyro.gaussian.information import DenseInformation, DiagonalInformation, Information
from bll_pyro.gaussian.points import halves, joined
from bll_pyro.likelihoods.derived import Marginal, by_row, mean_derivatives, output_derivatives, positive_part
from bll_pyro.likelihoods.targets import count_targets, float_targets, integer_targets, supported
from bll_pyro.scope import isolated, without_validation

# shape of one row's target: () for a single number or label, (T,) for T of them
TargetShape = tuple[int, ...]


class Likelihood(Declaration):
    """Distribution of the target ``y`` of a row given its outputs ``f [K]``; it never knows the size of the data.

    A member defines :meth:`distribution`, and :meth:`num_outputs` where a target has not just one output. All else follows
    from it, by automatic differentiation and draws, and is overridden where a closed form is cheaper or more exact.

    Inside the library a row's target is a label, or a vector ``[T]`` of the real or counted values (T = 1 where the
    user gave one number a row). Likelihoods of counts take each row's ``exposure [N, 1]`` or ``[N, T]`` beside the noise.
    """

    family: ClassVar[str] = "likelihoods"
    real_valued: ClassVar[bool] = False  # targets are real and may be standardised
    is_discrete: ClassVar[bool] = False  # classes: predictions are probabilities, uncertainty is entropy
    is_count: ClassVar[bool] = False  # targets are whole numbers, so are quantiles; rows may have an exposure
    is_binary: ClassVar[bool] = False  # labels 0 or 1, each with a probability and an entropy of its own
    independent_targets: ClassVar[bool] = True  # given the outputs, log densities of a row's targets add up
    pair_sites: ClassVar[tuple[str, ...]] = ()  # noise with a value for each pair of targets
    has_slope: ClassVar[bool] = False  # whether ``slope`` is there
    closed_expectation: ClassVar[bool] = (
        False  # ``expected_log_prob`` takes no draws, and noise with leading axes
    )
    coding: ClassVar[Any] = None  # the Classes of labels that are not the numbers of their classes
    noise_moves_outputs: ClassVar[bool] = False  # correlated a posteriori, to be drawn together

    def num_outputs(self, target_shape: TargetShape) -> int:
        """Number of outputs K for targets of this shape; by default one for each target."""
        return math.prod(target_shape)

    def typical_outputs(
        self, targets: Shaped[Tensor, "N *T"], weight: Float[Tensor, " N"], **columns: Tensor
    ) -> Float[Tensor, " K"]:
        """Outputs ``[K]`` at which a model without features fits targets with weights: where a search begins. 0 by default."""
        return weight.new_zeros(self.num_outputs(tuple(targets.shape[1:])))

    def check_targets(self, targets: Tensor) -> Shaped[Tensor, "N *T"]:
        """Validate targets before any work starts; return them as they are used inside (labels ``[N]`` or ``[N, T]``).

        By default: numbers in the support of the distribution, whole ones where the likelihood counts.
        """
        owner = type(self).__name__
        if self.is_discrete:
            return integer_targets(targets, self.num_classes, owner)  # type: ignore[attr-defined]
        values = count_targets(targets, owner) if self.is_count else float_targets(targets, owner)
        shape = tuple(values.shape[1:])
        with isolated(0), torch.no_grad():
            noise = {name: prior.sample() for name, prior in self.sites(shape).items()}
            law = self.law(values.new_zeros(1, self.num_outputs(shape), dtype=torch.float64), **noise)
        return supported(values, law, owner, whole=self.is_count or self.is_binary, scaled=self.real_valued)

    def check_training(self, targets: Shaped[Tensor, "N *T"]) -> None:
        """Raise if targets, each of them valid, are not enough to fit on; :meth:`check_targets` has returned them."""

    @abstractmethod
    def distribution(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> dist.Distribution:
        """Distribution of the target given outputs ``[..., N, K]``.

        Of labels with batch shape ``[..., N]``; of numbers with batch shape ``[..., N, T]``, or ``[..., N]`` and event shape
        ``[T]``. Noise comes by the names of :meth:`sites`, with axes that broadcast against ``[..., N, T]``.
        """

    def law(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> dist.Distribution:
        """The :meth:`distribution` with a row's targets in its event, and without torch's checks of its arguments."""
        with without_validation():
            found = self.distribution(outputs, **noise)
        return by_row(found, outputs, type(self).__name__, labels=self.is_discrete)

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
        return self.law(outputs, **noise).log_prob(targets)

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
        num_draws = 2 if outputs.noise_dim else 1
        if "exposure" in noise:
            noise = {**noise, "exposure": torch.cat([noise["exposure"]] * num_draws)}
        log_probs = self.log_prob(draws, torch.cat([targets] * num_draws), **noise)
        return log_probs.view(num_draws, len(targets)).mean(0)

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
        return self.law(outputs.draws(num_points, seed), **noise)

    def choose(
        self,
        parts: dist.Distribution,
        chosen: Int[Tensor, "draws N"],
        outputs: Outputs,
        num_points: int,
        seed: int = 0,
        **noise: Tensor,
    ) -> dist.Distribution:
        """Components ``chosen [num_draws, N]`` of :meth:`joint_components`, the ``parts`` of these arguments.

        Outputs and noise are chosen, and not the parameters of the distribution, which only the distribution knows.
        """
        draws = outputs.draws(num_points, seed)
        rows = torch.arange(draws.shape[1], device=chosen.device)
        picked = {
            name: value if name == "exposure" else value.expand(len(draws), *value.shape[1:])[chosen, 0]
            for name, value in noise.items()
        }
        return self.law(draws[chosen, rows], **picked)

    def marginals(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> dist.Distribution:
        """Distribution of each target given outputs ``[..., N, K]``: batch shape ``[..., N, T]``."""
        law = self.law(outputs, **noise)
        single = isinstance(law, torch.distributions.Independent) and not law.base_dist.event_shape
        return Marginal(law.base_dist if single else law)

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
        given: Any = self.marginals(outputs.draws(num_points, seed), **noise)
        mean, variance = given.mean, given.variance
        between = mean.var(0, correction=0)
        if isinstance(given, Marginal):  # means that were drawn vary by their errors, too
            between = (between - given.mean_error.mean(0)).clamp_min(0.0)
        return mean.mean(0), variance.mean(0).expand(mean.shape[1:]), between

    def with_noise_times(
        self, factor: float, outputs: Outputs, noise: dict[str, Tensor]
    ) -> tuple[Likelihood, Outputs, dict[str, Tensor]]:
        """Likelihood, outputs and draws of the noise with the standard deviation of the noise times ``factor``.

        For a recalibration on held-out rows; likelihoods without a noise scale refuse.
        """
        raise TypeError(
            f"calibrate: expected classes, labels, or a likelihood with a noise scale, got {self!r}, which has no "
            "with_noise_times: its spread follows from its outputs, as that of counts follows from their mean, so that there is "
            "no scale to change; NegativeBinomial() learns the spread of counts with the rest"
        )

    def class_probs(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> Float[Tensor, "*#S N C"]:
        """Class probabilities ``[..., N, C]`` given the outputs (discrete likelihoods)."""
        law = self.law(outputs, **noise)
        return law.log_prob(law.enumerate_support(expand=False)).exp().movedim(0, -1)

    def class_log_probs(self, outputs: Float[Tensor, "*#S N K"], **noise: Tensor) -> Float[Tensor, "*#S N C"]:
        """Their logs; that of 0 is that of the smallest normal number."""
        return self.class_probs(outputs, **noise).clamp_min(torch.finfo(outputs.dtype).tiny).log()

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
        return self.marginals(outputs, **noise).mean

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

        By automatic differentiation of the sum over rows, of which each has its own outputs; likelihoods with a closed form
        override it.
        """
        return mean_derivatives(partial(self.log_prob, targets=targets), draws, noise)

    def output_curvature(self, outputs: Float[Tensor, "*S N K"], **noise: Tensor) -> Float[Tensor, "*S N K"]:
        """Diagonal ``[N, K]`` of the information in the outputs ``[N, K]``.

        Defining it says that each part of a target depends on one output, unless ``information`` is defined too.
        """
        return self.information(outputs, **noise).diagonal()

    def information(self, outputs: Float[Tensor, "N K"], **noise: Tensor) -> Information:
        """Fisher information of the outputs ``[N, K]``: expected negative Hessians of ``log p(y | f)``.

        Diagonal where ``output_curvature`` is defined. Else the observed ones, at the ``targets`` that come beside the noise, by
        automatic differentiation, with negative eigenvalues set to 0.
        """
        if self.independent_outputs:
            return DiagonalInformation(self.output_curvature(outputs, **noise))
        targets = noise.pop("targets", None)
        if targets is None:
            raise TypeError(
                f"{type(self).__name__}.information: expected targets, at which to differentiate, got none; define "
                "output_curvature or information, an expectation over the targets"
            )
        keeps_graph = torch.is_grad_enabled() and any(t.requires_grad for t in (outputs, *noise.values()))
        log_prob = partial(self.log_prob, targets=targets, **noise)
        return DenseInformation(positive_part(output_derivatives(log_prob, outputs, keeps_graph)[1]))

    @property
    def independent_outputs(self) -> bool:
        """Whether each part of a target depends on one output, so that ``information`` is diagonal."""
        cls, own = type(self), Likelihood.output_curvature
        return cls.information is Likelihood.information and cls.output_curvature is not own


def scale_site(prior: dist.Distribution | None, num_targets: int) -> dist.Distribution:
    """Prior of a noise scale for each target, ``[T]``: the given one, of one target or of all, or ``HalfNormal(1)``."""
    given: Any = dist.HalfNormal(torch.tensor(1.0)) if prior is None else prior
    return given if given.event_shape else given.expand((num_targets,)).to_event(1)
