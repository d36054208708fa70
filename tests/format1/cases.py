"""Small fits of every kind: what they predict is kept in ``recorded.npz``, and five of them in ``fits/``.

Only public names are used here, so that the same file runs on every version of the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import bll_pyro as bll

plain_fit = partial(bll.fit, calibration=None)  # predictions of the posterior itself


L, P, G, C = bll.likelihoods, bll.priors, bll.guides, bll.curvatures
NUM_ROWS, NUM_FEATURES = 90, 6

RANDOM = torch.Generator().manual_seed(0)
FEATURES = torch.randn(NUM_ROWS, NUM_FEATURES, generator=RANDOM) @ torch.randn(
    NUM_FEATURES, NUM_FEATURES, generator=RANDOM
)
SIGNAL = FEATURES @ torch.tensor([0.6, -0.4, 0.2, 0.0, 0.1, 0.0])
VALUES = 30 + 5 * (SIGNAL + 0.4 * torch.randn(NUM_ROWS, generator=RANDOM))
PAIRS = torch.stack([VALUES, -0.1 * VALUES + torch.randn(NUM_ROWS, generator=RANDOM)], 1)
LABELS = torch.bucketize(SIGNAL + 0.3 * torch.randn(NUM_ROWS, generator=RANDOM), torch.tensor([-0.7, 0.6]))
BINARY = (SIGNAL > 0).long()
SEVERAL = torch.stack([BINARY, (FEATURES[:, 1] > 0).long()], 1)
COUNTS = torch.poisson(torch.exp(0.5 + 0.4 * SIGNAL), generator=RANDOM).long()
EXPOSURE = 0.5 + torch.rand(NUM_ROWS, generator=RANDOM)
WEIGHTS = torch.rand(NUM_ROWS, generator=RANDOM) * (torch.rand(NUM_ROWS, generator=RANDOM) > 0.1)
NEW = torch.randn(15, NUM_FEATURES, generator=RANDOM) @ torch.randn(
    NUM_FEATURES, NUM_FEATURES, generator=RANDOM
)
FEW = torch.randn(30, 12, generator=RANDOM)
FEW_LABELS = (FEW[:, 0] + FEW[:, 1] > 0).long()
NEW_FEW = torch.randn(15, 12, generator=RANDOM)
# in version 0.1.0 these features share a scale in any form; later only as those of a network, which a store is taken for
STORED, STORED_FEW = bll.Features.from_tensors(FEATURES), bll.Features.from_tensors(FEW)


@dataclass(frozen=True)
class Case:
    """A fit, and inputs and targets to try it on."""

    fit: Callable[[], bll.Fit]
    inputs: Tensor = NEW
    targets: Tensor | None = None


def part(rows: slice) -> bll.Features:
    """Some rows of the features."""
    return bll.Features.from_tensors(FEATURES[rows])


def network() -> nn.Module:
    """A backbone with dropout and normalisation."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(NUM_FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 5)
        )


def plain(likelihood: Any, targets: Tensor, prior: Any = None, inference: Any = None, **options: Any) -> Case:
    """Features, all rows."""
    of_layer = {k: options.pop(k) for k in ("bias", "standardize") if k in options}

    def fit() -> bll.Fit:
        layer = bll.LastLayer(likelihood, P.Normal() if prior is None else prior, **of_layer)
        return plain_fit(layer, (STORED, targets), inference=inference or SHORT, **options)

    return Case(fit, targets=targets[: len(NEW)])


def few(inference: Any) -> Case:
    """Few rows, so that a scale criterion decides."""

    def fit() -> bll.Fit:
        return plain_fit(bll.LastLayer(L.Categorical(2)), (STORED_FEW, FEW_LABELS), inference=inference)

    return Case(fit, NEW_FEW, FEW_LABELS[: len(NEW_FEW)])


def joint(**options: Any) -> Case:
    """Backbone and last layer together."""

    def fit() -> bll.Fit:
        inference = bll.SVI(backbone_learning_rate=1e-3, num_epochs=3, batch_size=30, **options)
        data: dict[str, Any] = {}
        if "patience" in options:
            data["validation_data"] = (FEATURES[:40], LABELS[:40])
        if hasattr(bll, "AUTOMATIC"):  # since then joint training keeps rows for a recalibration
            data["calibration"] = None
        return plain_fit(bll.LastLayer(L.Categorical(3)), (FEATURES, LABELS), network(), inference, **data)

    return Case(fit, targets=LABELS[: len(NEW)])


def updated() -> bll.Fit:
    fit = plain_fit(bll.LastLayer(L.Gaussian()), (part(slice(50)), VALUES[:50]), inference=bll.Exact())
    return fit.update((FEATURES[50:], VALUES[50:]))


def after_prior() -> bll.Fit:
    first = plain_fit(
        bll.LastLayer(L.Categorical(3), P.Normal(1.0)), (part(slice(50)), LABELS[:50]), inference=SHORT
    )
    return plain_fit(
        bll.LastLayer(L.Categorical(3), first.as_prior()), (FEATURES[50:], LABELS[50:]), inference=SHORT
    )


def conditioned() -> bll.Fit:
    layer = bll.LastLayer(L.Gaussian(2.0), P.Normal(1.0))
    first = plain_fit(layer, (part(slice(50)), VALUES[:50]), inference=bll.Exact())
    rest = FEATURES[50:], VALUES[50:]
    return plain_fit(bll.LastLayer(L.Gaussian(2.0), first.as_prior()), rest, inference=bll.Exact())


def recalibrated() -> bll.Fit:
    fit = plain_fit(bll.LastLayer(L.Categorical(3)), (part(slice(60)), LABELS[:60]), inference=SHORT)
    fit = bll.calibrate(fit, FEATURES[60:], LABELS[60:])
    detector = bll.ood.Detector(bll.ood.Leverage(**RAW), alpha=0.1).calibrate(fit, FEATURES[60:])
    return fit.with_detector(detector)


def frozen() -> bll.Fit:
    return plain_fit(bll.LastLayer(L.Categorical(3)), (FEATURES, LABELS), network(), SHORT)


def from_head() -> bll.Fit:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        head = nn.Linear(NUM_FEATURES, 3)
    layer = bll.LastLayer.from_linear(head, L.Categorical(3))
    return plain_fit(layer, (STORED, LABELS), inference=SHORT)


SHORT = bll.SVI(num_epochs=40)
RAW = {"normalize": False} if hasattr(bll.ood.Leverage, "normalize") else {}  # 0.1.0 knew no unit length
CASES: dict[str, Case] = {
    "defaults": plain(L.Categorical(3), LABELS, inference=bll.SVI()),
    "validation": plain(L.Categorical(3), LABELS, validation_data=(FEATURES[:30], LABELS[:30])),
    "batches": plain(
        L.Categorical(3), LABELS, inference=bll.SVI(num_epochs=10, batch_size=20, clip_norm=1.0)
    ),
    "weights": plain(L.Categorical(3), LABELS, sample_weight=WEIGHTS),
    "raw": plain(L.Categorical(3), LABELS, P.Normal(0.5), bias=False, standardize=False),
    "weight space": plain(L.Categorical(3), LABELS, inference=bll.SVI(num_epochs=20, output_space=False)),
    "few rows": few(bll.SVI(num_epochs=300)),
    "few rows, point": few(bll.SVI(G.MAP(), num_epochs=300)),
    "few rows, leave-one-out": few(bll.SVI(num_epochs=300, scale_criterion=bll.criteria.LeaveOneOut())),
    "few rows, Laplace": few(bll.Laplace()),
    "few rows, Laplace, leave-one-out": few(bll.Laplace(scale_criterion=bll.criteria.LeaveOneOut())),
    "MAP": plain(L.Categorical(3), LABELS, inference=bll.SVI(G.MAP(), num_epochs=40)),
    "plain axes": plain(
        L.Gaussian(), VALUES, inference=bll.SVI(G.Diagonal(principal_axes=False), num_epochs=40)
    ),
    "block-diagonal": plain(L.Poisson(), COUNTS, inference=bll.SVI(G.BlockDiagonal(), num_epochs=40)),
    "low-rank": plain(L.Bernoulli(), BINARY, inference=bll.SVI(G.LowRank(2), num_epochs=40)),
    "full-rank": plain(L.Gaussian(), VALUES, inference=bll.SVI(G.FullRank(), num_epochs=40)),
    "matrix-normal": plain(L.Categorical(3), LABELS, inference=bll.SVI(G.MatrixNormal(), num_epochs=40)),
    "flow": plain(L.Bernoulli(), BINARY, inference=bll.SVI(G.Flow(num_layers=1), num_epochs=5)),
    "custom": plain(L.Gaussian(2.0), VALUES, inference=bll.SVI(G.Custom("AutoNormal"), num_epochs=5)),
    "Laplace prior": plain(L.Categorical(3), LABELS, P.Laplace()),
    "Student-t prior": plain(L.Categorical(3), LABELS, P.StudentT()),
    "horseshoe": plain(L.Gaussian(), VALUES, P.Horseshoe()),
    "hierarchical": plain(L.Bernoulli(), SEVERAL, P.HierarchicalNormal(per_output=True)),
    "spike and slab": plain(L.Gaussian(2.0), VALUES, P.SpikeAndSlab()),
    "any prior": plain(L.Categorical(3), LABELS, P.Distribution(dist.Normal(0.2, 0.5))),
    "per output": plain(L.Gaussian(), PAIRS, P.Normal(per_output=True)),
    "heteroscedastic": plain(L.HeteroscedasticGaussian(), VALUES),
    "Student-t noise": plain(L.StudentT(), VALUES),
    "tied noise": plain(L.MultivariateGaussian(), PAIRS),
    "exposure": plain(L.Poisson(), COUNTS, exposure=EXPOSURE),
    "negative binomial": plain(L.NegativeBinomial(), COUNTS),
    "ordinal": plain(L.Ordinal(3), LABELS),
    "exact": plain(L.Gaussian(), VALUES, inference=bll.Exact()),
    "exact, conjugate": plain(L.Gaussian(), PAIRS, inference=bll.Exact(bll.noises.Conjugate())),
    "exact, maximized": plain(L.Gaussian(), VALUES, inference=bll.Exact(bll.noises.Maximized())),
    "exact, known": plain(L.Gaussian(2.0), VALUES, inference=bll.Exact()),
    "update": Case(updated, targets=VALUES[: len(NEW)]),
    "as_prior, exact": Case(conditioned, targets=VALUES[: len(NEW)]),
    "as_prior": Case(after_prior, targets=LABELS[: len(NEW)]),
    "Laplace, Kronecker": plain(L.Categorical(3), LABELS, inference=bll.Laplace()),
    "Laplace, full": plain(L.StudentT(), VALUES, inference=bll.Laplace(C.Full())),
    "Laplace, diagonal": plain(L.Poisson(), COUNTS, inference=bll.Laplace(C.Diagonal())),
    "NUTS": plain(L.Bernoulli(), BINARY, inference=bll.NUTS(15, 10, 2, num_processes=1)),
    "NUTS, horseshoe": plain(L.Gaussian(), VALUES, P.Horseshoe(), bll.NUTS(10, 8, 1)),
    "joint": joint(),
    "joint, one stage": joint(final_stage=False),
    "joint, validation": joint(final_stage=False, patience=2),
    "frozen backbone": Case(frozen, targets=LABELS[: len(NEW)]),
    "head": Case(from_head, targets=LABELS[: len(NEW)]),
    "recalibrated": Case(recalibrated, targets=LABELS[: len(NEW)]),
}
SAVED = ("defaults", "exact", "Laplace, Kronecker", "NUTS", "recalibrated")
