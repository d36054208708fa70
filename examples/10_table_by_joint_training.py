"""A table: a small network and its Bayesian last layer trained together, beside linear regression.

The strength of concrete by its recipe and age (Yeh 1998; UCI repository), read from the folder in BLL_DATA or from
``shared/data/uci`` next to the checkout, or else Friedman's (1991) first function with noise.

python examples/10_table_by_joint_training.py [--small]
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import make_friedman1
from torch import nn

import bll_pyro as bll

ROOT = Path(__file__).resolve().parent.parent


def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, targets, and which rows are for training."""
    folders = [Path(os.environ["BLL_DATA"])] if "BLL_DATA" in os.environ else []
    folders += [parent / "shared" / "data" for parent in (ROOT, ROOT.parent)]
    for folder in folders:
        if (file := folder / "uci" / "concrete.npz").exists():
            data = np.load(file, allow_pickle=False)
            return data["X"], data["y"], data["train_0"]
    x, y = make_friedman1(1000, noise=1.0, random_state=0)
    return x, y, np.random.default_rng(0).permutation(1000)[:900]


def network(num_columns: int) -> nn.Module:
    """Two hidden layers: columns ``[N, num_columns]`` to features ``[N, 50]``."""
    return nn.Sequential(nn.Linear(num_columns, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU())


def main(small: bool = False) -> None:
    """RMSE, log density and 90% intervals of both on the test rows."""
    x, y, train = table()
    test = np.setdiff1d(np.arange(len(x)), train)
    x = ((x - x[train].mean(0)) / x[train].std(0)).astype(np.float32)  # a network wants columns of one size
    layer = bll.LastLayer(likelihood=bll.likelihoods.Gaussian())
    torch.manual_seed(0)
    joint = bll.SVI(backbone_learning_rate=5e-3, num_epochs=20 if small else 200)
    fits = {
        "linear regression": bll.fit(layer, (x[train], y[train]), inference=bll.Exact()),
        "network, joint": bll.fit(layer, (x[train], y[train]), network(x.shape[1]), joint),
    }
    rmse = {}
    for name, fit in fits.items():
        prediction = fit.predict(x[test])
        error = prediction.mean.numpy() - y[test]
        lower, upper = (end.numpy() for end in prediction.interval(0.9))
        inside = ((lower <= y[test]) & (y[test] <= upper)).mean()
        rmse[name] = float(np.sqrt(np.mean(error**2)))
        density = float(prediction.log_prob(y[test]).mean())
        print(
            f"{name:18} RMSE {rmse[name]:6.2f}, log density {density:6.3f} nats a row, 90% intervals hold {inside:.0%}"
        )
    assert rmse["network, joint"] < (0.85 if small else 0.7) * rmse["linear regression"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer epochs")
    main(**vars(parser.parse_args()))
