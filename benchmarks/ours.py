"""bll_pyro as a `benchmarks.method.Method`: its defaults, and all its inferences.

Inferences are created on use; one that the installed version does not have is left out of the tables, and named.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.harness import Measure
from benchmarks.method import ClassPrediction, Method, Predict

DEFAULT = "bll_pyro, all defaults"

# the argument bll is the package, which is imported on use
INFERENCES: dict[str, Callable[[Any], Any]] = {
    "SVI, MAP": lambda bll: bll.SVI(guide=bll.guides.MAP()),
    "SVI, Diagonal (principal axes)": lambda bll: bll.SVI(guide=bll.guides.Diagonal()),
    "SVI, Diagonal (plain axes)": lambda bll: bll.SVI(guide=bll.guides.Diagonal(principal_axes=False)),
    "SVI, MatrixNormal": lambda bll: bll.SVI(guide=bll.guides.MatrixNormal()),
    "SVI, LowRank(8)": lambda bll: bll.SVI(guide=bll.guides.LowRank(rank=8)),
    "SVI, BlockDiagonal": lambda bll: bll.SVI(guide=bll.guides.BlockDiagonal()),
    "SVI, FullRank": lambda bll: bll.SVI(guide=bll.guides.FullRank()),
    "SVI, Flow": lambda bll: bll.SVI(guide=bll.guides.Flow()),
    "Laplace, Diagonal": lambda bll: bll.Laplace(curvature=bll.curvatures.Diagonal()),
    "Laplace, Kronecker": lambda bll: bll.Laplace(curvature=bll.curvatures.Kronecker()),
    "Laplace, Full": lambda bll: bll.Laplace(curvature=bll.curvatures.Full()),
    "NUTS": lambda bll: bll.NUTS(),
}


def inference(name: str) -> Any | None:
    """The inference of a name in the tables; None if this version of the package does not have it."""
    import bll_pyro as bll

    try:
        return INFERENCES[name](bll)
    except AttributeError:
        return None


def fit_object(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    seed: int,
    *,
    name: str | None = None,
    short: bool = False,
) -> Any:
    """Fit a `Categorical` last layer with the inference ``name``, or with all defaults if it is None.

    ``short`` ends SVI after two epochs, for tests that everything runs.
    """
    import bll_pyro as bll

    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(num_classes=num_classes))
    chosen = None if name is None else INFERENCES[name](bll)
    if short and isinstance(chosen, bll.SVI):
        chosen = replace(chosen, num_epochs=2)
    return bll.fit(layer, (features, targets), inference=chosen, seed=seed)


def fit(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    seed: int,
    *,
    name: str | None = None,
    short: bool = False,
) -> Predict:
    """Fit, and predict with probabilities and mutual information from one pass."""
    fitted = fit_object(features, targets, num_classes, seed, name=name, short=short)

    def predict(rows: Tensor) -> ClassPrediction:
        prediction = fitted.predict(rows)
        return ClassPrediction(prediction.probs, prediction.epistemic)

    return predict


METHOD = Method(DEFAULT, fit, note="standardised features, learned prior scale", requires="bll_pyro")


def methods(*, short: bool = False) -> tuple[list[Method], list[str]]:
    """A method for every inference that the installed version has, and the names of the others."""
    there = [name for name in INFERENCES if inference(name) is not None]
    made = [
        Method(f"bll_pyro, {name}", partial(fit, name=name, short=short), requires="bll_pyro")
        for name in there
    ]
    return made, [name for name in INFERENCES if name not in there]


@contextmanager
def after_each_step(note: Callable[[object], None]) -> Iterator[None]:
    """Call ``note(optimizer)`` after each step of Adam inside `bll.fit`."""
    from bll_pyro.optimizers import Adam

    step = Adam.step

    def noted(optimizer: Adam) -> None:
        step(optimizer)
        note(optimizer)

    with patch.object(Adam, "step", noted):
        yield


def step_seconds(
    features: Tensor, targets: Tensor, num_classes: int, batch_size: int, seed: int, *, num_steps: int = 200
) -> Measure:
    """Measure one SVI step inside `bll.fit`, through its public entry.

    The mean time between steps of the optimiser with the most steps is the time of a step: gathering the batch, ELBO,
    gradient, update and the loop's records. Work before the first step
    (standardisation, warm start) is not included; `quality` times whole fits.
    """
    import bll_pyro as bll

    num_epochs = max(1, round(num_steps * batch_size / len(features)))
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(num_classes=num_classes))
    svi = bll.SVI(num_epochs=num_epochs, batch_size=batch_size)

    def measure() -> float:
        moments: dict[int, list[float]] = {}

        def note(optimizer: object) -> None:
            moments.setdefault(id(optimizer), []).append(time.perf_counter())

        with after_each_step(note):
            bll.fit(layer, (features, targets), inference=svi, seed=seed)
        longest = max(moments.values(), key=len, default=[])
        if len(longest) < 3:
            raise RuntimeError(f"Expected steps of Adam inside bll.fit, saw {len(longest)}.")
        return (longest[-1] - longest[0]) / (len(longest) - 1)

    return measure


def weight_draw_probs(
    fitted: Any, rows: Tensor, num_draws: int, *, seed: int = 0, chunk: int = 100
) -> Tensor:
    """Average class probabilities over draws of the weights, in double precision: a reference for `predict`."""
    total = torch.zeros(0)
    for number, start in enumerate(range(0, num_draws, chunk)):
        draws = fitted.posterior.sample(min(chunk, num_draws - start), seed=seed + 1 + number)
        outputs = fitted.posterior.draw_outputs(draws, rows)
        part = outputs.softmax(-1).sum(0, dtype=torch.float64)
        total = part if number == 0 else total + part
    return total / num_draws
