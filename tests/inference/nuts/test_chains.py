"""Chains: the same wherever they run, and statistics that belong to their draws."""

import pickle

import numpy as np
import pytest
import torch

import bll_pyro as bll
from bll_pyro.frame import Frame
from bll_pyro.inference.base import Trace
from bll_pyro.inference.nuts.approximation import approximate
from bll_pyro.inference.nuts.chains import ChainSettings, initial_state, run_chain, run_chains
from bll_pyro.inference.nuts.coordinates import coordinates
from bll_pyro.inference.nuts.density import LogDensity
from bll_pyro.inference.nuts.row_terms import row_terms
from bll_pyro.inference.rows import DesignRows
from bll_pyro.scope import generator, isolated

pytestmark = pytest.mark.nuts

SETTINGS = ChainSettings(num_warmup=20, num_samples=10, target_accept=0.8, max_tree_depth=4)
FEATURES = torch.randn(30, 3, generator=generator(0), dtype=torch.float64)
TARGETS = FEATURES[:, :1] + 0.3 * torch.randn(30, 1, generator=generator(1), dtype=torch.float64)


def density(targets: torch.Tensor = TARGETS) -> LogDensity:
    layer = bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.HierarchicalNormal())
    rows = DesignRows(FEATURES, TARGETS, Frame.identity(3, 1, FEATURES))
    with isolated(0, torch.float64):
        origin = approximate(layer, rows, (1,), Trace())
        terms = row_terms(layer.likelihood, DesignRows(FEATURES, targets, rows.frame), 1)
        place = coordinates(layer, origin, rows, (1,), row_terms(layer.likelihood, rows, 1))
        return LogDensity(layer, 3, (1,), terms, origin.learned, place, torch.float64)


def test_same_draws_in_processes_and_in_turn() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    np_before = np.random.get_state()[1].copy()
    alone = run_chains(density(), 3, 2, SETTINGS, num_processes=1)
    together = run_chains(density(), 3, 2, SETTINGS, num_processes=2)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.weights, other.weights) and np.array_equal(one.u, other.u)
        assert one.num_gradients == other.num_gradients
        for name, values in one.statistics.items():
            assert np.array_equal(values, other.statistics[name]), name
    assert not np.array_equal(alone[0].weights, alone[1].weights)
    more = run_chains(density(), 3, 1, SETTINGS, num_processes=1)
    assert np.array_equal(more[0].weights, alone[0].weights), "a chain does not depend on how many there are"
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    assert np.array_equal(np.random.get_state()[1], np_before)


def test_statistics_belong_to_the_draws() -> None:
    at = pickle.loads(pickle.dumps(density()))
    chain = run_chain(at, 5, SETTINGS)
    stats = chain.statistics
    for index in range(SETTINGS.num_samples):
        with torch.no_grad():
            log_joint = at.log_joint(torch.from_numpy(chain.u[index]), torch.from_numpy(chain.weights[index]))
        assert stats["lp"][index] == pytest.approx(float(log_joint), rel=1e-9)
    names = {"diverging", "acceptance_rate", "tree_depth", "n_steps", "step_size", "energy", "lp"}
    assert names | {"reached_max_treedepth"} == set(stats)
    assert all(values.shape == (SETTINGS.num_samples,) for values in stats.values())
    assert stats["diverging"].dtype == bool and stats["n_steps"].dtype == np.int64
    assert (stats["tree_depth"] <= SETTINGS.max_tree_depth).all()
    # gradients of the warm-up and of the search for a first step come on top
    assert chain.num_gradients > stats["n_steps"].sum()


def test_a_density_that_is_nowhere_finite() -> None:
    with (
        isolated(0),
        pytest.raises(ValueError, match="expected a finite log density near the mode, got infinity"),
    ):
        initial_state(density(torch.full_like(TARGETS, float("nan"))), torch.device("cpu"))
