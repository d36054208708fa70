"""What a prior is: hyper-parameters with priors of their own, and the distribution of the weight given them."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from bll_pyro.declaration import Declaration
from bll_pyro.frame import Frame
from bll_pyro.gaussian import WeightGaussian
from bll_pyro.gaussian.strata import stratified_square

Shape = tuple[int, int]
IS_DEVIATION = "a scale is a standard deviation"  # remedy of every check of a scale


class Prior(Declaration):
    """Prior of the weight matrix ``[K, D]``, on the scale of the standardised features.

    A member of the family defines three things: which hyper-parameters are sampled (``hyper``), which are learned by
    raising the ELBO or the evidence (``learned``), and the elementwise distribution of the weight given both
    (``distribution``). The Pyro program (``sample``) and the densities follow from them. A prior that is not of this
    form overrides ``sample``; it then runs on Pyro's general path, and inferences that need a density refuse it.
    """

    family: ClassVar[str] = "priors"
    # one joint prior of weight and bias, in the coordinates of its ``frame``: it has ``expected_log_prob_of`` and
    # ``sample_bias`` in place of ``distribution``
    covers_bias: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = True  # ``expected_log_prob`` has no closed form
    has_density: ClassVar[
        bool
    ]  # the log density follows from ``hyper`` and ``distribution``: ``sample`` is not overridden
    frame: ClassVar[Frame | None] = (
        None  # coordinates that the prior brings along; None takes those of the fit
    )

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "has_density" not in cls.__dict__:
            cls.has_density = cls.sample is Prior.sample

    def hyper(self, shape: Shape) -> dict[str, dist.Distribution]:
        """Sampled hyper-parameters by name, with their priors (all dimensions in the event)."""
        return {}

    def learned_start(self, shape: Shape) -> dict[str, Tensor]:
        """Initial values of positive hyper-parameters that have no prior: they maximise the ELBO (empirical Bayes)."""
        return {}

    def check(self, shape: Shape) -> None:
        """Raise if this prior does not fit a weight of shape ``[K, D]``."""
        loc = getattr(self, "loc", None)
        if isinstance(loc, Tensor):
            broadcasts(tuple(loc.shape), shape, f"{type(self).__name__}(loc=...)")

    @abstractmethod
    def distribution(self, shape: Shape, **hyper: Tensor) -> dist.Distribution:
        """Distribution of the weight given its hyper-parameters, elementwise: batch shape ``[..., K, D]``.

        Hyper-parameters may carry leading axes (vectorised particles), so trailing axes are written out:
        ``tau[..., None, None]``.
        """

    @property
    def isotropic(self) -> bool:
        """Whether a rotation of the features leaves the prior as it is; then the guide may choose its axes."""
        return False

    @property
    def can_rotate(self) -> bool:
        """Whether :meth:`rotated` gives the prior in other axes: it is isotropic, or so about a centre."""
        return self.isotropic

    def rotated(self, rotation: Float[Tensor, "D R"]) -> Self:
        """The same prior for the weights of features rotated into other axes, ``weight @ rotation [D, R]``."""
        if not self.isotropic:
            raise ValueError(f"{type(self).__name__}: expected an isotropic prior, got one tied to the axes")
        return self

    def sample(self, shape: Shape, **learned: Tensor) -> Float[Tensor, "*S K D"]:
        """The Pyro program: sample the hyper-parameters, then the site ``weight``."""
        hyper = {name: pyro.sample(name, prior) for name, prior in self.hyper(shape).items()}
        return pyro.sample("weight", self.distribution(shape, **learned, **hyper).to_event(2))

    def expected_log_prob_of(self, weights: WeightGaussian) -> Float[Tensor, ""]:
        """``E_q[log p(weight, bias)]`` for weights q in the frame, where the prior covers the bias."""
        raise NotImplementedError(
            f"{type(self).__name__} is a prior of single weights; use expected_log_prob"
        )

    def sample_bias(self, weight: Float[Tensor, "*S K D"]) -> Float[Tensor, "*S K"]:
        """The Pyro program, continued: sample the site ``bias`` given the weight, where the prior covers it."""
        raise NotImplementedError(f"{type(self).__name__} is a prior of the weight alone")

    def expected_log_prob(
        self,
        loc: Float[Tensor, "*S K D"],
        scale: Float[Tensor, "*S K D"],
        noise: Float[Tensor, "*S K D"] | None = None,
        **hyper: Tensor,
    ) -> Float[Tensor, ""]:
        """``E_q[log p(weight | hyper)]`` for Normal marginals ``loc, scale [K, D]``, summed over all weights.

        In closed form where Pyro knows the KL divergence, else at one draw ``loc + scale * noise``. Only marginals
        matter, whatever the covariance of the guide, since the log prior is a sum over weights.
        """
        prior = self.distribution((loc.shape[-2], loc.shape[-1]), **hyper)
        closed = self._closed_form(prior, loc, scale)
        if closed is not None:
            return closed.sum()
        value = loc if noise is None else loc + scale * noise
        return prior.log_prob(value).sum()

    def _closed_form(
        self, prior: dist.Distribution, loc: Float[Tensor, "*S K D"], scale: Float[Tensor, "*S K D"]
    ) -> Float[Tensor, "*S K D"] | None:
        return None

    def softened(self, shape: Shape, size: float, share: float) -> Self:
        """An easier prior with the same hyper-parameters, for the first steps of a fit.

        ``share`` goes from 0, easiest, to 1, which is this prior; ``size`` is the size of a typical weight at the start.
        """
        return self

    def learned_update(
        self, loc: Float[Tensor, "*S K D"], scale: Float[Tensor, "*S K D"]
    ) -> dict[str, Tensor]:
        """Values of the ``learned`` hyper-parameters that maximise ``expected_log_prob`` at these marginals."""
        if self.learned_start((loc.shape[-2], loc.shape[-1])):
            raise NotImplementedError(
                f"{type(self).__name__} declares learned hyper-parameters but no update"
            )
        return {}


class GaussianPrior(Prior):
    """A prior whose weights are Normal given the hyper-parameters: everything about it is in closed form."""

    needs_noise: ClassVar[bool] = False

    @abstractmethod
    def distribution(self, shape: Shape, **hyper: Tensor) -> dist.Normal:
        """Normal distribution of the weight given its hyper-parameters, batch shape ``[..., K, D]``."""

    def _closed_form(
        self, prior: dist.Distribution, loc: Float[Tensor, "*S K D"], scale: Float[Tensor, "*S K D"]
    ) -> Float[Tensor, "*S K D"]:
        second_moment = (loc - prior.loc).square() + scale.square()
        return prior.log_prob(prior.loc) - 0.5 * second_moment / prior.scale.square()


class ScaleMixturePrior(Prior):
    """A prior whose density is a mixture of Normals with one centre and different scales.

    Its log density is convex in the squared distance from the centre. So its expectation under a Normal marginal has
    the smooth lower bound of :func:`bll_pyro.gaussian.strata.stratified_square`, which needs no noise and is finite at
    the pole or the spike at the centre. The ELBO stays a lower bound; it loses up to 0.1 nats for a weight that lies
    in the spike, and next to nothing elsewhere (``tests/priors`` measure it).
    """

    loc: Tensor | None
    needs_noise: ClassVar[bool] = False

    @abstractmethod
    def log_prob_of_square(self, square: Float[Tensor, "*S K D"], **hyper: Tensor) -> Float[Tensor, "*S K D"]:
        """Log density at squared distances ``[..., K, D]`` from the centre; hyper-parameters without leading axes."""

    def expected_log_prob(
        self,
        loc: Float[Tensor, "*S K D"],
        scale: Float[Tensor, "*S K D"],
        noise: Float[Tensor, "*S K D"] | None = None,
        **hyper: Tensor,
    ) -> Float[Tensor, ""]:
        """``E_q[log p(weight | hyper)]`` from below, summed over all weights; exact for a point (scale 0)."""
        squares = stratified_square(loc - centre(self.loc, loc), scale)
        return self.log_prob_of_square(squares, **hyper).sum() / len(squares)


class MixtureOfNormals(dist.MixtureSameFamily):
    """A mixture of Normals. Its support is all real numbers, which the general class does not work out."""

    support = constraints.real


def centre(loc: Tensor | None, like: Tensor) -> Tensor:
    """The centre of a prior in the dtype and on the device of a tensor; 0 where none is given."""
    return torch.zeros((), dtype=like.dtype, device=like.device) if loc is None else loc.to(like)


def check_loc(loc: object, owner: str, name: str = "loc") -> None:
    """Raise if a centre is neither None nor a finite floating-point tensor."""
    if loc is None:
        return
    if not isinstance(loc, Tensor) or not loc.is_floating_point():
        got = str(loc.dtype) if isinstance(loc, Tensor) else type(loc).__name__
        raise TypeError(
            f"{owner}({name}=...): expected None or a floating-point tensor, got {got}; use torch.as_tensor(...).float()"
        )
    if not bool(torch.isfinite(loc).all()):
        raise ValueError(
            f"{owner}({name}=...): expected finite weights, got NaN or infinite ones; repair them"
        )


def broadcasts(given: tuple[int, ...], shape: Shape, owner: str) -> None:
    """Raise if a shape does not broadcast to the weight's ``[K, D]``."""
    aligned = (1,) * (2 - len(given)) + given
    if len(given) > 2 or any(a not in (1, b) for a, b in zip(aligned, shape, strict=True)):
        raise ValueError(
            f"{owner}: expected a shape that broadcasts to the weight's {list(shape)} (outputs, features), "
            f"got {list(given)}; the bias is not part of it"
        )


def check_hyper_prior(value: object, owner: str, upper: float = math.inf) -> None:
    """Raise if this is not the distribution of one real number between 0 and ``upper``."""
    if not isinstance(value, dist.Distribution):
        raise TypeError(
            f"{owner}: expected a Pyro distribution such as pyro.distributions.HalfNormal(1.0), got {value!r}; "
            "fixed scales are those of Normal(scale=...)"
        )
    shape, support = list(value.batch_shape + value.event_shape), value.support
    if shape:
        raise ValueError(f"{owner}: expected a distribution of one number, got one of shape {shape}")
    lower = getattr(support, "lower_bound", -math.inf)
    most = getattr(support, "upper_bound", math.inf)
    if support is None or support.is_discrete or float(lower) < 0 or float(most) > upper:
        expected = "positive numbers" if upper == math.inf else f"numbers between 0 and {upper:g}"
        raise ValueError(
            f"{owner}: expected a distribution of {expected}, got {type(value).__name__} with support {support}"
        )


def expand(value: Tensor | float, shape: tuple[int, ...]) -> Tensor:
    """Expand a number or tensor to the weight's shape, keeping leading axes."""
    tensor = torch.as_tensor(value)
    # not torch.broadcast_shapes: its first call imports SymPy, which takes longer than a small fit
    return tensor.expand(*tensor.shape[: max(0, tensor.dim() - len(shape))], *shape)
