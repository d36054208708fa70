"""A fit of classes as a plain ``torch.nn.Module``: from inputs to probabilities, uncertainty and verdict.

Everything that decides the result is a buffer (weights, frame, quasi-random points, detector), so the module moves between
devices, and ``torch.export`` takes it as it is, with a batch dimension of any size. It computes by the same functions as
:meth:`Fit.predict`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bll_pyro.archive import pack, unpack
from bll_pyro.gaussian import OutputGaussian, normal_points
from bll_pyro.likelihoods import Categorical
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
        A fit with ``Categorical`` and a Gaussian posterior. Its backbone and its detector, where it
        has them, become part of the module.
    integration
        Points of the average over the posterior.

    Raises
    ------
    TypeError
        For other likelihoods, or a posterior made of draws.
    """
    if not isinstance(fit.layer.likelihood, Categorical):
        raise TypeError(
            f"as_module: expected the Categorical likelihood, got {fit.layer.likelihood!r}; "
            "others are not exported yet: use fit.predict"
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
        self.backbone = fit.backbone
        if self.backbone is not None:
            self.backbone.eval()
        recalibration = fit.recalibration
        self.temperature = (
            recalibration.temperature if isinstance(recalibration, PredictiveTemperature) else 1.0
        )
        self.recalibration = recalibration
        # outputs need no more than the marginal of the weights
        marginal = replace(
            posterior,
            latents=replace(posterior.latents, weights=posterior.latents.marginal_weights(), coupling=None),
        )
        example = posterior.outputs(posterior.frame.center[None])
        assert isinstance(example, OutputGaussian)  # Categorical has no noise to couple to
        points = normal_points(integration.num_points, example.compact().noise_dim, integration.seed)
        parts: dict[str, Any] = {
            "posterior": marginal,
            "points": points.to(posterior.frame.center)[:, None, :],
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
        assert isinstance(outputs, OutputGaussian)
        draws = outputs.compact().at(parts["points"]) if outputs.noise_dim else outputs.mean[None]
        probs, expected = averaged(likelihood.class_probs(draws), self.temperature)
        prediction = decomposed(probs, expected, likelihood)
        found = {name: getattr(prediction, name) for name in ("probs", "total", "aleatoric", "epistemic")}
        detector: Detector | None = parts["detector"]
        if detector is None:
            return found
        view.prediction = prediction
        score = detector.score.of(view)
        ordered = detector.calibration_scores
        assert ordered is not None
        num_rows = len(ordered)
        as_strange = num_rows - torch.searchsorted(ordered, score.contiguous())
        p_value = (1 + as_strange).double() / (num_rows + 1)
        return found | {"score": score, "p_value": p_value, "is_ood": score.double() > parts["threshold"]}
