"""laplace-torch: a last-layer Laplace approximation around a MAP head.

The MAP head is that of `map_head.map_by_adam` under the prior N(0, 1), and counts as part of the fit. Curvature comes
from laplace-torch's default backend. "tuned" is its own marginal-likelihood search for one prior precision (100 Adam
steps, its default); "precision 1" leaves the prior of the MAP head. Batches are sliced, not collated row by row, since
a loader that collates would double its time for no reason of its own.
"""

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from benchmarks.competitors.map_head import map_by_adam
from benchmarks.method import ClassPrediction, Method, Predict
from benchmarks.scores import mutual_information

# Rows a batch: the fastest found for each structure among 50 to 4,000.
FIT_BATCH = {"kron": 1000, "diag": 250, "full": 250}
PREDICT_BATCH = {"kron": 100, "diag": 100, "full": 1000}
NUM_DRAWS = 100


def loader(features: Tensor, targets: Tensor, batch_size: int) -> DataLoader[Any]:
    """Batches by slices."""
    rows = TensorDataset(features, targets)
    return DataLoader(rows, sampler=BatchSampler(SequentialSampler(rows), batch_size, False), batch_size=None)


def train(
    features: Tensor,
    targets: Tensor,
    num_classes: int,
    seed: int,
    *,
    structure: str = "kron",
    link: str = "mc",
    tune: bool = True,
) -> tuple[Any, Predict]:
    """Fit the MAP head, its curvature and perhaps the prior precision; give back the approximation and `predict`."""
    weight, bias = map_by_adam(features, targets, num_classes, seed)
    approximation = around(weight, bias, features, targets, seed, structure=structure, link=link, tune=tune)
    return approximation, prediction(approximation, structure, link)


def around(
    weight: Tensor,
    bias: Tensor,
    features: Tensor,
    targets: Tensor,
    seed: int,
    *,
    structure: str,
    link: str,
    tune: bool = True,
) -> Any:
    """The approximation around a given head: its curvature, and perhaps the prior precision."""
    from laplace import Laplace  # type: ignore[import-not-found]

    head = torch.nn.Linear(features.shape[1], len(bias))
    head.load_state_dict({"weight": weight, "bias": bias})
    # laplace-torch looks for the last layer of a network by a forward pass; the features are the input here.
    network = torch.nn.Sequential(torch.nn.Identity(), head)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its reminder to predict with the link it was tuned for
        approximation: Any = Laplace(
            network, "classification", subset_of_weights="last_layer", hessian_structure=structure
        )
        approximation.fit(loader(features, targets, FIT_BATCH[structure]))
        if tune:
            approximation.optimize_prior_precision(pred_type="glm", method="marglik", link_approx=link)
    return approximation


def prediction(approximation: Any, structure: str, link: str) -> Predict:
    """Make a function that predicts by Monte Carlo or probit."""

    @torch.no_grad()
    def predict(rows: Tensor) -> ClassPrediction:
        batches = rows.split(PREDICT_BATCH[structure])
        if link == "probit":
            parts = [approximation(part, pred_type="glm", link_approx="probit") for part in batches]
            return ClassPrediction(torch.cat(parts))
        probs, epistemic = [], []
        for part in batches:
            draws = approximation.predictive_samples(part, pred_type="glm", n_samples=NUM_DRAWS)
            probs.append(draws.mean(0))
            epistemic.append(mutual_information(draws))
        return ClassPrediction(torch.cat(probs), torch.cat(epistemic))

    return predict


def fit(features: Tensor, targets: Tensor, num_classes: int, seed: int, **options: Any) -> Predict:
    """Train with the options of `train`, and give back its prediction."""
    return train(features, targets, num_classes, seed, **options)[1]


def _method(name: str, note: str, **options: Any) -> Method:
    return Method(f"laplace-torch, {name}", partial(fit, **options), note=note, requires="laplace")


METHODS = (
    _method("Kronecker, MC", "tuned, 100 draws", structure="kron", link="mc"),
    _method("Kronecker, probit", "tuned", structure="kron", link="probit"),
    _method("Kronecker, precision 1, MC", "100 draws", structure="kron", link="mc", tune=False),
    _method("diagonal, MC", "tuned, 100 draws", structure="diag", link="mc"),
    _method("full, MC", "tuned, 100 draws", structure="full", link="mc"),
)
