"""Bayesian last layers: our default, laplace-torch and vbll, the latter two as their documentation has it.

laplace-torch: a MAP head, then the curvature of the last layer, then one prior precision by the marginal likelihood
(for values also the noise). vbll: its layer, trained by Adam. Both get standardised features and targets, and as many
steps as few rows need. bll_pyro gets the rows as they are.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

from benchmarks.competitors import laplace_torch, vbll_layer
from benchmarks.competitors.batches import shuffled
from benchmarks.competitors.map_head import map_by_lbfgs
from benchmarks.defaults.predictions import LEVEL, Classes, Predict, Values
from benchmarks.defaults.splits import DataSet, Split
from benchmarks.method import Predict as PredictProbs

NUM_STEPS = 1000  # of Adam for vbll, at least
VALUES_RATE = 1e-2
NUM_LAPLACE_STEPS = 100  # of its marginal likelihood, as in its example of regression
MOST_FULL_WEIGHTS = 1000  # a decomposition of the full matrix a step of the marginal likelihood
MOST_KRON_WEIGHTS = 10_000  # predictions of the test rows of 150 classes take over five minutes
MOST_WEIGHTS = 20_000  # of others, 150 classes among them


def ours(data: DataSet, made: Split, seed: int) -> Predict:
    """``bll.fit(layer, data)``, nothing chosen but the likelihood that the targets ask for."""
    import bll_pyro as bll

    num_classes = made.num_classes
    likelihood: Any = bll.likelihoods.Gaussian()
    if num_classes:
        likelihood = (
            bll.likelihoods.Bernoulli() if num_classes == 2 else bll.likelihoods.Categorical(num_classes)
        )
    rows = (torch.from_numpy(made.features), torch.from_numpy(made.targets))
    fitted = bll.fit(bll.LastLayer(likelihood), rows, seed=seed)

    def predict(rows: np.ndarray) -> Classes | Values:
        prediction: Any = fitted.predict(torch.from_numpy(rows))
        if num_classes:
            probs = prediction.probs.double()
            return Classes((torch.stack([1 - probs, probs], -1) if num_classes == 2 else probs).numpy())
        lower, upper = prediction.interval(LEVEL)
        return Values(
            prediction.mean.numpy(),
            lower.numpy(),
            upper.numpy(),
            lambda values: prediction.log_prob(torch.from_numpy(values).float()).double().numpy(),
        )

    return predict


class Standardised:
    """Rows and values in units of their standard deviations over the training rows, as float32 tensors."""

    def __init__(self, made: Split) -> None:
        self.scaler = StandardScaler().fit(made.features.astype(float))
        self.features = self.of(made.features)
        self.is_value = not made.num_classes
        self.center, self.scale = float(made.targets.mean()), float(made.targets.std())
        targets = torch.from_numpy(made.targets)
        self.targets = (targets - self.center) / self.scale if self.is_value else targets

    def of(self, features: np.ndarray) -> Tensor:
        """Standardised features."""
        return torch.from_numpy(self.scaler.transform(features.astype(float)).astype(np.float32))

    def normal(self, mean: Tensor, variance: Tensor) -> Values:
        """Normal predictions in the user's units."""
        scale = variance.double().sqrt().numpy() * self.scale
        return Values.normal(mean.double().numpy() * self.scale + self.center, scale)


@lru_cache(maxsize=2)
def fitted_laplace(data: DataSet, made: Split, structure: str) -> tuple[Any, Standardised]:
    """laplace-torch for classes around the mode under N(0, 1) weights, fitted once for both ways to predict."""
    rows = Standardised(made)
    weight, bias = map_by_lbfgs(rows.features, rows.targets, made.num_classes)
    options = {"structure": structure, "link": "probit"}
    with torch.random.fork_rng():
        return laplace_torch.around(weight, bias, rows.features, rows.targets, 0, **options), rows


def laplace(data: DataSet, made: Split, seed: int, *, structure: str, link: str) -> Predict:
    """Its prediction by the probit approximation, for which the fit is measured, or by draws."""
    if link == "probit":
        fitted_laplace.cache_clear()  # its time is to be measured
    approximation, rows = fitted_laplace(data, made, structure)
    return of_probs(laplace_torch.prediction(approximation, structure, link), rows, seed)


def of_probs(predict: PredictProbs, rows: Standardised, seed: int) -> Predict:
    """Predictions of classes from raw features; draws are seeded, and the random state is put back."""

    def seeded(features: np.ndarray) -> Classes:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Classes(predict(rows.of(features)).probs.double().numpy())

    return seeded


def laplace_values(data: DataSet, made: Split, seed: int) -> Predict:
    """laplace-torch for values: precision and noise by its marginal likelihood, as in its example of regression."""
    from laplace import Laplace  # type: ignore[import-not-found]

    rows = Standardised(made)
    mode = Ridge(alpha=1.0).fit(rows.features.numpy(), rows.targets.numpy())
    head = torch.nn.Linear(rows.features.shape[1], 1)
    weight, bias = torch.from_numpy(np.atleast_2d(mode.coef_)), torch.tensor([mode.intercept_])
    head.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    network = torch.nn.Sequential(torch.nn.Identity(), head)
    approximation: Any = Laplace(
        network, "regression", subset_of_weights="last_layer", hessian_structure="full"
    )
    approximation.fit(laplace_torch.loader(rows.features, rows.targets[:, None], 1000))
    log_prior, log_noise = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([log_prior, log_noise], lr=1e-1)
    for _ in range(NUM_LAPLACE_STEPS):
        optimizer.zero_grad()
        (-approximation.log_marginal_likelihood(log_prior.exp(), log_noise.exp())).backward()
        optimizer.step()

    @torch.no_grad()
    def predict(features: np.ndarray) -> Values:
        mean, variance = approximation(rows.of(features))
        return rows.normal(mean[:, 0], variance[:, 0, 0] + approximation.sigma_noise.square())

    return predict


def vbll(data: DataSet, made: Split, seed: int) -> Predict:
    """vbll's discriminative layer, or its layer for values, diagonal covariance."""
    rows = Standardised(made)
    num_epochs = max(vbll_layer.NUM_EPOCHS, NUM_STEPS // -(-len(rows.features) // vbll_layer.BATCH_SIZE))
    with torch.random.fork_rng():
        if rows.is_value:
            return vbll_values(rows, seed, num_epochs)
        predict = vbll_layer.fit(rows.features, rows.targets, made.num_classes, seed, num_epochs=num_epochs)
    return of_probs(predict, rows, seed)


def vbll_values(rows: Standardised, seed: int, num_epochs: int) -> Predict:
    """vbll's layer for values, as its tutorial has it (weight 1/N, gradients clipped); a constant is the bias it lacks."""
    from vbll.layers.regression import Regression  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    features = functional.pad(rows.features, (0, 1), value=1.0)
    layer = Regression(features.shape[1], 1, 1.0 / len(features), "diagonal", wishart_scale=0.1)
    trained = [p for p in layer.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=VALUES_RATE, fused=True)
    random = torch.Generator().manual_seed(seed)
    for index in shuffled(len(features), vbll_layer.BATCH_SIZE, num_epochs, random):
        optimizer.zero_grad()
        layer(features[index]).train_loss_fn(rows.targets[index, None]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    @torch.no_grad()
    def predict(raw: np.ndarray) -> Values:
        found = layer(functional.pad(rows.of(raw), (0, 1), value=1.0)).predictive
        return rows.normal(found.mean[:, 0], found.scale[:, 0].square())

    return predict
