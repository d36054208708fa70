"""bll_pyro: nothing chosen but the likelihood that the targets ask for; and a few other inferences.

Rows are given as they are: the last layer scales them by itself. How unknown a row is says the default detector.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.suite.budget import FULL, Budget
from benchmarks.suite.measures import ALPHA
from benchmarks.suite.network import WIDTH
from benchmarks.suite.predictions import LEVELS, Classes, Kept
from benchmarks.suite.splits import CLASSES, NETWORK, Scaled, Split


class Fitted:
    """A fit, its predictions, and the scores of its default detector."""

    def __init__(self, split: Split, fit: Any, scaled: Scaled | None = None) -> None:
        self.split, self.fit, self.scaled = split, fit, scaled
        self.detector: Any = None
        self.prediction: Any = None

    def rows(self, features: np.ndarray) -> Tensor:
        """Inputs as the fit got them."""
        return torch.from_numpy(features if self.scaled is None else self.scaled.rows(features))

    def __call__(self, features: np.ndarray) -> Classes | Kept:
        """Predict rows. The rest of what is kept of values is computed by `finished`, outside of the clock."""
        self.prediction = self.fit.predict(self.rows(features))
        if self.split.kind == CLASSES:
            return Classes(self.prediction.probs.double().numpy())
        low, high = self.prediction.interval(0.9)
        return Kept({"low": low.numpy(), "high": high.numpy()})

    def finished(self, targets: np.ndarray) -> Kept:
        """What is kept of the last prediction of values."""
        found, values = self.prediction, torch.from_numpy(targets)
        arrays = {
            "mean": found.mean,
            "scale": found.scale,
            "log_prob": found.log_prob(values),
            "crps": found.crps(values),
            "quantiles": torch.stack([found.quantile(float(level)) for level in LEVELS]),
        }
        return Kept({name: tensor.double().numpy() for name, tensor in arrays.items()})

    def unknown(self, part: str, features: np.ndarray) -> np.ndarray:
        """Scores of the default detector. It learns from half of the rows kept aside, and the other half are its "kept" rows."""
        import bll_pyro as bll

        if self.detector is None:
            train = (torch.from_numpy(self.split.features), torch.from_numpy(self.split.targets))
            kept = torch.from_numpy(self.split.parts["kept"])
            self.detector = bll.ood.Detector(alpha=ALPHA).calibrate(self.fit, kept, train=train)
        if part == "kept":
            scores: np.ndarray = self.detector.calibration_scores.double().numpy()
            return scores
        found: np.ndarray = self.detector.detect(self.rows(features)).score.double().numpy()
        return found


def default(split: Split, seed: int, budget: Budget = FULL) -> Fitted:
    """``bll.fit(layer, data)``; with a network, trained along at the rate and for the steps that all methods get."""
    return fitted(split, seed, budget, None)


def exact(split: Split, seed: int, budget: Budget = FULL) -> Fitted:
    """The exact posterior."""
    import bll_pyro as bll

    return fitted(split, seed, budget, bll.Exact())


def laplace(split: Split, seed: int, budget: Budget = FULL) -> Fitted:
    """A Laplace approximation with Kronecker factors."""
    import bll_pyro as bll

    return fitted(split, seed, budget, bll.Laplace(curvature=bll.curvatures.Kronecker()))


def fitted(split: Split, seed: int, budget: Budget, inference: Any) -> Fitted:
    """A fit by an inference; None is the default."""
    import bll_pyro as bll

    likelihood: Any = (
        bll.likelihoods.Categorical(split.num_classes) if split.num_classes else bll.likelihoods.Gaussian()
    )
    layer, targets = bll.LastLayer(likelihood), torch.from_numpy(split.targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bll.FitWarning)  # of short budgets
        if split.kind != NETWORK:
            data = (torch.from_numpy(split.features), targets)
            return Fitted(split, bll.fit(layer, data, inference=inference, seed=seed))
        scaled = Scaled.of(split)
        rows = torch.from_numpy(scaled.rows(split.features))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            backbone = nn.Sequential(nn.Linear(rows.shape[1], WIDTH), nn.ReLU())
        joint = bll.SVI(
            backbone_learning_rate=budget.learning_rate,
            num_epochs=budget.num_epochs(len(rows), is_network=True),
            batch_size=budget.network_batch_size,
        )
        return Fitted(split, bll.fit(layer, (rows, targets), backbone, joint, seed=seed), scaled)
