"""``fit``: the one entry."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bll_pyro.checkpoint.folder import Checkpoint, opened
from bll_pyro.checks import device as check_device
from bll_pyro.features.columns import bundled
from bll_pyro.features.random_fourier import RandomFeatures, RandomFourierBackbone
from bll_pyro.features.recorded import Recorded
from bll_pyro.files import user_path
from bll_pyro.fitting.calibration import (
    AUTOMATIC,
    Aside,
    cross_fitted,
    recalibrated,
    set_aside,
    trained_again,
    trains_again,
)
from bll_pyro.fitting.found_features import found_from
from bll_pyro.fitting.on_ranks import agree_on_call, same_on_all
from bll_pyro.fitting.result import Fit
from bll_pyro.fitting.resuming import (
    begin,
    calibration_source,
    features_of,
    keep_finished,
    say_how_to_go_on,
)
from bll_pyro.fitting.stages import copied, fit_features, train_backbone
from bll_pyro.fitting.whole_network import head_left_on
from bll_pyro.inference import SVI, Inference
from bll_pyro.inference.base import FitWarning
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.layer import LastLayer
from bll_pyro.observation import call
from bll_pyro.ranks import ALONE, Processes
from bll_pyro.scope import isolated

DEFAULT = SVI()
ONE_PASS = (
    "the data give other inputs each time that they are read (random augmentation): the last layer is fitted to the features of "
    "one pass"
)


def fit(
    layer: LastLayer,
    data: Any,
    backbone: nn.Module | RandomFeatures | None = None,
    inference: Inference | None = None,
    *,
    sample_weight: Any = None,
    exposure: Any = None,
    seed: int = 0,
    validation_data: Any = None,
    store: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 256,
    calibration: Any = AUTOMATIC,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    callbacks: Iterable[Any] = (),
    ranks: Processes | None = None,
) -> Fit:
    """Fit a Bayesian last layer.

    Parameters
    ----------
    layer
        The declaration: prior x likelihood.
    data
        A pair ``(inputs, targets)`` of arrays, tensors or data frames, a pair of a frame and the name of its column of targets, a
        torch ``Dataset`` or ``DataLoader``, or a ``Features`` store. Inputs are features ``[N, D]`` where there is no backbone.
        Columns of a frame have names: later frames are brought into their order. Class labels may be text, booleans or whole
        numbers; they come back as they came (``fit.classes``, ``prediction.label``).
    backbone
        Module from inputs to features ``[N, D]``. Frozen (evaluation mode, nothing of it changes) unless the inference
        trains it along; then a copy is trained, which the fit holds. :func:`bll_pyro.random_features` is found from the rows.
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
    calibration
        Rows that are not fitted, on which a noise factor or temperature is found (``fit.recalibration``). By default
        (``bll.AUTOMATIC``) they are the training rows, each predicted by the fit without it, where the posterior is Gaussian
        and the likelihood has classes, labels, or a noise other than that of ``Gaussian``. A fit that trains its backbone
        keeps a tenth of the rows, at least 50 and at most a third, stratified by class or value, the same ones for the same
        data and seed; with fewer than 60 rows it keeps none, and warns. Of fewer than 2,000 rows each one counts: it trains
        a second time on all of them, and takes the number from the first time. A number between 0 and 1 is the share to
        keep, of any fit, which is trained once; data like ``data`` are held-out rows to take instead. None fits all rows and
        finds no number, of which a fit that trains its backbone warns: features of the rows that it was trained on are too
        good.
    checkpoint
        Folder in which the state of the fit is kept: the same call goes on from there after a kill or Ctrl-C, in the same order
        of rows, to the same numbers, and returns a finished fit without work. Written at most every 30 seconds while a loop
        runs, and where a part of the fit ends. None (default) keeps nothing.
    progress
        Whether a progress bar is shown; None (default) shows one after two seconds, if standard error is a terminal. See
        :func:`bll_pyro.observe`, which says it for other functions too.
    callbacks
        Who is told of the steps: functions of a :class:`bll_pyro.Record`, or objects with some of the methods
        ``on_start(run)``, ``on_step(record)`` and ``on_end(run, error)``, such as ``bll.loggers.CSV(path)``. One that raises
        :class:`bll_pyro.StopTraining` ends the training; any other error of theirs ends the fit.
    ranks
        Processes that share the rows, :class:`bll_pyro.distributed.Ranks`: ``data`` are those of this process, no row is on two of
        them, and N is their sum. The fit is that of one process on the rows of all, in the order of the ranks, and all ranks get
        it. Whatever else is passed is the same on all ranks.

    Raises
    ------
    ValueError
        If the folder is of another declaration, data, seed, backbone or version, by name of what differs; if another process
        uses it, or a file in it is damaged. If ranks do not agree, or have the same rows, on all ranks.
    """
    inference, ranks = DEFAULT if inference is None else inference, ALONE if ranks is None else ranks
    check_call(layer, backbone, inference, device, ranks)
    if sample_weight is not None or exposure is not None:
        data = bundled(data, sample_weight, exposure)
    folder = None if store is None else user_path(store)
    progress = progress if ranks.rank == 0 else False
    told = call("fit", progress=progress, callbacks=callbacks, layer=layer, inference=inference, seed=seed)
    with (
        ranks.together(),
        told,
        isolated(seed),
        opened(None if checkpoint is None else user_path(checkpoint)) as keeper,
    ):
        try:
            wanted = Call(
                inference, operator.index(seed), folder, device, batch_size, calibration, keeper, ranks
            )
            made = _fit(layer, data, backbone, validation_data, wanted)
            if keeper is not None:
                keep_finished(keeper, made)
        except KeyboardInterrupt as stop:
            say_how_to_go_on(stop, keeper)
            raise
    joint = made.trace.statistics.get("joint")
    for message in [*(() if joint is None else joint.messages), *made.trace.messages]:
        warnings.warn(message, FitWarning, stacklevel=2)
    return made


def check_call(
    layer: object,
    backbone: object,
    inference: Inference,
    device: str | torch.device | None,
    ranks: object,
) -> None:
    """Raise a TypeError or ValueError unless the arguments are of their kinds and go together."""
    if not isinstance(layer, LastLayer):
        raise TypeError(f"layer: expected bll.LastLayer(likelihood=...), got {type(layer).__name__}")
    check_kinds(inference, None if isinstance(backbone, RandomFeatures) else backbone)
    if inference.trains_backbone and isinstance(backbone, RandomFeatures):
        raise ValueError(
            f"expected a backbone with weights to train along, got {backbone!r}, whose numbers are found before the fit; leave "
            "backbone_learning_rate out"
        )
    if inference.trains_backbone and backbone is None:
        raise ValueError("expected a backbone to train along, got none; pass backbone=... or freeze it")
    if device is not None:
        check_device(device, "fit")
    if not isinstance(ranks, Processes):
        raise TypeError(f"ranks: expected bll.distributed.Ranks(), got {type(ranks).__name__}")


def check_kinds(inference: object, backbone: object) -> None:
    """Raise a TypeError unless these are an inference, and a module or None."""
    if not isinstance(inference, Inference):
        raise TypeError(f"inference: expected an inference such as bll.SVI(), got {type(inference).__name__}")
    if backbone is not None and not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone: expected a torch.nn.Module or None, got {type(backbone).__name__}")


@dataclass(frozen=True)
class Call:
    """How a call of :func:`fit` wants its rows to be fitted; see its parameters."""

    inference: Inference
    seed: int
    store: Path | None
    device: str | torch.device | None
    batch_size: int
    calibration: Any
    keeper: Checkpoint | None
    ranks: Processes


def _fit(
    layer: LastLayer,
    data: Any,
    declared: nn.Module | RandomFeatures | None,
    validation_data: Any,
    call: Call,
) -> Fit:
    """Fit what was checked: rows that are set aside first, and few rows a second time with these among them."""
    inference, keeper, ranks, calibration = call.inference, call.keeper, call.ranks, call.calibration
    numbers: dict[str, Any] = {"seed": call.seed, "batch_size": call.batch_size}
    agree_on_call(ranks, layer, inference, declared, keeper, validation_data, calibration, **numbers)
    rows = TrainingData.of(layer, data, ranks=ranks)
    layer, names = rows.layer, rows.source.feature_names  # with the classes that were found
    backbone = found_from(declared, rows) if isinstance(declared, RandomFeatures) else declared
    held_out = validation_rows(layer, validation_data, names)
    # the caller's network, and earlier fits that hold it, stay as they are
    own = copied(backbone) if inference.trains_backbone else backbone
    if keeper is not None:
        calibration = calibration_source(calibration, layer.likelihood)
        others = (None if held_out is None else held_out.source, calibration)
        numbers["device"] = None if call.device is None else str(call.device)
        if finished := begin(keeper, layer, inference, own, call.store, rows.source, *others, **numbers):
            return finished
    left, aside = set_aside(rows, calibration, inference.trains_backbone, call.seed)
    is_table = backbone is None and rows.source.stored is None
    made = _fit_rows(layer, left, aside, own, held_out, is_table, call)
    if aside.rows is None or not trains_again(made, rows, calibration):
        return made
    with isolated(call.seed):
        second = _fit_rows(layer, rows, Aside(), copied(backbone), held_out, is_table, call)
    return trained_again(made, second)


def _fit_rows(
    layer: LastLayer,
    rows: TrainingData,
    aside: Aside,
    backbone: nn.Module | None,
    held_out: TrainingData | None,
    is_table: bool,
    call: Call,
) -> Fit:
    """Joint training where it is declared, a fit on features, and a recalibration on rows set aside."""
    inference, seed, device, ranks, source = call.inference, call.seed, call.device, call.ranks, rows.source
    common: dict[str, Any] = {
        "backbone": backbone,
        "store": call.store,
        "feature_names": source.feature_names,
    }
    stage, earlier = inference, None  # what runs on frozen features, and the trace of what ran before it
    if inference.trains_backbone:
        posterior, trace = train_backbone(inference, layer, backbone, rows, seed, held_out, device)
        if (final_stage := inference.on_features()) is None:
            made = Fit(layer, posterior, inference, trace, seed, source.num_rows, **common)
            return recalibrated(made, aside, device, call.batch_size)
        stage, earlier = final_stage, trace
    made_by = (backbone, call.store, device, call.batch_size)
    features, targets = features_of(rows, call.keeper, *made_by)
    validation = validation_features(held_out, call.keeper, *made_by)
    posterior, trace = fit_features(
        layer, features, targets, stage, rows.target_shape, seed, source.columns, validation, device, is_table,
        ranks=ranks,
    )  # fmt: skip
    if isinstance(backbone, RandomFourierBackbone):
        trace.notes.append(backbone.found)
    trace.messages += head_left_on(backbone, layer.likelihood, rows.target_shape, features, targets)
    if earlier is not None:
        trace.statistics["joint"] = earlier
    elif not source.in_memory and source.varies():
        trace.notes.append(ONE_PASS)
    recorded = None if backbone is None or earlier is not None else Recorded(backbone)
    num_rows = sum(ranks.gather(len(features)))
    made = Fit(layer, posterior, inference, trace, seed, num_rows, **common, recorded=recorded)
    if call.calibration is AUTOMATIC and not inference.trains_backbone:
        made = cross_fitted(made, features, targets, source.columns, stage.at_mode, ranks)
    else:
        made = recalibrated(made, aside, device, call.batch_size)
    return same_on_all(ranks, made)


def validation_rows(layer: LastLayer, data: Any, names: tuple[str, ...] | None) -> TrainingData | None:
    """Validation data, read and checked; None where there are none."""
    return None if data is None else TrainingData.of(layer, data, "validation_data", False, names)


def validation_features(held_out: TrainingData | None, keeper: Checkpoint | None, *made_by: Any) -> Any:
    """Features, targets and columns of validation rows; None where there are none."""
    return None if held_out is None else (*features_of(held_out, keeper, *made_by), held_out.source.columns)
