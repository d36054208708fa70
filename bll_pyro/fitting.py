"""``fit``: the one entry; ``Fit``: the one result."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from bll_pyro import archive, priors
from bll_pyro.features.columns import NO_COLUMNS, Columns, Data
from bll_pyro.features.data import check_finite, read
from bll_pyro.features.extraction import extract
from bll_pyro.features.forward import compute_features
from bll_pyro.features.freezing import frozen
from bll_pyro.features.store import Features
from bll_pyro.inference import SVI, Inference, Trace
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.standardization import make_frame
from bll_pyro.layer import LastLayer
from bll_pyro.ood import Detector, View
from bll_pyro.posterior import Posterior
from bll_pyro.prediction import Integration, Prediction, QuasiMonteCarlo, Recalibration, predict
from bll_pyro.prediction.base import gathered
from bll_pyro.scope import isolated

if TYPE_CHECKING:
    import xarray

PREDICTION_ROWS = 2048  # a batch of 8,192 leaves the cache between one step and the next


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted Bayesian last layer.

    Parameters
    ----------
    layer
        The declaration, in the user's units.
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
        What :func:`bll_pyro.calibrate` found on held-out rows; it changes predictions and not the posterior.
    detector
        A calibrated detector, whose verdict comes with every prediction; see :meth:`with_detector`.
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

    def predict(
        self,
        inputs: Any,
        *,
        exposure: Any = None,
        integration: Integration | None = None,
        batch_size: int = 256,
    ) -> Prediction:
        """Posterior predictive for inputs (arrays, tensors, a dataset, a loader, or a ``Features`` store).

        ``integration`` is ``bll.QuasiMonteCarlo(num_points=256)`` by default; ``bll.Probit()`` is a cheap approximation for
        classes and labels. Works in batches: beyond the prediction itself, memory does not grow with the number of rows.
        ``exposure``: of the rows of a fit of counts, ``[N]``; without it, of 1. With a detector its verdict is in ``.ood``;
        the detector's scores always take the default integration, as in its calibration.
        """
        inputs = bundled(inputs, None, exposure)
        columns, scores = self.columns(inputs), []

        def predictions() -> Iterator[Prediction]:
            start = 0
            for features, _ in self._features(inputs, batch_size):
                exposed = columns[start : start + len(features)].exposure
                part = predict(self.posterior, features, integration, exposed, self.recalibration)
                start += len(features)
                if self.detector is not None:
                    view = View(features, self.posterior, self.recalibration)
                    if integration in (None, QuasiMonteCarlo()) and exposed is None:
                        view.prediction = part
                    with torch.no_grad():
                        scores.append(self.detector.score.of(view))
                yield part

        prediction = gathered(predictions())
        if self.detector is None:
            return prediction
        return replace(prediction, ood=self.detector.judge(torch.cat(scores)))

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

    @property
    def fingerprint(self) -> str:
        """sha256 of posterior and recalibration: what was calibrated on this fit is for this fit alone."""
        return archive.fingerprint([self.posterior, self.recalibration])

    def to_datatree(self, inputs: Any, targets: Any = None, **options: Any) -> xarray.DataTree:
        """Draws, log likelihood and data as an ``xarray.DataTree`` for ArviZ; see :func:`bll_pyro.datatree.to_datatree`."""
        from bll_pyro.datatree import to_datatree

        return to_datatree(self, inputs, targets, **options)

    def save(self, path: str | Path) -> None:
        """Write the fit into a folder (safetensors and JSON, no pickle, no training rows); see :func:`bll_pyro.load`."""
        names = ("layer", "posterior", "inference", "trace", "seed", "num_rows", "recalibration", "detector")
        archive.save_parts(path, {name: getattr(self, name) for name in names}, self.backbone)

    def update(self, data: Any) -> Self:
        """The fit of the earlier rows and of new ``data`` (exact inference): equal to one fit on all rows.

        The earlier rows are not needed. Centre and scale stay those of the first fit; learned scales and noise are
        found anew for all rows.
        """
        if self.detector is not None or self.recalibration is not None:
            raise ValueError(
                "update: expected a fit as it was fitted, got one with a detector or a recalibration, which would be of the "
                "earlier posterior; update first, then calibrate anew"
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
        return replace(self, backbone=None, store=None)

    @property
    def elbo(self) -> float:
        """ELBO of the training targets, in the user's units, at the end, nats (log joint density for MAP)."""
        return self._statistic("elbo", "SVI")

    @property
    def log_evidence(self) -> float:
        """Log evidence (marginal likelihood) of the training targets, in the user's units, nats."""
        return self._statistic("log_evidence", "Exact and Laplace")

    def features(self, inputs: Any, *, need_targets: bool = False, batch_size: int = 256) -> Features:
        """Features ``[N, D]`` of inputs, through the backbone (and the store) where there is one; widths are checked."""
        parts = list(self._features(inputs, batch_size, need_targets))
        targets = [t for _, t in parts if t is not None]
        return Features.from_tensors(
            torch.cat([h for h, _ in parts]), torch.cat(targets) if targets else None
        )

    def columns(self, data: Any) -> Columns:
        """Weights and exposures of data, checked against the likelihood."""
        if not isinstance(data, Data):
            return NO_COLUMNS
        columns = read(data, need_targets=False, what="inputs").columns
        check_exposure(self.layer, columns, tuple(self.posterior.target_shape))
        return columns

    def _features(
        self, inputs: Any, batch_size: int, need_targets: bool = False
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        if self.backbone is None:
            yield from self._checked(
                read(inputs, need_targets=need_targets, what="inputs").batches(PREDICTION_ROWS)
            )
        elif self.store is not None:
            stored = extract(self.backbone, inputs, store=self.store, batch_size=batch_size)
            yield from self._checked(stored.batches(PREDICTION_ROWS))
        else:
            yield from self._checked(self._backbone_batches(inputs, batch_size))

    def _backbone_batches(self, inputs: Any, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        assert self.backbone is not None
        with isolated(), frozen(self.backbone), torch.no_grad():
            for batch, targets in read(inputs, need_targets=False, what="inputs").batches(batch_size):
                yield compute_features(self.backbone, batch), targets

    def _checked(
        self, batches: Iterator[tuple[Tensor, Tensor | None]]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        for features, targets in batches:
            self._check(features)
            yield features if features.is_floating_point() else features.float(), targets

    def _check(self, features: Tensor) -> None:
        expected = self.posterior.frame.num_features
        if features.dim() != 2 or features.shape[1] != expected:
            remedy = "use the features that the fit was made with"
            if self.backbone is None and features.dim() > 2:
                remedy = "this fit has no backbone: pass features, or fit with backbone=..."
            raise ValueError(
                f"inputs: expected features of shape [N, {expected}], got {list(features.shape)}; {remedy}"
            )
        check_finite(features, "inputs")

    def _statistic(self, name: str, owner: str) -> float:
        value = self.trace.statistics.get(name)
        if value is None:
            raise AttributeError(f"{name} is given by {owner}, not by {type(self.inference).__name__}")
        return float(value)


def fit(
    layer: LastLayer,
    data: Any,
    backbone: nn.Module | None = None,
    inference: Inference | None = None,
    *,
    sample_weight: Any = None,
    exposure: Any = None,
    seed: int = 0,
    validation_data: Any = None,
    store: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 256,
) -> Fit:
    """Fit a Bayesian last layer.

    Parameters
    ----------
    layer
        The declaration: prior x likelihood.
    data
        A pair ``(inputs, targets)`` of arrays or tensors, a torch ``Dataset`` or ``DataLoader``, or a ``Features``
        store. Inputs are features ``[N, D]`` where there is no backbone.
    backbone
        Module from inputs to features ``[N, D]``. Frozen (evaluation mode, nothing of it changes) unless the inference
        trains it along; then a copy is trained, which the fit holds.
    inference
        How to get from declaration and data to a posterior; by default ``SVI()``.
    sample_weight, exposure
        A weight, and for counts an exposure, for each row ``[N]``; short for ``bll.Data(data, sample_weight, exposure)``.
    seed
        Same seed, same fit. The caller's random state is not touched.
    validation_data
        Like ``data``; used for early stopping where the inference knows it.
    store
        Folder for extracted features; with it the backbone runs once a row over fit, predict and tree.
    device
        Where to compute; by default where the backbone lies, else the CPU.
    batch_size
        Rows at a time through the backbone.
    """
    inference = SVI() if inference is None else inference
    _check_types(layer, backbone, inference)
    data = bundled(data, sample_weight, exposure)
    columns, held_out_columns = _check_before_work(layer, data, "data", training=True), NO_COLUMNS
    if validation_data is not None:
        held_out_columns = _check_before_work(layer, validation_data, "validation_data")
    folder = None if store is None else Path(store)
    stage = inference
    if inference.trains_backbone:
        if layer.prior.frame is not None:
            raise ValueError(
                f"{type(layer.prior).__name__}: expected frozen features, in whose coordinates the prior is, got "
                "a backbone to train along; leave backbone_learning_rate at None"
            )
        if backbone is None:
            raise ValueError(
                "expected a backbone to train along, got none; pass fit(..., backbone=...) or freeze it"
            )
        backbone = copy.deepcopy(
            backbone
        )  # the caller's network, and earlier fits that hold it, stay as they are
        posterior, trace = inference.train_backbone(layer, backbone, data, seed, validation_data, device)
        if posterior is not None:
            num_rows = read(data, need_targets=True).num_rows
            _in_user_units(trace, posterior, columns.total_weight(num_rows))
            return Fit(layer, posterior, inference, trace, seed, num_rows, backbone, folder)
        stage = inference.on_features()

    def prepare(rows: Any) -> Features:
        return _feature_store(backbone, rows, folder, device, batch_size)

    with isolated(seed):
        features = prepare(data)
        held_out = None if validation_data is None else prepare(validation_data)
    posterior, final_trace = fit_features(
        layer, features, stage, seed, held_out, device, columns, held_out_columns
    )
    if inference.trains_backbone:
        _in_user_units(trace, posterior, columns.total_weight(len(features)))
        final_trace.statistics["joint"] = trace
    return Fit(layer, posterior, inference, final_trace, seed, len(features), backbone, folder)


def load(path: str | Path, *, backbone: nn.Module | None = None, head_only: bool = False) -> Fit:
    """Read a fit that :meth:`Fit.save` wrote.

    Parameters
    ----------
    path
        The folder.
    backbone
        A module of the same architecture as the saved backbone, to be filled with the saved weights. timm backbones are
        rebuilt by themselves; other code is never stored, so other modules have to be given.
    head_only
        Leave the backbone out: the fit then takes features.

    Raises
    ------
    ValueError
        When a file is missing, cut or altered, or the backbone does not fit.
    """
    return Fit(**archive.load_parts(path, backbone=backbone, head_only=head_only))


def fit_features(
    layer: LastLayer,
    features: Features,
    inference: Inference,
    seed: int = 0,
    validation: Features | None = None,
    device: str | torch.device | None = None,
    columns: Columns = NO_COLUMNS,
    validation_columns: Columns = NO_COLUMNS,
) -> tuple[Posterior, Trace]:
    """Fit on features: make the frame of the training rows, bring the declaration into its units, run the inference."""
    targets = _targets(layer, features)
    layer.likelihood.check_training(targets)
    target_shape = tuple(_raw_targets(features).shape[1:]) if not layer.likelihood.is_discrete else ()
    check_exposure(layer, columns, target_shape)
    num_outputs = layer.likelihood.num_outputs(target_shape)
    layer.prior.check((num_outputs, features.num_features))
    inference.check(layer, num_outputs, features.num_features + int(layer.bias))
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    with isolated(seed, dtype):
        frame = make_frame(layer, features, targets, inference.rotates(layer), dtype, columns)
        inside = layer.in_frame(frame)
        rows = DesignRows(features, targets, frame, device or "cpu", columns)
        held_out = None
        if validation is not None:
            held_out_targets = _targets(layer, validation)
            held_out = DesignRows(validation, held_out_targets, frame, device or "cpu", validation_columns)
        posterior, trace = inference.run(inside, rows, target_shape, seed=seed, validation=held_out)
    _in_user_units(trace, posterior, rows.total_weight)
    return posterior, trace


def update(fit: Fit, data: Any) -> dict[str, Any]:
    """What changes in a fit when it has seen ``data`` too: posterior, trace and number of rows."""
    earlier = fit.posterior
    features = fit.features(data, need_targets=True)
    targets = _targets(fit.layer, features)
    target_shape = tuple(_raw_targets(features).shape[1:]) if not fit.layer.likelihood.is_discrete else ()
    if target_shape != tuple(earlier.target_shape):
        raise ValueError(
            f"update: expected targets of the shape of the fit, {['N', *earlier.target_shape]}, got "
            f"{['N', *target_shape]}; reshape them"
        )
    # without the axes that the inference chose itself; those of a prior belong to its coordinates
    frame = earlier.frame if fit.layer.prior.frame is not None else replace(earlier.frame, rotation=None)
    with isolated(fit.seed, frame.center.dtype):
        inside = fit.layer.in_frame(frame)
        rows = DesignRows(features, targets, frame, frame.center.device, fit.columns(data))
        posterior, trace = fit.inference.update(inside, rows, target_shape, fit.trace)
    num_rows = fit.num_rows + len(features)
    _in_user_units(trace, posterior, trace.statistics["sums"].weight)
    return {"posterior": posterior, "trace": trace, "num_rows": num_rows}


def _in_user_units(trace: Trace, posterior: Posterior, num_rows: float) -> None:
    """Bring log densities of N targets (by weight) from the standardised scale to the user's: ``- N sum_t log scale_t``."""
    shift = num_rows * float(posterior.frame.target_scale.double().log().sum())
    trace.elbo = None if trace.elbo is None else trace.elbo - shift
    for name in ("elbo", "log_evidence", "evidence_path"):
        if name in trace.statistics:
            trace.statistics[name] = trace.statistics[name] - shift


def _check_types(layer: Any, backbone: Any, inference: Any) -> None:
    if not isinstance(layer, LastLayer):
        raise TypeError(f"layer: expected bll.LastLayer(likelihood=...), got {type(layer).__name__}")
    if not isinstance(inference, Inference):
        raise TypeError(f"inference: expected an inference such as bll.SVI(), got {type(inference).__name__}")
    if backbone is not None and not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone: expected a torch.nn.Module or None, got {type(backbone).__name__}")


def bundled(data: Any, sample_weight: Any, exposure: Any) -> Any:
    """Data with the weights and exposures that came beside it."""
    if sample_weight is None and exposure is None:
        return data
    if isinstance(data, Data):
        raise ValueError(
            "expected weights and exposures in one place, got a bll.Data and sample_weight or exposure beside it; put all into "
            "bll.Data(rows, sample_weight=..., exposure=...)"
        )
    return Data(data, sample_weight, exposure)


def check_exposure(layer: LastLayer, columns: Columns, target_shape: tuple[int, ...] | None = None) -> None:
    """Only counts have an exposure: one for a row, or one for each of its counts."""
    if columns.exposure is None:
        return
    if not layer.likelihood.is_count:
        raise ValueError(
            f"exposure: expected a likelihood of counts (Poisson, NegativeBinomial), got {type(layer.likelihood).__name__}; "
            "leave it out, or divide the targets by it"
        )
    width, num_targets = columns.exposure.shape[1], None if target_shape is None else math.prod(target_shape)
    if num_targets is not None and width not in (1, num_targets):
        raise ValueError(
            f"exposure: expected shape [N] or [N, {num_targets}], one for each count, got [N, {width}]; reshape it"
        )


def _check_before_work(layer: LastLayer, data: Any, what: str, training: bool = False) -> Columns:
    """Check what is in memory before the backbone runs; what a dataset makes on the way is checked when it is there."""
    source = read(data, need_targets=True, what=what, min_rows=2)
    whole, target_shape = source.tensors(), None
    if whole is not None:
        inputs, targets = whole
        assert targets is not None
        checked = layer.likelihood.check_targets(targets)
        if training:
            layer.likelihood.check_training(checked)
        check_finite(inputs, f"inputs of {what}")
        target_shape = tuple(targets.shape[1:])
    check_exposure(layer, source.columns, target_shape)
    return source.columns


def _feature_store(
    backbone: nn.Module | None, data: Any, store: Path | None, device: Any, batch_size: int
) -> Features:
    data = data.rows if isinstance(data, Data) else data
    if isinstance(data, Features) and backbone is None:
        return data
    source = read(data, need_targets=True, min_rows=2)
    whole = source.tensors()
    if backbone is None and store is None and whole is not None:
        inputs, targets = whole
        if inputs.dim() != 2:
            raise ValueError(
                f"inputs: expected features of shape [N, D], got {list(inputs.shape)}; "
                "pass backbone=... for other inputs, or reshape with inputs.flatten(1)"
            )
        return Features.from_tensors(inputs if inputs.is_floating_point() else inputs.float(), targets)
    return extract(backbone, data, store=store, batch_size=batch_size, device=device)


def _raw_targets(features: Features) -> Tensor:
    if features.targets is None:
        raise ValueError("data: expected inputs and targets, got inputs alone; pass (inputs, targets)")
    return features.targets


def _targets(layer: LastLayer, features: Features) -> Tensor:
    for batch, _ in features.batches(65_536):
        check_finite(batch, "features")
    return layer.likelihood.check_targets(_raw_targets(features))
