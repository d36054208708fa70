"""A fit as a plain ``torch.nn.Module``: from inputs to prediction, uncertainty and verdict.

Everything that decides the result is a buffer (weights, frame, quasi-random points, detector), so the module moves between
devices, and ``torch.export`` takes it as it is, with a batch dimension of any size. It computes by the same functions as
:meth:`Fit.predict`.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bll_pyro.checks import share
from bll_pyro.export.kinds import GraphRows, graph_outputs, prediction_kind
from bll_pyro.export.points import Points
from bll_pyro.ood import Detector, View
from bll_pyro.packing import pack, unpack
from bll_pyro.posterior import Posterior
from bll_pyro.prediction import Integration, Probit, QuasiMonteCarlo
from bll_pyro.prediction.base import Prediction
from bll_pyro.prediction.probit import refusal
from bll_pyro.scope import own_modes

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit

QUANTILES = (0.05, 0.5, 0.95)


def as_module(
    fit: Fit, *, integration: Integration | None = None, quantiles: tuple[float, ...] = QUANTILES
) -> PredictiveModule:
    """The fit as a module that needs neither Pyro nor this library's fit once it is exported.

    ``torch.export.export(as_module(fit), (inputs,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)`` gives a graph
    with the whole uncertainty in it; :meth:`Fit.export` writes it.

    Parameters
    ----------
    fit
        Any fit. Its backbone and its detector, where it has them, become part of the module.
    integration
        Points of the average over the posterior; :class:`bll_pyro.Probit` for latency.
    quantiles
        Probabilities of the quantiles of real values and counts; none with ``()``.

    Raises
    ------
    TypeError
        For an integration that the likelihood does not have, or a detector that is not made of numbers.
    """
    integration = QuasiMonteCarlo() if integration is None else integration
    if isinstance(integration, Probit) and prediction_kind(fit.layer.likelihood) == "values":
        raise TypeError(refusal(fit.layer.likelihood))
    return PredictiveModule(fit, integration, tuple(share(q, "quantiles", "export") for q in quantiles))


class PredictiveModule(nn.Module):
    """From inputs ``[N, ...]`` to a dictionary of ``[N, ...]``; all rows at once, so a batch should be small.

    =========================== =====================================================================================
    key                         value
    =========================== =====================================================================================
    probs                       class probabilities ``[N, C]``; of labels 0/1 the probability of 1, ``[N]`` or ``[N, T]``
    mean, scale                 of real values and counts: mean and standard deviation, ``[N]`` or ``[N, T]``
    quantiles                   their quantiles, ``[N, Q]`` or ``[N, T, Q]``
    total, aleatoric, epistemic nats or variances, ``[N]``, or ``[N, T]`` for T labels or values
    score, p_value, is_ood      ``[N]``, where the fit has a detector
    =========================== =====================================================================================
    """

    @own_modes(gradients=False)
    def __init__(self, fit: Fit, integration: Integration, quantiles: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = None
        if fit.backbone is not None:
            # a copy, which shares the tensors: the user's network keeps its modes
            shared = [*fit.backbone.parameters(), *fit.backbone.buffers()]
            self.backbone = copy.deepcopy(fit.backbone, {id(tensor): tensor for tensor in shared}).eval()
        self.integration, self.quantiles, self.recalibration = integration, quantiles, fit.recalibration
        self._posterior = fit.posterior
        parts: dict[str, Any] = {"state": fit.posterior.constants(), "detector": None}
        parts["given"] = _constants(self._posterior, integration)
        if fit.detector is not None:
            # scores take the default integration, as in the calibration
            parts["scored"] = _constants(self._posterior, QuasiMonteCarlo())
            parts["detector"] = _of_numbers(fit.detector)
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
        posterior = self._posterior.at(parts["state"])
        view = _Rows(features, posterior, self.recalibration, parts.get("scored"))
        found = graph_outputs(view.rows(self.integration, parts["given"]).predicted(), self.quantiles)
        detector: Detector | None = parts["detector"]
        if detector is None:
            return found
        score = detector.scores_of(view)
        ordered = detector.calibration_scores
        assert ordered is not None
        num_rows = len(ordered)
        as_strange = num_rows - torch.searchsorted(ordered, score.contiguous())
        p_value = (1 + as_strange).double() / (num_rows + 1)
        return found | {"score": score, "p_value": p_value, "is_ood": score.double() > parts["threshold"]}


class _Rows(View):
    """A view whose prediction is part of the graph."""

    def __init__(self, features: Tensor, posterior: Posterior, recalibration: Any, scored: Any) -> None:
        super().__init__(features, posterior, recalibration)
        self._scored = scored

    def rows(self, integration: Integration, given: dict[str, Any]) -> GraphRows:
        """The rows at the constants of an integration."""
        outputs = Points(given["outputs"], given["moving"]).on(self.outputs)
        return GraphRows(outputs, self.posterior, given["noise"], integration, self.recalibration)

    @cached_property
    def prediction(self) -> Prediction:
        """At the points of the default integration."""
        return self.rows(QuasiMonteCarlo(), self._scored).predicted()


def _constants(posterior: Posterior, integration: Integration) -> dict[str, Any]:
    """Points and draws of the noise, as ``predict`` would take them."""
    points = Points.of(posterior, integration.num_points, integration.seed)
    noise = posterior.noise(integration.num_points, integration.seed)
    by_row = {name: value[:, None] for name, value in noise.items()}
    return {"outputs": points.outputs, "moving": points.noise, "noise": by_row}


def _of_numbers(detector: Detector) -> Detector:
    """The detector, if it can be written down."""
    try:
        pack(detector, {}, "detector")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"export: expected a detector that is made of numbers, got {detector.score!r} ({error}); export "
            "fit.with_detector(None), or calibrate a detector with a score of bll.ood"
        ) from error
    return replace(detector)
