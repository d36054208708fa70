"""The converter as a whole: seeds, groups that are asked for, new rows, and the caller's world afterwards."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from datatree.programs.pyro_models import (
    EFFECTS,
    ERRORS,
    F64,
    eight_schools,
    line_data,
    number,
    regression,
    train,
)
from pyro.infer.autoguide import AutoNormal

from bll_pyro.datatree import from_pyro
from bll_pyro.scope import isolated


def test_the_same_seed_gives_the_same_tree_and_groups_are_independent() -> None:
    samples = {"mu": torch.zeros(2, 5, dtype=F64), "tau": torch.ones(2, 5, dtype=F64)}
    samples["eta"] = torch.zeros(2, 5, 8, dtype=F64)
    convert = {
        "model": eight_schools,
        "posterior_samples": samples,
        "args": (ERRORS, EFFECTS),
        "num_draws": 20,
    }
    first, again, other = (from_pyro(**convert, seed=seed) for seed in (3, 3, 4))
    assert first.equals(again)
    assert not first.prior.equals(other.prior)
    assert not first.posterior_predictive.equals(other.posterior_predictive)
    assert first.log_likelihood.equals(other.log_likelihood)
    less = from_pyro(**convert, seed=3, prior=False, log_likelihood=False)
    assert less.posterior_predictive.equals(first.posterior_predictive)
    assert set(less.children) == {
        "posterior",
        "posterior_predictive",
        "log_prior",
        "sample_stats",
        "observed_data",
    }


def test_without_draws_the_prior_alone() -> None:
    tree = from_pyro(eight_schools, args=(ERRORS, EFFECTS), prior=30)
    assert set(tree.children) == {"prior", "prior_predictive", "observed_data"}
    assert dict(tree.prior_predictive.sizes) == {"chain": 1, "draw": 30, "school": 8}


def test_predictions_for_new_rows() -> None:
    samples = {
        "weight": torch.tensor([[1.0, 0.0, 0.0], [0.0, 100.0, 0.0]], dtype=F64),
        "bias": torch.tensor([0.0, 5.0], dtype=F64),
        "noise": torch.full((2,), 1e-9, dtype=F64),
    }
    new = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=F64)
    tree = from_pyro(
        regression,
        samples,
        args=line_data(),
        sample_dims=("draw",),
        prior=False,
        predictions_args=(new,),
        predictions_coords={"data": ["p", "q"]},
        predictions_constant_data={"x": new},
        dims={"x": ["data", None]},
    )
    np.testing.assert_allclose(tree.predictions.y[0], [[1.0, 4.0], [205.0, 505.0]], atol=1e-6)
    assert list(tree.predictions["data"].values) == ["p", "q"]
    assert tree.predictions_constant_data.x.dims == ("data", "x_dim_1")
    assert tree.posterior_predictive.sizes["data"] == 60


def test_the_callers_world_is_untouched() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(3, dtype=F64)
            self.frozen = torch.nn.Dropout().eval()

        def model(self, x: torch.Tensor, y: torch.Tensor) -> None:
            pyro.module("net", self)
            regression(self.frozen(self.norm(x)), y)

    x, y = line_data()
    with isolated(0):
        net, guide = Net(), AutoNormal(regression)
        pyro.param("mine", number(3.0), constraint=dist.constraints.positive)
        train(regression, guide, x, y, num_steps=2)
    state = {"mine": torch.tensor(1.5, requires_grad=True)}
    pyro.get_param_store().set_state(
        {"params": dict(state), "constraints": {"mine": dist.constraints.positive}}
    )
    guide.train()
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    values = {name: (value, value.detach().clone()) for name, value in guide.named_parameters()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    validation = torch.distributions.Distribution._validate_args

    from_pyro(net.model, guide=guide, args=(x, y), num_draws=10)

    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert dict(pyro.get_param_store().named_parameters())["mine"] is state["mine"]
    pyro.clear_param_store()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state()) == str(numpy_state)
    assert torch.distributions.Distribution._validate_args == validation
    assert [part.training for part in (net, net.norm, net.frozen, guide)] == [True, True, False, True]
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert all(now is values[name][0] for name, now in guide.named_parameters())
    assert all(torch.equal(now, values[name][1]) for name, now in guide.named_parameters())
