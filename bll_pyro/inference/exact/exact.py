"""Exact inference: Gaussian likelihood and Normal prior, from sums over the rows, with the log evidence."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bll_pyro import gaussian
from bll_pyro.gaussian.precision import independent_outputs
from bll_pyro.inference.base import Inference, Trace
from bll_pyro.inference.exact.gaussian_prior import condition
from bll_pyro.inference.exact.linear_gaussian import LinearGaussian
from bll_pyro.inference.exact.noise_mixture import NoiseMixturePosterior
from bll_pyro.inference.exact.noises import (
    Conjugate,
    Integrated,
    NoisePrior,
    NoiseTreatment,
    _Known,
    elementwise,
    is_positive,
)
from bll_pyro.inference.exact.one_dimension import Nodes, maximize
from bll_pyro.inference.exact.statistics import SufficientStatistics, sum_rows
from bll_pyro.inference.rows import DesignRows
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods import Gaussian, MultivariateGaussian
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.posterior import GaussianPosterior, Posterior
from bll_pyro.priors import Normal
from bll_pyro.priors import Posterior as PosteriorPrior

MAX_BYTES = 8 * 2**30  # largest memory of the matrices, in bytes
MIN_NOISE = 1e-5  # smallest plausible noise scale, as a multiple of the targets' scale
# half-width of the search for the log prior scale, centred where the outputs are as large as the targets
LOG_PRIOR_RANGE = 12.0
NUM_NOISE_VALUES = 33  # typical number of quadrature nodes over the noise scale
ALTERNATIVES = "bll.SVI(), bll.Laplace() or bll.NUTS()"


@dataclass(frozen=True, eq=False)
class Exact(Inference):
    """The posterior in closed form, for ``likelihoods.Gaussian`` and ``priors.Normal`` (or ``priors.Posterior``).

    A prior scale that is not given maximises the evidence (MacKay 1992; Bishop 2006, 3.5). The trace keeps the
    sufficient statistics, so that :meth:`bll_pyro.Fit.update` adds rows to a fit without reading the earlier ones again.

    Parameters
    ----------
    noise
        Treatment of a noise scale that the likelihood leaves unknown: ``noises.Integrated()`` (default),
        ``noises.Conjugate()`` or ``noises.Maximized()``.

    Raises
    ------
    TypeError
        If ``noise`` is none of these.
    """

    from_sums: ClassVar[bool] = True

    noise: NoiseTreatment = Integrated()

    def __post_init__(self) -> None:
        if not isinstance(self.noise, NoiseTreatment):
            raise TypeError(f"Exact(noise=...): expected e.g. bll.noises.Integrated(), got {self.noise!r}")

    def check(self, layer: LastLayer, num_outputs: int, num_columns: int) -> None:
        """Raise a ValueError unless the model is linear and Gaussian and its matrices fit in memory."""
        likelihood, prior = layer.likelihood, layer.prior
        if isinstance(likelihood, MultivariateGaussian):
            raise ValueError(
                "Exact: expected targets with independent noise, likelihoods.Gaussian, got MultivariateGaussian; use "
                "bll.Laplace(curvature=bll.curvatures.Full()), which is exact where covariance and prior scale are given, "
                "bll.SVI() or bll.NUTS()"
            )
        if not isinstance(likelihood, Gaussian) or not isinstance(prior, (Normal, PosteriorPrior)):
            wrong = likelihood if not isinstance(likelihood, Gaussian) else prior
            raise ValueError(
                f"Exact: expected likelihoods.Gaussian and priors.Normal, got {type(wrong).__name__}, for which the "
                f"posterior has no closed form; use {ALTERNATIVES}"
            )
        self._check_bias(layer)
        self._check_noise(likelihood, prior, num_outputs)
        # sums, eigenvectors and the workspace of the decomposition, and the weights for each value of the noise
        integrates = likelihood.known_noise is None and isinstance(self.noise, Integrated)
        num_components = NUM_NOISE_VALUES if integrates else 1
        num_bytes = 48 * num_columns**2 + 24 * num_components * num_outputs * num_columns
        if isinstance(prior, PosteriorPrior):
            independent = independent_outputs(prior.weights)
            num_bytes += 32 * num_columns**2 * (num_outputs if independent else num_outputs**2)
        if num_bytes > MAX_BYTES:
            raise ValueError(
                f"Exact: expected matrices that fit in {MAX_BYTES / 2**30:.0f} GiB, got {num_outputs} outputs x "
                f"{num_columns} columns, which take {num_bytes / 2**30:.1f} GiB; use bll.SVI(), fewer features, or for many "
                "targets of unknown noise Exact(noise=noises.Maximized())"
            )

    def _check_bias(self, layer: LastLayer) -> None:
        if layer.bias and (layer.bias_loc is not None or layer.raw_center):
            raise ValueError(
                "Exact: expected a bias centred at 0, got a layer with a centre (bias_loc, or from_linear); drop the centre "
                f"and give a wide bias_scale, or use {ALTERNATIVES}"
            )

    def _check_noise(self, likelihood: Gaussian, prior: Normal | PosteriorPrior, num_outputs: int) -> None:
        if likelihood.known_noise is not None:
            if type(self.noise) is not Integrated:
                raise ValueError(
                    f"Exact(noise={self.noise!r}): expected an unknown noise scale, got "
                    f"Gaussian(noise_scale={likelihood.noise_scale!r}); drop one of the two"
                )
            return
        if isinstance(prior, PosteriorPrior):
            raise ValueError(
                "Exact: expected a known noise scale with a posterior as the prior, got Gaussian() with unknown noise; "
                "add rows with fit.update(...) (exact), give noise_scale=..., or use bll.SVI()"
            )
        if isinstance(self.noise, Conjugate) and likelihood.noise_scale is not None:
            raise ValueError(
                "Exact(noise=Conjugate(...)): expected Gaussian() without a prior of the noise (Conjugate has one), "
                f"got {likelihood.noise_scale}; drop one of the two"
            )
        declared = elementwise(likelihood.sites((num_outputs,))["noise_scale"])
        if declared is None or not is_positive(declared):
            raise ValueError(
                "Exact: expected independent priors of the targets' noise scales, over positive numbers, got "
                f"{likelihood.noise_scale}; use HalfNormal, LogNormal, Gamma, ..., or {ALTERNATIVES}"
            )

    def run(
        self,
        layer: LastLayer,
        rows: DesignRows,
        target_shape: TargetShape,
        *,
        seed: int,
        validation: DesignRows | None = None,
    ) -> tuple[Posterior, Trace]:
        """Sum over the rows, then compute the posterior of these sums."""
        began = time.perf_counter()
        posterior, trace = self.solve(layer, rows, target_shape, sum_rows(rows))
        trace.wall_time = time.perf_counter() - began
        return posterior, trace

    def update(
        self, layer: LastLayer, rows: DesignRows, target_shape: TargetShape, trace: Trace
    ) -> tuple[Posterior, Trace]:
        """Posterior of the rows whose sums ``trace`` holds, together with ``rows``."""
        began = time.perf_counter()
        sums: SufficientStatistics = trace.statistics["sums"]
        posterior, new_trace = self.solve(layer, rows, target_shape, sums.to(rows.device) + sum_rows(rows))
        new_trace.wall_time = trace.wall_time + time.perf_counter() - began
        return posterior, new_trace

    def solve(
        self, layer: LastLayer, rows: DesignRows, target_shape: TargetShape, sums: SufficientStatistics
    ) -> tuple[Posterior, Trace]:
        """Posterior of given sums; from ``rows`` only the frame of these sums is used."""
        likelihood, prior, frame = layer.likelihood, layer.prior, rows.frame
        assert isinstance(likelihood, Gaussian)
        num_outputs = len(sums.target_mean)
        trace = Trace(statistics={"sums": replace(sums, root=None)})
        if isinstance(prior, PosteriorPrior):
            assert likelihood.known_noise is not None
            weights, log_evidence = condition(prior.weights, sums, likelihood.known_noise, layer.bias)
            trace.statistics["log_evidence"] = log_evidence
            latents = _latents(weights, frame.center)
            return GaussianPosterior(layer, frame, target_shape, num_outputs, latents=latents), trace
        assert isinstance(prior, Normal)
        noise, noise_prior = self._treatment(likelihood, target_shape)
        loc = torch.zeros(()) if prior.loc is None else prior.loc
        loc = loc.double().expand(num_outputs, frame.num_features)
        model, rotation = LinearGaussian.of(
            sums, loc, layer.bias_scale if layer.bias else None, noise.relative
        )
        search = PriorScale(model, noise, noise_prior, prior)
        prior_scale, learned = search.run(trace)
        components = noise.components(model, prior_scale, noise_prior)
        if likelihood.known_noise is None:
            _warn_without_noise(
                trace, model, (components.weights(model, prior_scale) * components.noise).sum(0)
            )
        if components.nodes is not None and components.nodes.error > 1e-6:
            trace.stop(
                f"the integral over the noise scale has an error of {components.nodes.error:.0e} nats; the prior of the noise "
                "may not be smooth: use a smooth one such as HalfNormal or LogNormal"
            )
        trace.statistics["log_evidence"] = float(components.log_evidence(model, prior_scale).sum())
        learned = {name: value.to(frame.center) for name, value in learned.items()}
        frame = replace(frame, rotation=rotation.to(frame.center))
        if components.nodes is not None:
            common = (layer, frame, target_shape, num_outputs, learned)
            return NoiseMixturePosterior(
                *common, model=model, noise_model=noise, prior_scale=prior_scale
            ), trace
        if likelihood.known_noise is None:
            point = components.noise[0]
            learned["noise_scale"] = (point if target_shape else point[0]).to(frame.center)
            layer = replace(layer, likelihood=replace(likelihood, noise_scale=tuple(point.tolist())))
        latents = _latents(model.given(components.noise, prior_scale), frame.center)
        return GaussianPosterior(layer, frame, target_shape, num_outputs, learned, latents=latents), trace

    def _treatment(
        self, likelihood: Gaussian, target_shape: TargetShape
    ) -> tuple[NoiseTreatment, NoisePrior]:
        if likelihood.known_noise is not None:
            scale = likelihood.known_noise.reshape(-1).tolist()
            return _Known(tuple(scale)), NoisePrior(torch.distributions.HalfNormal(1.0))
        declared = elementwise(likelihood.sites(target_shape)["noise_scale"])
        assert declared is not None
        return self.noise, self.noise.prior(declared)


@dataclass(frozen=True)
class PriorScale:
    """The prior scale of the weights: as given, or the maximum of the evidence."""

    model: LinearGaussian
    noise: NoiseTreatment
    noise_prior: NoisePrior
    prior: Normal

    def run(self, trace: Trace) -> tuple[Tensor, dict[str, Tensor]]:
        """Prior scale of each target ``[T]`` and the learned sites by name; records the search in the trace."""
        model, num = self.model, self.model.num_targets
        if self.prior.scale is not None:
            return torch.full((num,), float(self.prior.scale), dtype=torch.float64), {}
        path: list[tuple[Tensor, Tensor]] = []
        scanned: tuple[Tensor, Nodes] | None = None

        def log_evidence(log_scale: Tensor) -> Tensor:
            nonlocal scanned
            scale = log_scale.exp().expand(*log_scale.shape[:-1], num)
            near = None
            if scanned is not None:  # the rule of the nearest prior scale of the scan
                index = (scanned[0] - scale.detach().log()).abs().argmin(0)
                near = scanned[1][index * num + torch.arange(num)]
            components = self.noise.components(model, scale, self.noise_prior, near)
            if near is None and components.nodes is not None:
                scanned = scale.detach().log(), components.nodes
            value = components.log_evidence(model, scale)
            value = value if self.prior.per_output else value.sum(-1, keepdim=True)
            steps = log_scale.detach().exp(), value.detach()
            path.extend(zip(*(part.reshape(-1, part.shape[-1]) for part in steps), strict=True))
            return value

        center = (torch.ones(num) if model.relative else model.target_scale).double().log()
        center = center if self.prior.per_output else center.mean(0, keepdim=True)
        center = center - torch.tensor(model.feature_scale, dtype=torch.float64).log()
        found = maximize(log_evidence, center - LOG_PRIOR_RANGE, center + LOG_PRIOR_RANGE)
        scale = found.argument.exp()
        trace.statistics["scale_path"] = torch.stack([scale for scale, _ in path])
        trace.statistics["evidence_path"] = torch.stack([value.sum() for _, value in path])
        if bool(found.at_lower.any()):
            trace.notes.append(
                "the evidence is highest at the smallest prior scale: in these rows the features explain nothing of the targets"
            )
        if bool(found.at_upper.any()):
            trace.stop(
                f"the evidence increases without bound in the prior scale; tau was set to {scale.tolist()}: check the "
                "targets, or give a scale: priors.Normal(scale=1.0)"
            )
        return scale.expand(num).clone(), {"tau": scale if self.prior.per_output else scale[0]}


def _warn_without_noise(trace: Trace, model: LinearGaussian, noise: Tensor) -> None:
    noiseless = noise < MIN_NOISE * model.target_scale
    if bool(noiseless.any()):
        trace.stop(
            f"targets {noiseless.nonzero().flatten().tolist()} show no noise: look for copies of them among the "
            "features; with more features than rows use noises.Integrated(); or give noise_scale"
        )


def _latents(weights: gaussian.WeightGaussian, like: Tensor) -> gaussian.LatentGaussian:
    tensors: dict[str, Any] = {name: value.to(like) for name, value in weights.tensors.items()}
    return gaussian.LatentGaussian(type(weights)(**tensors), like.new_zeros(0), like.new_zeros(0))
