"""Noise and hyper-parameters: the user's draws and back, and what a posterior keeps for later calls."""

import copy
import pickle

import pytest
import torch

import bll_pyro as bll
from bll_pyro.model import GlobalSites

RANDOM = torch.Generator().manual_seed(0)
FEATURES, VALUES = torch.randn(40, 3, generator=RANDOM), torch.randn(40, generator=RANDOM)
LAYER = bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.HierarchicalNormal())


@pytest.mark.parametrize(("target_shape", "shown"), [((), ()), ((1,), (1,)), ((2,), (2,))])
def test_the_noise_of_a_single_target_is_a_number_for_users(target_shape, shown) -> None:
    sites = GlobalSites(LAYER, (max([1, *target_shape]), 3), target_shape)
    values = sites.constrain(torch.randn(5, sites.num, generator=RANDOM))[0]
    users = sites.to_user(values)
    assert users["noise_scale"].shape == (5, *shown) and users.keys() == values.keys()
    assert all(torch.equal(value, values[name]) for name, value in sites.from_user(users).items())


def test_a_posterior_makes_its_sites_once_for_each_default_dtype() -> None:
    posterior = bll.fit(LAYER, (FEATURES, VALUES), inference=bll.SVI(num_epochs=3)).posterior
    with torch.inference_mode():
        sites = posterior.global_sites
    assert posterior.global_sites is sites
    torch.set_default_dtype(torch.float64)
    try:
        assert posterior.global_sites is not sites
    finally:
        torch.set_default_dtype(torch.float32)
    u = torch.zeros(sites.num, requires_grad=True)
    sites.constrain(u)[1].backward()  # what was made in inference mode serves gradients too
    assert u.grad is not None
    for copied in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        assert "_global_sites" not in copied.__dict__
        assert all(torch.equal(value, copied.sample(3)[name]) for name, value in posterior.sample(3).items())


def test_the_trace_names_what_others_read() -> None:
    trace = bll.fit(LAYER, (FEATURES, VALUES), inference=bll.SVI(num_epochs=3)).trace
    assert trace.final_elbo == trace.statistics["elbo"] and trace.by_draw == {}
    assert trace.log_evidence is trace.sums is trace.joint is trace.rhat is trace.ess is None
