"""``Fit``: the one result, with what it can do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from bll_pyro import artefact, packing, priors, sharing
from bll_pyro.declaration import written
from bll_pyro.features.columns import NO_COLUMNS, Columns, bundled
from bll_pyro.features.data import read
from bll_pyro.features.recorded import Recorded
from bll_pyro.features.sources import Source
from bll_pyro.features.store import Features
from bll_pyro.features.tables import names_after
from bll_pyro.fitting.description import lines_of
from bll_pyro.fitting.drawing import draw
from bll_pyro.fitting.labelled import LabelledRows, labelled_rows
from bll_pyro.fitting.reading import feature_batches
from bll_pyro.fitting.updating import update
from bll_pyro.inference import Inference, Trace
from bll_pyro.inference.training_data import check_exposure
from bll_pyro.layer import LastLayer
from bll_pyro.observation import collected
from bll_pyro.ood import Detector, View
from bll_pyro.posterior import Posterior
from bll_pyro.prediction import Integration, Prediction, QuasiMonteCarlo, Recalibration, predict
from bll_pyro.prediction.base import gathered
from bll_pyro.scope import own_modes
from bll_pyro.summary import Summary

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, eq=False)
class Fit(Summary):
    """A fitted Bayesian last layer.

    Parameters
    ----------
    layer
        The declaration, in the user's units; its likelihood has the classes of the training targets.
    posterior
        Posterior of weights and outputs.
    inference, seed, num_rows
        How it was made, and the number N of training rows.
    trace
        What happened on the way.
    backbone
        Module from inputs to features; None where inputs are features.
    store
        Folder for extracted features, reused by every later call on the same data; None keeps none.
    recalibration
        What was found on rows that were not fitted, by :func:`bll_pyro.fit` on those that it keeps or by
        :func:`bll_pyro.calibrate`; it changes predictions and not the posterior.
    detector
        A calibrated detector, whose verdict comes with every prediction; see :meth:`with_detector`.
    feature_names
        Names of the columns of the training rows, where these came in a data frame; those of ``fit.head`` are of the features.
        Later frames are brought into their order, and arrays are taken as they are.
    recorded
        State of the backbone when it was fitted, loaded or first used, to warn of one that was trained on later; not saved.
    """

    layer: LastLayer
    posterior: Posterior
    inference: Inference
    trace: Trace
    seed: int
    num_rows: int
    backbone: nn.Module | None = None
    store: Path | None = None
    recalibration: Recalibration | None = None
    detector: Detector | None = None
    feature_names: tuple[str, ...] | None = None
    recorded: Recorded | None = field(default=None, repr=False)

    @own_modes()
    def predict(
        self,
        inputs: Any,
        *,
        exposure: Any = None,
        integration: Integration | None = None,
        batch_size: int = 256,
    ) -> Prediction:
        """Posterior predictive for inputs (arrays, tensors, a data frame, a dataset, a loader, or a ``Features`` store).

        ``integration`` is ``bll.QuasiMonteCarlo(num_points=256)`` by default; ``bll.Probit()`` is a cheap approximation for
        classes and labels. Works in batches: beyond the prediction itself, memory does not grow with the number of rows.
        ``exposure``: of the rows of a fit of counts, ``[N]``; without it, of 1. Targets and weights that come along change
        nothing. With a detector its verdict is in ``.ood``; its scores take the default integration, as in its calibration.
        """
        inputs = read(bundled(inputs, None, exposure), need_targets=False, what="inputs")
        columns, scores = self.columns(inputs), []

        def predictions() -> Iterator[Prediction]:
            start = 0
            for features, _ in self.feature_batches(inputs, batch_size):
                exposed = columns[start : start + len(features)].exposure
                part = predict(self.posterior, features, integration, exposed, self.recalibration)
                start += len(features)
                if self.detector is not None:
                    view = View(features, self.posterior, self.recalibration)
                    if integration in (None, QuasiMonteCarlo()) and exposed is None:
                        view.prediction = part
                    with torch.no_grad():
                        scores.append(self.detector.scores_of(view))
                yield part

        prediction = gathered(predictions(), inputs.num_rows)
        if self.detector is None and not inputs.shuffled and inputs.table is None:
            return prediction
        verdict = None if self.detector is None else self.detector.judge(torch.cat(scores))
        return replace(prediction, ood=verdict, shuffled=inputs.shuffled, table=inputs.table)

    def draw(
        self, inputs: Any, num_draws: int = 100, *, seed: int = 0, exposure: Any = None, batch_size: int = 256
    ) -> Float[Tensor, "S N ..."]:
        """Draws of ``E[y | x, w]``, the mean of the targets under one draw of the weights, in the user's units.

        ``[num_draws, N]``, ``[num_draws, N, T]`` for T targets, ``[num_draws, N, C]`` probabilities of classes. A draw is one
        function of the inputs, for plots and Thompson sampling: its weights are the same for all rows, and for all inputs
        given the same seed. The mean over draws is that of :meth:`predict`. A :class:`NoiseFactor` changes no means; under a
        predictive temperature all draws of a row are tilted alike, so that they average to it (:mod:`bll_pyro.prediction.tilt`).
        """
        return draw(self, inputs, num_draws, seed, exposure, batch_size)

    def lines(self) -> dict[str, str]:
        """What is printed of the fit, by name."""
        return lines_of(self)

    def with_detector(self, detector: Detector | None) -> Self:
        """The same fit with a detector that was calibrated on it (None: without); it is saved along.

        Raises
        ------
        ValueError
            When the detector was not calibrated, or on another fit.
        """
        if detector is None:
            return replace(self, detector=None)
        if not isinstance(detector, Detector):
            raise TypeError(f"with_detector: expected a bll.ood.Detector, got {type(detector).__name__}")
        return replace(self, detector=detector.bound(self))

    def with_recalibration(self, recalibration: Recalibration | None) -> Self:
        """The same fit with another recalibration (None: without); ValueError if it has a detector, which belongs to it."""
        if not isinstance(recalibration, Recalibration | None):
            raise TypeError(
                f"with_recalibration: expected a PredictiveTemperature, a NoiseFactor or None, got {type(recalibration).__name__}"
            )
        if self.detector is not None and recalibration != self.recalibration:
            raise ValueError(
                "with_recalibration: expected a fit without a detector, got one with a detector, which another recalibration "
                "would invalidate; take it off by with_detector(None), and calibrate it anew"
            )
        return replace(self, recalibration=recalibration)

    @property
    def declaration(self) -> dict[str, Any]:
        """Layer, inference and seed as plain data, in the form of a saved fit and of the YAML of an experiment."""
        return dict(written({"layer": self.layer, "inference": self.inference, "seed": self.seed}))

    @property
    def fingerprint(self) -> str:
        """sha256 of posterior and recalibration: what was calibrated on this fit is for this fit alone."""
        alone = None if self.recalibration is None else self.recalibration.alone
        return packing.fingerprint([self.posterior, alone])

    def to_datatree(self, inputs: Any, targets: Any = None, **options: Any) -> xarray.DataTree:
        """Draws, log likelihood and data as an ``xarray.DataTree`` for ArviZ; see :func:`bll_pyro.datatree.to_datatree`."""
        from bll_pyro.datatree import to_datatree

        return to_datatree(self, inputs, targets, **options)

    @own_modes()
    def save(self, path: str | Path, *, graph: bool = False, inputs: Any = None) -> None:
        """Write the fit (safetensors and JSON, no pickle, no training rows); see :func:`bll_pyro.load`.

        Parameters
        ----------
        path
            One file, where the name ends in ``.bll``; else a folder.
        graph
            Whether the graph of :meth:`export` goes along, for :func:`bll_pyro.runtime.load`, which needs onnxruntime alone.
        inputs
            For the graph of a fit with a backbone: a few rows, as in :meth:`export`.
        """
        names = ("layer", "posterior", "inference", "trace", "seed", "num_rows", "recalibration", "detector")
        parts = {name: getattr(self, name) for name in names}
        if self.feature_names is not None:  # so that earlier versions read all other fits
            parts["feature_names"] = self.feature_names
        made = None
        if graph:
            from bll_pyro.export import graph_bytes

            made = graph_bytes(self, inputs=inputs)
        artefact.save(path, parts, self.backbone, made)

    def export(self, path: str | Path, **options: Any) -> None:
        """Write the prediction as one graph, ``.onnx`` or ``.pt2``; see :func:`bll_pyro.export.write_graph`."""
        from bll_pyro.export import write_graph

        write_graph(self, path, **options)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Put the fit into a repository of the Hugging Face Hub, with a model card; see :func:`bll_pyro.sharing.push`."""
        return sharing.push(self, repo, **options)

    def update(self, data: Any) -> Self:
        """The fit of the earlier rows and of new ``data`` (exact inference): equal to one fit on all rows.

        The earlier rows are not needed. Centre and scale stay those of the first fit; learned scales and noise are
        found anew for all rows. A recalibration was of the earlier posterior, and is dropped with a warning.

        Raises
        ------
        ValueError
            If the fit has a detector, which would no longer hold its rate of false alarms.
        """
        if self.detector is not None:
            raise ValueError(
                "update: expected a fit without a detector, got one with a detector, which would be of the earlier posterior; "
                "update fit.with_detector(None), then calibrate a detector anew"
            )
        return replace(self, **update(self, data))

    def as_prior(self) -> priors.Posterior:
        """The posterior of weight and bias as the prior of other data (for every Gaussian posterior).

        It brings centre and scale of this fit along. The noise of a likelihood keeps its declared prior.
        """
        return self.posterior.as_prior()

    @property
    def head(self) -> Self:
        """The same fit without its backbone, for inputs that already are features."""
        names = names_after(self.backbone, self.feature_names)
        return replace(self, backbone=None, store=None, feature_names=names)

    @property
    def classes(self) -> NDArray[Any] | None:
        """Labels of the classes ``[C]``, of the type that they came in; None where these are the numbers from 0 to C - 1."""
        coding = self.layer.likelihood.coding
        return None if coding is None else coding.array.copy()

    @property
    def elbo(self) -> float:
        """ELBO of the training targets, in the user's units, at the end, nats (log joint density for MAP)."""
        return self._given(self.trace.final_elbo, "elbo", "SVI")

    @property
    def log_evidence(self) -> float:
        """Log evidence (marginal likelihood) of the training targets, in the user's units, nats."""
        return self._given(self.trace.log_evidence, "log_evidence", "Exact and Laplace")

    @own_modes()
    def features(self, inputs: Any, *, batch_size: int = 256) -> Features:
        """Features ``[N, D]`` of inputs, through the backbone (and the store) where there is one; widths are checked.

        Targets that come along are kept, except for labels that are no numbers.
        """
        source = read(inputs, need_targets=False, what="inputs")
        parts = collected("features", source.num_rows, self.feature_batches(source, batch_size))
        features, targets = zip(*parts, strict=True)
        has_none = targets[0] is None or source.classes is not None
        made = Features.from_tensors(torch.cat(features), None if has_none else torch.cat(targets))
        made.feature_names = names_after(self.backbone, self.feature_names)
        return made

    def rows(
        self, inputs: Any, targets: Any = None, *, what: str = "data", batch_size: int = 256
    ) -> LabelledRows:
        """Rows with targets, together in any form that :func:`bll_pyro.fit` takes or as two arguments, read once and checked."""
        return labelled_rows(self, inputs, targets, what, batch_size)

    def columns(self, source: Source) -> Columns:
        """Weights and exposures of rows that were read, checked against the likelihood."""
        if source.columns is not NO_COLUMNS:
            check_exposure(self.layer, source.columns, tuple(self.posterior.target_shape))
        return source.columns

    def feature_batches(self, inputs: Any, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Features ``[n, D]`` and targets of inputs, batch by batch; :meth:`features` joins them."""
        return feature_batches(self, inputs, batch_size)

    def _given(self, value: float | None, name: str, owner: str) -> float:
        if value is None:
            raise AttributeError(f"{name} is given by {owner}, not by {type(self.inference).__name__}")
        return value
