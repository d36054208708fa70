"""The table of priors that the tests of the family run over; a new one enters by one line. Weights are 2 x 3."""

import pyro.distributions as dist
import torch
from torch import Tensor

from bll_pyro import priors
from bll_pyro.scope import isolated

K, D = 2, 3
LOC = torch.tensor([[0.5, -1.0, 0.0], [2.0, 0.1, -0.3]])
COVARIANCE = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.5, -0.4], [0.0, -0.4, 0.8]])

PRIORS: dict[str, priors.Prior] = {
    "normal": priors.Normal(),
    "normal, given": priors.Normal(0.7, loc=LOC),
    "normal, per output": priors.Normal(per_output=True),
    "laplace": priors.Laplace(),
    "laplace, given": priors.Laplace(0.7, loc=LOC),
    "student-t": priors.StudentT(),
    "student-t, given": priors.StudentT(3.0, 0.7, loc=LOC),
    "hierarchical": priors.HierarchicalNormal(),
    "hierarchical, per output": priors.HierarchicalNormal(dist.HalfNormal(1.0), per_output=True, loc=LOC),
    "hierarchical, per feature": priors.HierarchicalNormal(per_feature=True),
    "hierarchical, both": priors.HierarchicalNormal(
        dist.LogNormal(-1.0, 0.5), per_output=True, per_feature=True
    ),
    "horseshoe": priors.Horseshoe(),
    "horseshoe, given": priors.Horseshoe(num_relevant=1, slab_scale=1.5, slab_df=5.0, loc=LOC),
    "spike and slab": priors.SpikeAndSlab(),
    "spike and slab, given": priors.SpikeAndSlab(0.05, 1.0, 0.3, loc=LOC),
    "spike and slab, own priors": priors.SpikeAndSlab(0.1, dist.LogNormal(0.0, 0.3), dist.Beta(2.0, 5.0)),
    "any, Normal": priors.Distribution(dist.Normal(0.2, 0.5)),
    "any, heavy tails": priors.Distribution(dist.StudentT(1.5, 0.0, torch.tensor([0.2, 0.5, 1.0]))),
    "any, one for each": priors.Distribution(dist.Laplace(LOC, 0.5).to_event(2)),
    "any, dependent": priors.Distribution(dist.MultivariateNormal(torch.zeros(D), COVARIANCE)),
}
ELEMENTWISE = {name: prior for name, prior in PRIORS.items() if prior.has_density}


def hyper_of(prior: priors.Prior, seed: int = 0) -> dict[str, Tensor]:
    """Values of all hyper-parameters in double precision: draws of the sampled ones, 0.8, 0.9, ... of the learned."""
    with isolated(seed):
        drawn = {name: given.sample() for name, given in prior.hyper((K, D)).items()}
    learned = {
        name: 0.8 + 0.1 * torch.arange(value.numel()).reshape(value.shape)
        for name, value in prior.learned_start((K, D)).items()
    }
    return {name: value.double() for name, value in {**drawn, **learned}.items()}
