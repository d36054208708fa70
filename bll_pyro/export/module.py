"""A fit of classes as a plain ``torch.nn.Module``: from inputs to probabilities, uncertainty and verdict.

Everything that decides the result is a buffer (weights, frame, quasi-random points, detector), so the module moves between
devices, and ``torch.export`` takes it as it is, with a batch dimension of any size. It computes by the same functions as
:meth:`Fit.predict`.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bll_pyro.archive import pack, unpack
from bll_pyro.gaussian import OutputCoupled, OutputGaussian, noise_points, normal_points
from bll_pyro.likelihoods import Categorical, Ordinal
from bll_pyro.ood import Detector, View
from bll_pyro.posterior import GaussianPosterior
from bll_pyro.prediction import PredictiveTemperature, QuasiMonteCarlo
from bll_pyro.prediction.classes import decomposed
from bll_pyro.prediction.recalibration import averaged

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit


def as_module(fit: Fit, *, integration: QuasiMonteCarlo | None = None) -> PredictiveModule:
    """The fit as a module that needs neither Pyro nor this library's fit once it is exported.

    ``torch.export.export(as_module(fit), (inputs,), dynamic_shapes=({0: torch.export.Dim.AUTO},))`` gives a graph with
    the whole uncertainty in it; ``torch.export.save`` writes it.

    Parameters
    ----------
    fit
        A fit with ``Categorical`` or ``Ordinal`` and a Gaussian posterior. Its backbone and its detector, where it
        has them, become part of the module.
    integration
        Points of the average over the posterior.

    Raises
    ------
    TypeError
        For other likelihoods, or a posterior made of draws.
    """
    if not isinstance(fit.layer.likelihood, Categorical | Ordinal):
        raise TypeError(
            f"as_module: expected the Categorical or Ordinal likelihood, got {fit.layer.likelihood!r}; "
            "other likelihoods cannot be exported yet: use fit.predict"
        )
    if not isinstance(fit.posterior, GaussianPosterior):
        raise TypeError(
            f"as_module: expected a Gaussian posterior, got {type(fit.posterior).__name__}; fit with SVI and a Gaussian guide, "
            "or Laplace"
        )
    return PredictiveModule(fit, integration or QuasiMonteCarlo())


class PredictiveModule(nn.Module):
    """From inputs ``[N, ...]`` to a dictionary of ``[N, ...]``; all rows at once, so a batch should be small.

    =========================== ===========================================
    key                         value
    =========================== ===========================================
    probs                       class probabilities ``[N, K]``
    total, aleatoric, epistemic ``[N]``, nats
    score, p_value, is_ood      ``[N]``, where the fit has a detector
    =========================== ===========================================
    """

    def __init__(self, fit: Fit, integration: QuasiMonteCarlo) -> None:
        super().__init__()
        posterior = fit.posterior
        assert isinstance(posterior, GaussianPosterior)
        self.backbone = None
        if fit.backbone is not None:
            # a copy, which shares the tensors: the user's network keeps its modes
            shared = [*fit.backbone.parameters(), *fit.backbone.buffers()]
            self.backbone = copy.deepcopy(fit.backbone, {id(tensor): tensor for tensor in shared}).eval()
        recalibration = fit.recalibration
        self.temperature = (
            recalibration.temperature if isinstance(recalibration, PredictiveTemperature) else 1.0
        )
        self.recalibration = recalibration
        example, like = posterior.outputs(posterior.frame.center[None]), posterior.frame.center
        # outputs need the weights, and the noise where outputs depend on it
        is_coupled = isinstance(example, OutputCoupled)
        latents = posterior.latents.first(posterior.global_sites.num_noise if is_coupled else 0)
        given = example.given if isinstance(example, OutputCoupled) else example
        assert isinstance(given, OutputGaussian)
        num_points, seed = integration.num_points, integration.seed
        points = normal_points(num_points, given.compact().noise_dim, seed)
        moving = noise_points(num_points, latents.num_globals, posterior.num_outputs, seed)
        parts: dict[str, Any] = {
            "posterior": replace(posterior, latents=latents),
            "points": points.to(like)[:, None, :],
            "noise_points": moving.to(like),
            "noise": {name: value[:, None] for name, value in posterior.noise(num_points, seed).items()},
            "detector": None if fit.detector is None else replace(fit.detector),
        }
        if fit.detector is not None:
            parts["threshold"] = torch.tensor(fit.detector.threshold, dtype=torch.float64)
        tensors: dict[str, Tensor] = {}
        self._plain = {name: pack(value, tensors, name) for name, value in parts.items()}
        self._names = {path: f"tensor_{i}" for i, path in enumerate(tensors)}
        for path, value in tensors.items():
            self.register_buffer(self._names[path], value)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Posterior predictive, and the detector's verdict."""
        features = inputs if self.backbone is None else self.backbone(inputs)
        tensors = {path: getattr(self, name) for path, name in self._names.items()}
        parts = {name: unpack(plain, tensors) for name, plain in self._plain.items()}
        posterior: GaussianPosterior = parts["posterior"]
        view = View(features, posterior, self.recalibration)
        outputs, likelihood = view.outputs, posterior.layer.likelihood
        given = outputs.given if isinstance(outputs, OutputCoupled) else outputs
        assert isinstance(given, OutputGaussian)
        draws = given.compact().at(parts["points"]) if given.noise_dim else given.mean[None]
        if isinstance(outputs, OutputCoupled):
            draws = outputs.moved(draws, parts["noise_points"])
        probs, expected = averaged(likelihood.class_probs(draws, **parts["noise"]), self.temperature)
        prediction = decomposed(probs, expected, likelihood)
        found = {name: getattr(prediction, name) for name in ("probs", "total", "aleatoric", "epistemic")}
        detector: Detector | None = parts["detector"]
        if detector is None:
            return found
        view.prediction = prediction
        score = detector.scores_of(view)
        ordered = detector.calibration_scores
        assert ordered is not None
        num_rows = len(ordered)
        as_strange = num_rows - torch.searchsorted(ordered, score.contiguous())
        p_value = (1 + as_strange).double() / (num_rows + 1)
        return found | {"score": score, "p_value": p_value, "is_ood": score.double() > parts["threshold"]}
