"""laplace-torch: a last-layer Laplace approximation around the mode, its prior precision by its marginal likelihood.

The mode, the batches and the draws are those of `benchmarks.competitors.laplace_torch`; for values the noise is found along
with the precision, as in its example of regression. A network is trained to its mode first, like the plain method.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.competitors import laplace_torch
from benchmarks.competitors.map_head import map_by_lbfgs
from benchmarks.method import ClassPrediction
from benchmarks.scores import mutual_information
from benchmarks.suite import heads
from benchmarks.suite.budget import FULL, Budget
from benchmarks.suite.network import Net, tensors, trained
from benchmarks.suite.predictions import Normals
from benchmarks.suite.splits import NETWORK, Scaled, Split

NUM_STEPS = 100  # of its marginal likelihood


def classes(split: Split, seed: int, budget: Budget = FULL) -> heads.Predict:
    """Kronecker factors; predictions by draws of the weights, which for a last layer is the distribution of its linearised ones.

    They need no Jacobian, which for the rows of 135 classes takes gigabytes and minutes.
    """
    scaled, rows, labels = heads.tensors(split)
    weight, bias = map_by_lbfgs(rows, labels, split.num_classes)
    with torch.random.fork_rng():
        approximation = laplace_torch.around(
            weight, bias, rows, labels, seed, structure="kron", link="probit"
        )

    def predict(some: Tensor) -> ClassPrediction:
        draws = approximation.predictive_samples(some, pred_type="nn", n_samples=laplace_torch.NUM_DRAWS)
        return ClassPrediction(draws.mean(0), mutual_information(draws))

    return heads.on_rows(scaled, seed, predict)


def values(split: Split, seed: int, budget: Budget = FULL) -> Any:
    """A linear layer: the mode, then the full covariance."""
    scaled, rows, targets = tensors(split)
    return around(trained(rows, targets, seed, budget, is_network=False), scaled, rows, targets)


def network(split: Split, seed: int, budget: Budget = FULL) -> Any:
    """A network at its mode, then the full covariance of its last layer."""
    scaled, rows, targets = tensors(split)
    net = trained(rows, targets, seed, budget, is_network=split.kind == NETWORK)
    return around(net, scaled, rows, targets)


def around(net: Net, scaled: Scaled, rows: Tensor, targets: Tensor) -> Any:
    """The approximation of the last layer of a network, and its Normal predictions."""
    from laplace import Laplace  # type: ignore[import-not-found]

    plain = nn.Sequential(net.hidden, net.last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        approximation: Any = Laplace(
            plain, "regression", subset_of_weights="last_layer", hessian_structure="full"
        )
        approximation.fit(laplace_torch.loader(rows, targets[:, None], 1000))
    log_prior, log_noise = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([log_prior, log_noise], lr=1e-1)
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        (-approximation.log_marginal_likelihood(log_prior.exp(), log_noise.exp())).backward()
        optimizer.step()

    @torch.no_grad()
    def predict(features: np.ndarray) -> Normals:
        mean, variance = approximation(torch.from_numpy(scaled.rows(features)))
        spread = (variance[:, 0, 0] + approximation.sigma_noise.square()).sqrt().double().numpy()
        center = mean[:, 0].double().numpy() * scaled.target_scale + scaled.target_center
        return Normals(center, spread * scaled.target_scale)

    return predict
