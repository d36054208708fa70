"""A prior of one's own: one class, usable in every inference, saved and loaded like the others.

python examples/04_own_prior.py [--small]
"""

import argparse
from dataclasses import dataclass

import numpy as np
import pyro.distributions as dist
import torch

import bll_pyro as bll


@dataclass(frozen=True, eq=False)
class FirstFeaturesMatter(bll.priors.GaussianPrior):
    """Normal weights whose scale falls with the number of the feature: ``scale * decay ** d``."""

    scale: float = 1.0
    decay: float = 0.7

    def distribution(self, shape: tuple[int, int], **hyper: torch.Tensor) -> dist.Normal:
        """Independent Normals, batch shape ``[K, D]``."""
        scale = self.scale * self.decay ** torch.arange(shape[1], dtype=torch.get_default_dtype())
        return dist.Normal(torch.zeros(shape), scale.expand(shape))


def main(small: bool = False) -> None:
    """Compare the ELBO of two priors on data where only the first features matter."""
    random = np.random.default_rng(0)
    num_rows, num_features = (60, 20) if small else (100, 40)
    features = random.normal(size=(num_rows, num_features))
    weight = np.where(np.arange(num_features) < 3, [2.0, -1.5, 1.0] + [0.0] * (num_features - 3), 0.0)
    targets = features @ weight + random.normal(size=num_rows)

    elbo = {}
    for prior in (bll.priors.Normal(), FirstFeaturesMatter()):
        layer = bll.LastLayer(likelihood=bll.likelihoods.Gaussian(), prior=prior)
        fit = bll.fit(layer, (features, targets))
        elbo[type(prior).__name__] = fit.elbo
        print(f"{prior}: ELBO {fit.elbo:.1f} nats")
    assert elbo["FirstFeaturesMatter"] > elbo["Normal"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer rows")
    main(**vars(parser.parse_args()))
