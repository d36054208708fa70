"""ELBO and cost of each guide on stored features, and whether the ELBOs are in the order of the guides' families."""

import math
import time
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import data_folder, fashion_features, made_up
from benchmarks.importance import log_likelihood
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

NUM_POINTS = 2_048  # quasi-random points of the outputs
BLOCK_NUMBERS = 5_000_000  # numbers in one block of draws of outputs
BIAS_SCALE = 10.0  # prior scale of the bias, the layer's default

# Each family contains the one before it, except for the first two, which differ in their axes.
CHAIN = ("Diagonal, plain axes", "Diagonal, principal axes", "BlockDiagonal", "FullRank")
NOISE = 1e-3  # largest deficit of an ELBO, in nats per row, that stochastic optimisation explains


def guides() -> dict[str, Any]:
    """The guides of the tables by name."""
    import bll_pyro as bll

    return {
        "Diagonal, plain axes": bll.guides.Diagonal(principal_axes=False),
        "Diagonal, principal axes": bll.guides.Diagonal(),
        "MatrixNormal": bll.guides.MatrixNormal(),
        "LowRank(8)": bll.guides.LowRank(rank=8),
        "BlockDiagonal": bll.guides.BlockDiagonal(),
        "FullRank": bll.guides.FullRank(),
    }


@torch.no_grad()
def elbo(fit: Any, features: Tensor, targets: Tensor, prior_scale: float) -> float:
    """ELBO of a Gaussian posterior over weights with prior ``N(0, prior_scale^2)``, in nats.

    Computed independently of the fit: expected log likelihood over 2,048 quasi-random points of the outputs, all else in
    closed form. An isotropic prior is invariant under rotations, so it depends only on squares of the weights.
    """
    weights = fit.posterior.latents.weights
    square = weights.loc.double().square() + weights.marginal_scale().double().square()
    variance = torch.full_like(square, prior_scale**2)
    variance[:, -1] = BIAS_SCALE**2
    log_prior = -0.5 * (square / variance + variance.log() + math.log(2 * math.pi)).sum()
    size = max(1, BLOCK_NUMBERS // (NUM_POINTS * len(square)))
    expected = 0.0
    for rows, labels in zip(features.split(size), targets.split(size), strict=True):
        draws = fit.posterior.outputs(rows).draws(NUM_POINTS)
        expected += float(log_likelihood(draws, labels).double().mean())
    return expected + float(log_prior) + float(weights.entropy())


def resnet_features() -> tuple[Tensor, Tensor]:
    """Read the 64 penultimate features of a ResNet-20 on 4,000 training images of CIFAR-10, and their labels."""
    path = data_folder() / "backbones" / "resnet20_cifar10_features.npz"
    with np.load(path, allow_pickle=False) as stored:
        return torch.from_numpy(stored["H_train"]).float(), torch.from_numpy(stored["y_train"]).long()


def sets(small: bool) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Features, labels and number of classes by name."""
    if small:
        task = made_up(120, 8, 3)
        return {task.name: (task.train_features, task.train_targets, 3)}
    found = {}
    features, targets = resnet_features()
    for num_rows in (400, 2_000):
        index = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:num_rows]
        name = f"ResNet-20 features of CIFAR-10 ({num_rows:,} x 64, 10 classes)"
        found[name] = features[index], targets[index], 10
    task = fashion_features()
    index = torch.randperm(len(task.train_features), generator=torch.Generator().manual_seed(0))[:2_000]
    name = "Fashion-MNIST features (2,000 x 128, 10 classes)"
    found[name] = task.train_features[index], task.train_targets[index], 10
    return found


def run(options: Options) -> Report:
    """Fit every guide on every set with a given and with a learned prior scale."""
    import bll_pyro as bll

    report = Report("bounds", "ELBO of the guides on network features")
    columns = {
        "method": "guide",
        "elbo": "ELBO, nats a row",
        "gap": "below the best, nats",
        "scale": "prior scale",
        "own": "ELBO by the fit's own draws, nats a row",
        "fit": "fit, s",
        "numbers": "numbers",
    }
    for name, (features, targets, num_classes) in sets(options.small).items():
        for prior_scale in (1.0, None):
            said = "prior scale 1" if prior_scale else "prior scale learned"
            table = Table(f"{name}, {said}", dict(columns))
            layer = bll.LastLayer(
                bll.likelihoods.Categorical(num_classes), bll.priors.Normal(scale=prior_scale)
            )
            for guide_name, guide in guides().items():
                if not options.keeps(guide_name):
                    continue
                inference = bll.SVI(guide=guide, num_epochs=20 if options.small else None)
                began = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    fit = bll.fit(layer, (features, targets), inference=inference, seed=0)
                seconds = time.perf_counter() - began
                learned = fit.posterior.learned
                scale = prior_scale or float(next(iter(learned.values())))
                table.rows.append({
                    "method": f"bll_pyro, {guide_name}",
                    "guide": guide_name,
                    "elbo": elbo(fit, features, targets, scale) / len(targets),
                    "own": fit.elbo / len(targets),
                    "scale": scale,
                    "fit": seconds,
                    "numbers": guide.num_numbers(num_classes, features.shape[1] + 1),
                })  # fmt: skip
            best = max(row["elbo"] for row in table.rows)
            for row in table.rows:
                row["gap"] = (best - row["elbo"]) * len(targets)
            if prior_scale:
                plain = _laplace_evidence(layer, features, targets)
                table.rows.append({"method": "log evidence by Laplace, Full, for comparison", **plain})
            report.tables.append(table)
            report.targets += _order(table, f"{name}, {said}")
    report.notes += [
        "The ELBO is computed anew after each fit: expected log-likelihood over 2,048 quasi-random points of the outputs, "
        "the rest in closed form. Optimisation noise is what is left.",
        "Targets: a richer family must not lie more than 0.001 nats a row below a poorer one. Plain and principal axes are "
        "not nested; that the second is better is an observation (exact for the Gaussian likelihood).",
        "Numbers: of the covariance, as the guide counts them for its memory.",
    ]
    return report


def _laplace_evidence(layer: Any, features: Tensor, targets: Tensor) -> dict[str, float]:
    import bll_pyro as bll

    began = time.perf_counter()
    fit = bll.fit(layer, (features, targets), inference=bll.Laplace(curvature=bll.curvatures.Full()), seed=0)
    return {"elbo": fit.log_evidence / len(targets), "fit": time.perf_counter() - began}


def _order(table: Table, where: str) -> list[Target]:
    found = {row["guide"]: row["elbo"] for row in table.rows if "guide" in row}
    steps = [(a, b) for a, b in pairwise(CHAIN) if a in found and b in found]
    return [Target(f"{where}: {a} above {b}, nats a row", found[a] - found[b], NOISE) for a, b in steps]
