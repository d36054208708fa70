"""NUTS against posteriors that are known: closed form, published reference draws, and the same seed twice."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import bll_pyro as bll
from bll_pyro.declaration import from_plain, to_plain
from bll_pyro.scope import generator

pytestmark = pytest.mark.nuts


def test_conjugate_model() -> None:
    """Means and standard deviations within five Monte-Carlo errors of the exact posterior."""
    random = generator(0)
    mix = torch.randn(4, 4, generator=random, dtype=torch.float64)
    features = torch.randn(60, 4, generator=random, dtype=torch.float64) @ mix
    weight = torch.tensor([1.0, -0.5, 0.3, 0.0], dtype=torch.float64)
    targets = features @ weight + 0.5 * torch.randn(60, generator=random, dtype=torch.float64)
    layer = bll.LastLayer(
        likelihood=bll.likelihoods.Gaussian(noise_scale=0.5), prior=bll.priors.Normal(1.0), standardize=False
    )
    inference = bll.NUTS(num_warmup=150, num_samples=300, num_chains=2, num_processes=1)
    fit = bll.fit(layer, (features, targets), inference=inference)
    exact = bll.fit(layer, (features, targets), inference=bll.Exact()).posterior.sample(20_000, seed=1)
    draws = fit.posterior.sample()
    for name in ("weight", "bias"):
        found, known = draws[name].flatten(0, 1), exact[name].flatten(0, 1)
        # whitened chains of a Gaussian: at least a third of the draws count as independent
        error = 5 * known.std(0) / math.sqrt(len(found) / 3)
        assert bool(((found.mean(0) - known.mean(0)).abs() < error).all())
        assert bool(((found.std(0) / known.std(0) - 1).abs() < 5 / math.sqrt(2 * len(found) / 3)).all())
    assert fit.trace.converged and not fit.posterior.independent_draws


@pytest.mark.filterwarnings(
    "ignore:NUTS. R-hat:RuntimeWarning"
)  # 1.02, of which the effective sample size knows
def test_published_reference_draws(data_dir: Path) -> None:
    """posteriordb's sblri-blr: means and scales within four Monte-Carlo errors of the draws and of the 10,000 of the reference."""
    stored = np.load(data_dir / "posteriordb" / "sblri-blr.npz", allow_pickle=False)
    layer = bll.LastLayer(
        likelihood=bll.likelihoods.Gaussian(noise_scale=dist.HalfNormal(torch.tensor(10.0))),
        prior=bll.priors.Normal(10.0),
        bias=False,
        standardize=False,
    )
    inference = bll.NUTS(num_warmup=100, num_samples=300, num_chains=2, num_processes=1)
    fit = bll.fit(layer, (stored["X"], stored["y"]), inference=inference)
    draws, ess = fit.posterior.sample(), fit.trace.statistics["ess"]
    pairs = [
        ("weight", draws["weight"].flatten(0, 1)[:, 0], stored["beta"]),
        ("noise_scale", draws["noise_scale"].flatten(), stored["sigma"]),
    ]
    for name, found, reference in pairs:
        known, fewest = torch.as_tensor(reference), float(ess[name].min())
        assert fewest > 200
        error = 4 * math.sqrt(1 / fewest + 1 / 10_000)
        assert bool(((found.mean(0) - known.mean(0)).abs() < error * known.std(0)).all())
        assert bool(((found.std(0) / known.std(0) - 1).abs() < error / math.sqrt(2)).all())


NUM_FEATURES = 3
SHORT = bll.NUTS(num_warmup=60, num_samples=40, num_chains=2, num_processes=1)
short = pytest.mark.filterwarnings(
    "ignore:NUTS. (R-hat|the effective):RuntimeWarning"
)  # so few draws are no good


def labelled(num_rows: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(num_rows, NUM_FEATURES, generator=generator(seed))
    noise = torch.randn(num_rows, generator=generator(seed + 1))
    return features, torch.bucketize(features[:, 0] + noise, torch.tensor([-0.7, 0.7]))


@pytest.fixture(scope="module")
def fit() -> bll.Fit:
    layer = bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Normal(1.0))
    with pytest.warns(RuntimeWarning, match="NUTS: R-hat is|NUTS: the effective"):
        return bll.fit(layer, labelled(), inference=SHORT, seed=4)


def test_draws_and_statistics(fit: bll.Fit) -> None:
    draws = fit.posterior.draws
    assert {k: tuple(v.shape) for k, v in draws.items()} == {
        "weight": (2, 40, 3, NUM_FEATURES),
        "bias": (2, 40, 3),
    }
    assert draws["weight"].dtype == torch.float32
    assert not fit.posterior.independent_draws and not fit.trace.converged
    stats = fit.trace.statistics["sample_stats"]
    names = {"diverging", "acceptance_rate", "tree_depth", "n_steps", "step_size", "energy", "lp"}
    assert names <= set(stats) and all(value.shape == (2, 40) for value in stats.values())
    assert 0.6 < float(stats["acceptance_rate"].mean()) < 0.99
    assert fit.trace.statistics["num_gradients"].tolist() > [40, 40]
    assert fit.trace.notes[0] == "the 2 chains ran one after another, in one process"


@short
def test_same_seed_same_draws(fit: bll.Fit) -> None:
    again = bll.fit(fit.layer, labelled(), inference=SHORT, seed=4).posterior.draws
    assert torch.equal(again["weight"], fit.posterior.draws["weight"])


def test_tree(fit: bll.Fit) -> None:
    import arviz as az

    tree = fit.to_datatree(*labelled())
    assert tree.attrs["independent_draws"] == 0
    stats = fit.trace.statistics["sample_stats"]
    for name in ("diverging", "acceptance_rate", "tree_depth", "n_steps", "step_size", "energy", "lp"):
        assert np.array_equal(tree["sample_stats"][name].values, stats[name].numpy())
    # no global unknowns, labels as they come: the chain's density is the tree's
    np.testing.assert_allclose(tree["sample_stats"]["lp"], tree["sample_stats"]["log_p"], rtol=1e-5)
    summary = az.summary(tree, var_names=["bias"])
    np.testing.assert_allclose(
        summary["r_hat"].astype(float), fit.trace.statistics["rhat"]["bias"], atol=0.01
    )


def test_lp_is_in_the_users_units() -> None:
    features, _ = labelled()
    targets = 100 + 20 * features[:, 0] + torch.randn(60, generator=generator(5))
    layer = bll.LastLayer(bll.likelihoods.Gaussian(1.5), bll.priors.Normal(1.0))
    with pytest.warns(RuntimeWarning, match="NUTS"):
        regression = bll.fit(layer, (features, targets), inference=SHORT)
    stats = regression.to_datatree(features, targets)["sample_stats"]
    np.testing.assert_allclose(stats["lp"], stats["log_p"], rtol=1e-4)


def test_predictions(fit: bll.Fit) -> None:
    """The average over the draws of what each of them says."""
    features = labelled(9, seed=7)[0]
    draws, frame = fit.posterior.draws, fit.posterior.frame
    outputs = torch.einsum("cskd,nd->csnk", draws["weight"], (features - frame.center) / frame.scale)
    expected = (outputs + draws["bias"][:, :, None]).softmax(-1).mean((0, 1))
    torch.testing.assert_close(fit.predict(features).probs, expected)


def test_saved_and_loaded(fit: bll.Fit, tmp_path: Path) -> None:
    fit.save(tmp_path / "fit")
    again = bll.load(tmp_path / "fit")
    assert again.inference == fit.inference
    assert torch.equal(again.posterior.draws["weight"], fit.posterior.draws["weight"])
    for name, value in fit.trace.statistics["sample_stats"].items():
        assert torch.equal(again.trace.statistics["sample_stats"][name], value)


@short
def test_a_learned_scale_is_that_of_laplace() -> None:
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))
    data = labelled()
    found = bll.fit(layer, data, inference=SHORT).posterior.learned["tau"]
    laplace = bll.fit(
        layer, data, inference=bll.Laplace(bll.curvatures.Full(), scale_criterion=bll.criteria.Evidence())
    )
    assert float(found) == pytest.approx(float(laplace.posterior.learned["tau"]), rel=0.02)


@short
def test_the_posterior_of_earlier_rows_as_prior() -> None:
    """Two halves, one after the other, are the whole; the prior brings turned axes and correlations along."""
    random = generator(3)
    features = torch.randn(60, NUM_FEATURES, generator=random, dtype=torch.float64)
    targets = features @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64) + torch.randn(
        60, generator=random
    )
    layer = bll.LastLayer(bll.likelihoods.Gaussian(1.0), bll.priors.Normal(0.5), standardize=False)
    first = bll.fit(layer, (features[:30], targets[:30]), inference=bll.SVI(guide=bll.guides.FullRank()))
    layer = bll.LastLayer(bll.likelihoods.Gaussian(1.0), first.as_prior())
    rest = (features[30:], targets[30:])
    inference = bll.NUTS(num_warmup=100, num_samples=150, num_chains=2, num_processes=1)
    found = bll.fit(layer, rest, inference=inference)
    exact = bll.fit(layer, rest, inference=bll.Exact()).posterior.sample(20_000)
    for name in ("weight", "bias"):
        draws, known = found.posterior.draws[name].flatten(0, 1), exact[name].flatten(0, 1)
        error = 5 * known.std(0) / found.trace.statistics["ess"][name].sqrt()
        assert bool(((draws.mean(0) - known.mean(0)).abs() < error).all())


def test_start_under_tails_too_heavy_for_a_variance() -> None:
    """Softmax outputs may move together; of that the data say nothing, and such a prior hardly more."""
    random = generator(0)
    features = 2 + 1.5 * torch.randn(24, NUM_FEATURES, generator=random)
    signal = (features - 2) @ torch.tensor([[0.6, -0.3, 0.0], [0.0, 0.5, 0.2]]).mT
    numbers = signal + 0.5 * torch.randn(24, 2, generator=random)
    prior = bll.priors.Distribution(dist.StudentT(1.5, 0.0, torch.tensor([0.2, 0.5, 1.0])))
    layer = bll.LastLayer(bll.likelihoods.Categorical(2), prior, standardize=False)
    rows = features, (numbers[:, 0] > numbers[:, 0].median()).long()
    with pytest.warns(RuntimeWarning, match="NUTS"):
        fit = bll.fit(
            layer, rows, inference=bll.NUTS(num_warmup=4, num_samples=4, num_chains=2, num_processes=1)
        )
    assert bool(fit.posterior.draws["weight"].isfinite().all())


@short
def test_seeds(fit: bll.Fit) -> None:
    other = bll.fit(fit.layer, labelled(), inference=SHORT, seed=5).posterior.draws["weight"]
    assert not torch.equal(other, fit.posterior.draws["weight"])


def test_written_and_read_back() -> None:
    tensors: dict[str, torch.Tensor] = {}
    assert from_plain(to_plain(SHORT, tensors), tensors) == SHORT != bll.NUTS()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_warmup": 0}, r"NUTS\(num_warmup=...\): expected a whole number >= 1, got 0"),
        ({"num_samples": 3}, r"NUTS\(num_samples=...\): expected a whole number >= 4, got 3"),
        ({"num_chains": 1.5}, r"NUTS\(num_chains=...\): expected a whole number >= 1, got 1.5"),
        ({"num_chains": True}, r"num_chains"),
        ({"max_tree_depth": None}, r"NUTS\(max_tree_depth=...\): expected a whole number >= 1, got None"),
        ({"num_processes": 0}, r"num_processes"),
        ({"target_accept": 1.0}, r"NUTS\(target_accept=...\): expected a number between 0 and 1, got 1.0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bll.NUTS(**options)


def test_what_it_cannot_take_is_said_before_any_work() -> None:
    joint = dist.MultivariateNormal(torch.zeros(NUM_FEATURES), torch.eye(NUM_FEATURES))
    layer = bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Distribution(joint))
    with pytest.raises(ValueError, match=r"NUTS: expected a prior of independent weights.*bll\.SVI\(\)"):
        bll.fit(layer, labelled(), inference=bll.NUTS())
    wide = bll.LastLayer(bll.likelihoods.Categorical(1000))
    with pytest.raises(
        ValueError, match=r"2049000 weights, which take 61\.1 GiB.*num_samples.*bll\.Laplace\(\)"
    ):
        bll.NUTS().check(wide, 1000, 2049)
