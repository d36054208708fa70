"""What a chain tells of itself: Pyro's kernel and the one that records."""

import warnings
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from datatree.programs.pyro_models import EFFECTS, ERRORS, eight_schools, number, run_nuts
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model

from bll_pyro.datatree import RecordingNUTS, from_pyro
from bll_pyro.scope import isolated

pytestmark = pytest.mark.nuts


def funnel() -> None:
    """A funnel makes a coarse sampler diverge."""
    v = pyro.sample("v", dist.Normal(number(0.0), 3.0))
    with pyro.plate("x", 3):
        pyro.sample("z", dist.Normal(number(0.0), (v / 2).exp()))


def test_recording_changes_nothing_and_keeps_everything() -> None:
    plain = run_nuts(NUTS(eight_schools, max_tree_depth=4), ERRORS, EFFECTS, num_draws=25, warmup=25)
    means = []  # Pyro's running mean of the acceptance, after every draw

    def hook(kernel: NUTS, params: object, stage: str, i: int) -> None:
        means.append(kernel._mean_accept_prob)

    kernel = RecordingNUTS(eight_schools, max_tree_depth=4)
    recording = run_nuts(kernel, ERRORS, EFFECTS, num_draws=25, warmup=25, hook=hook)
    first, second = (
        from_pyro(mcmc=mcmc, prior=False, posterior_predictive=False) for mcmc in (plain, recording)
    )
    assert first.posterior.equals(second.posterior)
    assert set(first.sample_stats.data_vars) == {"diverging", "log_p", "lp"}
    stats = second.sample_stats
    assert {"acceptance_rate", "n_steps", "tree_depth", "reached_max_treedepth", "step_size", "energy"} < set(
        stats
    )
    assert stats.n_steps.dtype == stats.tree_depth.dtype == np.int64
    assert stats.reached_max_treedepth.dtype == bool
    np.testing.assert_allclose(stats.acceptance_rate[0].values.cumsum() / np.arange(1, 26), means[25:])
    assert ((stats.acceptance_rate >= 0) & (stats.acceptance_rate <= 1)).all()
    assert (stats.n_steps < 2**stats.tree_depth).all(), "j doublings take at most 2^j - 1 steps"
    assert (stats.n_steps >= 2 ** (stats.tree_depth - 1)).all(), "all but the last of them are whole"
    assert (stats.step_size == stats.step_size[0, 0]).all()


def test_energy_and_lp_are_those_of_the_sampler() -> None:
    mcmc = run_nuts(RecordingNUTS(eight_schools), ERRORS, EFFECTS, num_draws=30, warmup=30)
    stats = from_pyro(mcmc=mcmc, prior=False, posterior_predictive=False).sample_stats
    _, potential, transforms, _ = initialize_model(eight_schools, (ERRORS, EFFECTS))
    samples = mcmc.get_samples()
    lp = [-potential({k: transforms[k](v[s]) for k, v in samples.items()}).item() for s in range(30)]
    np.testing.assert_allclose(stats.lp[0], lp, rtol=1e-6)
    # energy = potential where the draw before ended, and a kinetic part that is positive, of 10 momenta
    kinetic = stats.energy[0, 1:].values + stats.lp[0, :-1].values
    assert (kinetic > 0).all()
    assert kinetic.mean() == pytest.approx(5.0, abs=4 * np.sqrt(5.0 / 29))


def test_divergences_are_placed_at_their_draws() -> None:
    with isolated(1):
        kernel = RecordingNUTS(funnel, step_size=2.0, adapt_step_size=False)
        mcmc = MCMC(kernel, num_samples=60, warmup_steps=10, disable_progbar=True)
        mcmc.run()
    tree = from_pyro(mcmc=mcmc, log_likelihood=False, prior=False)
    diverging = tree.sample_stats.diverging.values[0]
    assert list(np.flatnonzero(diverging)) == mcmc.diagnostics()["divergences"]["chain 0"]
    assert 0 < diverging.sum() < 60
    assert (
        tree.sample_stats.acceptance_rate.values[0][diverging].mean()
        < tree.sample_stats.acceptance_rate.mean()
    )


def test_hmc_has_what_pyro_keeps() -> None:
    kernel = HMC(eight_schools, step_size=0.1, num_steps=3)
    mcmc = run_nuts(kernel, ERRORS, EFFECTS, num_draws=10, warmup=5)
    tree = from_pyro(mcmc=mcmc, prior=False)
    assert tree.attrs["inference"] == "HMC"
    assert set(tree.sample_stats.data_vars) == {"diverging", "log_p", "lp"}
    assert tree.attrs["accepted_transitions"] == [float(mcmc.diagnostics()["acceptance rate"]["chain 0"])]


# Pyro forks its workers from a process with threads.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_chains_in_processes_of_their_own_bring_their_records_home() -> None:
    with (
        isolated(0),
        mock.patch("pyro.infer.mcmc.api.mp.cpu_count", return_value=3),
        warnings.catch_warnings(),
    ):
        kernel = RecordingNUTS(eight_schools, step_size=0.1, adapt_step_size=False, max_tree_depth=2)
        mcmc = MCMC(kernel, num_samples=4, warmup_steps=2, num_chains=2, disable_progbar=True)
        mcmc.run(ERRORS, EFFECTS)
    tree = from_pyro(mcmc=mcmc, prior=False)
    assert tree.sample_stats.n_steps.shape == (2, 4)
    assert (tree.sample_stats.n_steps > 0).all()
    assert not np.array_equal(tree.posterior.mu[0], tree.posterior.mu[1])


def test_a_kernel_from_a_potential_function_needs_its_model() -> None:
    def potential(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return (values["a"] ** 2).sum() / 2

    with isolated(0):
        kernel = NUTS(potential_fn=potential)
        mcmc = MCMC(
            kernel, num_samples=5, warmup_steps=2, initial_params={"a": torch.zeros(2)}, disable_progbar=True
        )
        mcmc.run()
    with pytest.raises(ValueError, match="the kernel of mcmc was made from a potential function"):
        from_pyro(mcmc=mcmc)

    def model() -> None:
        pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    tree = from_pyro(model, mcmc=mcmc, log_likelihood=False, prior=False)
    assert tree.posterior.a.shape == (1, 5, 2)
