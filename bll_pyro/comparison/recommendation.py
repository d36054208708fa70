"""``recommend``: a declaration and an inference that suit rows, targets and their number, with the cost of a fit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from bll_pyro.checks import positive
from bll_pyro.comparison.costs import GIB, Cost, FitSize, available_bytes, cost, duration
from bll_pyro.comparison.target_kinds import suited_likelihood
from bll_pyro.features.columns import bundled
from bll_pyro.features.data import read
from bll_pyro.features.forward import compute_features, frozen
from bll_pyro.features.random_fourier import RandomFeatures
from bll_pyro.features.sources import Source
from bll_pyro.fitting.description import declared
from bll_pyro.guides import Diagonal, FullRank
from bll_pyro.inference import SVI, Exact, Inference, Laplace
from bll_pyro.inference.training_data import with_classes_of
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods import Gaussian, Likelihood
from bll_pyro.likelihoods.labels import OfClasses
from bll_pyro.scope import isolated, own_modes
from bll_pyro.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

MOST_CORRELATED = (
    1_300  # weights, of which a full covariance was the nearest to the posterior, in half a minute
)
MANY_ROWS = 300  # rows a column from which Laplace's approximation is as good as SVI
MEMORY_SHARE = 0.8  # of what is free, for the fit
TIMED_ROWS = 32  # through the backbone
IN_CLOSED_FORM = "the posterior in closed form"
BY_DEFAULT = "independent weights in principal axes: no inference predicts clearly better"
IN_PLAIN_AXES = "independent weights in plain axes: needs no D x D matrix of principal axes"
TO_READ_WEIGHTS = "predicts alike; spreads and correlations of weights are right"
FOR_UNKNOWN_INPUTS = "predicts alike; its epistemic uncertainty finds unknown inputs better"


@dataclass(frozen=True, eq=False)
class Recommendation(Summary):
    """A declaration and an inference for some data, why, and what they cost: ``bll.fit(r.layer, data, backbone, r.inference)``.

    Parameters
    ----------
    layer
        The declaration.
    inference
        The inference with its guide.
    reasons
        What the choice of likelihood and inference rests on, one sentence each, by ``targets`` and ``inference``.
    size
        Numbers of rows, features and outputs.
    cost
        Estimated seconds of one core, and bytes beside the interpreter and the data as they were given. Seconds are within a
        factor of three on the machine of the benchmarks; those of the backbone are ``backbone_seconds``.
    backbone_seconds
        One pass of all rows through the backbone, from a batch that was timed here; None without a backbone.
    memory
        Bytes that the fit may take.
    table
        What was considered, in the order of preference, and then what serves another purpose: ``seconds`` and ``gib`` of each
        inference, whether it ``fits`` in memory, and ``why``.
    """

    layer: LastLayer
    inference: Inference
    reasons: dict[str, str]
    size: FitSize
    cost: Cost
    backbone_seconds: float | None
    memory: float
    table: pd.DataFrame

    def to_pandas(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def lines(self) -> dict[str, str]:
        """What to fit, why, its cost, and what else there is."""
        size, plural = self.size, "" if self.size.num_outputs == 1 else "s"
        said = {
            "layer": declared(self.layer),
            "inference": declared(self.inference),
            "data": f"{size.num_rows:,} rows, {size.num_features:,} features, {size.num_outputs:,} output{plural}: "
            f"{size.num_weights:,} weights",
            **{f"why {name}": reason for name, reason in self.reasons.items()},
            "cost": f"{self.cost} at most, of {self.memory / GIB:.2g} GiB",
        }
        if self.backbone_seconds is not None:
            said["backbone"] = f"about {duration(self.backbone_seconds)} for one pass of all rows"
        best = self.table.index.get_loc(declared(self.inference))
        said["too large"] = ", ".join(self.table.index[:best])
        for name, line in self.table.iloc[best:].iterrows():
            if line["why"] in (TO_READ_WEIGHTS, FOR_UNKNOWN_INPUTS) and line["fits"]:
                said[f"or {name}"] = f"about {duration(line['seconds'])}; {line['why']}"
        if type(self.layer.likelihood) is Gaussian:
            said["next"] = "bll.choose(None, data): are there outliers, does the noise depend on the input?"
        return said


@own_modes()
def recommend(
    data: Any,
    backbone: nn.Module | RandomFeatures | None = None,
    likelihood: Likelihood | None = None,
    *,
    sample_weight: Any = None,
    exposure: Any = None,
    memory: float | None = None,
) -> Recommendation:
    """Recommend likelihood, inference and guide for data, and estimate what the fit costs; nothing is fitted.

    The rules follow from the benchmarks, with a figure for each in "Choose the inference" of the documentation. The cheapest
    inference is taken whose test NLL is within 1% of the lowest that was measured: ``Exact`` for a Gaussian, and else independent
    weights in principal axes. What does not fit in memory is passed over. Of the features only a few rows are read; the
    targets are looked at where they are in memory or in a store.

    Parameters
    ----------
    data, sample_weight, exposure
        As in :func:`bll_pyro.fit`.
    backbone
        Module from inputs to features ``[N, D]``; a few rows run through it, for D and for the time of all rows. It stays as
        it is. Of :func:`bll_pyro.random_features` the most features that there can be are reckoned with.
    likelihood
        None (default) takes the one that suits the targets. Whole numbers can be labels or counts; what they were taken for is
        among the reasons.
    memory
        GiB that the fit may take; None (default) is 80% of what this machine has free.

    Returns
    -------
    Recommendation
        ``layer`` and ``inference``, for ``bll.fit(r.layer, data, backbone, r.inference)``; ``reasons``, ``cost`` and ``table``.

    Raises
    ------
    ValueError
        If nothing fits in memory, with what would; if labels come batch by batch and no likelihood is named.
    TypeError
        If ``likelihood`` is no likelihood, or ``backbone`` no backbone.
    """
    if likelihood is not None and not isinstance(likelihood, Likelihood):
        raise TypeError(
            f"recommend: expected a likelihood such as bll.likelihoods.Gaussian(), got {likelihood!r}"
        )
    if backbone is not None and not isinstance(backbone, nn.Module | RandomFeatures):
        raise TypeError(
            f"recommend: expected a torch.nn.Module or bll.random_features() as backbone, got {type(backbone).__name__}"
        )
    allowed = (
        MEMORY_SHARE * available_bytes() if memory is None else positive(memory, "memory", "recommend") * GIB
    )
    source = read(bundled(data, sample_weight, exposure), need_targets=True, min_rows=2)
    reason = "the likelihood is given"
    if likelihood is None:
        likelihood, reason = suited_likelihood(source)
    layer = LastLayer(likelihood)
    known = (
        layer if getattr(likelihood, "num_classes", 0) is not None else with_classes_of(layer, source, "data")
    )
    size, backbone_seconds = _size(source, known.likelihood, backbone)
    return _chosen(layer, known, size, reason, backbone_seconds, allowed)


def _size(
    source: Source, likelihood: Likelihood, backbone: nn.Module | RandomFeatures | None
) -> tuple[FitSize, float | None]:
    """Numbers of rows, features and outputs; and seconds of all rows in the backbone, from those of a few."""
    with isolated():  # code of the user's may draw random numbers
        inputs, targets = next(source.batches(TIMED_ROWS))
    assert targets is not None
    target_shape = (
        () if isinstance(likelihood, OfClasses) and likelihood.is_discrete else tuple(targets.shape[1:])
    )
    num_outputs = likelihood.num_outputs(target_shape)
    if backbone is None or isinstance(backbone, RandomFeatures):
        features = compute_features(None, inputs if inputs.is_floating_point() else inputs.float())
        width = features.shape[1]
        if backbone is not None:
            width = backbone.most_features(width)
        return FitSize(source.num_rows, width, num_outputs, features.element_size()), None
    with isolated(), frozen(backbone):
        compute_features(backbone, inputs)  # the first call is slower
        began = time.perf_counter()
        features = compute_features(backbone, inputs)
        seconds = (time.perf_counter() - began) / len(features) * source.num_rows
    return FitSize(source.num_rows, features.shape[1], num_outputs, features.element_size(), True), seconds


def candidates(layer: LastLayer, size: FitSize) -> Iterator[tuple[Inference, str]]:
    """Inferences in the order of preference, each with the reason for it."""
    if type(layer.likelihood) is Gaussian:
        yield Exact(), IN_CLOSED_FORM
    yield SVI(), BY_DEFAULT
    yield SVI(Diagonal(principal_axes=False)), IN_PLAIN_AXES


def for_other_purposes(layer: LastLayer, size: FitSize) -> Iterator[tuple[Inference, str]]:
    """Inferences that predict no better and are dearer, each with what it is better at; none of them is recommended."""
    if type(layer.likelihood) is not Gaussian and size.num_weights <= MOST_CORRELATED:
        yield SVI(FullRank()), TO_READ_WEIGHTS
    if isinstance(layer.likelihood, OfClasses) and size.num_rows >= MANY_ROWS * size.num_columns:
        yield Laplace(), FOR_UNKNOWN_INPUTS


def _chosen(
    layer: LastLayer,
    known: LastLayer,
    size: FitSize,
    about_targets: str,
    backbone_seconds: float | None,
    allowed: float,
) -> Recommendation:
    """The first candidate that fits in memory; the layer ``known`` also has the classes that the data say."""
    import pandas as pd

    lines: dict[str, dict[str, Any]] = {}
    inferences = {}
    preferred = dict(candidates(known, size))
    for inference, why in [*preferred.items(), *for_other_purposes(known, size)]:
        needed = cost(inference, known.likelihood, size)
        fits = needed.num_bytes <= allowed and _is_possible(inference, known, size)
        name = declared(inference)
        inferences[name] = inference
        lines[name] = {"seconds": needed.seconds, "gib": needed.num_bytes / GIB, "fits": fits, "why": why}
    table = pd.DataFrame.from_dict(lines, orient="index")
    fitting = [declared(inference) for inference in preferred if lines[declared(inference)]["fits"]]
    if not fitting:
        raise ValueError(_nothing_fits(size, table, allowed))
    best = fitting[0]
    return Recommendation(
        layer,
        inferences[best],
        {"targets": about_targets, "inference": lines[best]["why"]},
        size,
        cost(inferences[best], known.likelihood, size),
        backbone_seconds,
        allowed,
        table,
    )


def _is_possible(inference: Inference, layer: LastLayer, size: FitSize) -> bool:
    """Whether the inference's own limit of memory allows these sizes."""
    try:
        inference.check(layer, size.num_outputs, size.num_columns)
    except ValueError:
        return False
    return True


def _nothing_fits(size: FitSize, table: pd.DataFrame, allowed: float) -> str:
    needed = table["gib"].min()
    remedy = "take fewer features (a smaller backbone, PCA), or give more memory (memory=...)"
    if size.row_bytes > 0.5 * needed * GIB and size.makes_features:
        remedy = "keep the features on disk: features = bll.extract(backbone, data, store=folder), then recommend(features)"
    return (
        f"recommend: expected a fit that takes at most {allowed / GIB:.2g} GiB, got {size.num_rows:,} rows x {size.num_features:,} "
        f"features x {size.num_outputs:,} outputs, which take {needed:.2g} GiB at least; {remedy}"
    )
