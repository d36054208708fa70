"""Weights and exposures of rows: a weight of 2 is a row twice, an exposure is an offset, in every inference."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bll_pyro as bll
from bll_pyro.inference.nuts.row_terms import row_terms
from bll_pyro.inference.rows import DesignRows
from bll_pyro.scope import generator, isolated

plain_fit = partial(bll.fit, calibration=None)  # predictions of the posterior itself


lk = bll.likelihoods
RANDOM = generator(0)
N = 40
FEATURES = torch.randn(N, 3, generator=RANDOM, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
SIGNAL = FEATURES @ torch.tensor([0.8, -0.4, 0.3], dtype=torch.float64)
VALUES = SIGNAL + 0.5 * torch.randn(N, generator=RANDOM, dtype=torch.float64)
EXPOSURE = 0.2 + 4 * torch.rand(N, generator=RANDOM, dtype=torch.float64)
COUNTS = torch.poisson(EXPOSURE * SIGNAL.clamp(-2, 2).exp(), generator=RANDOM)
LABELS = torch.bucketize(VALUES, torch.tensor([-0.8, 0.0, 0.8], dtype=torch.float64))
WEIGHT = torch.randint(0, 4, (N,), generator=RANDOM)
REPEATED = torch.arange(N).repeat_interleave(WEIGHT)
TARGETS: dict[str, tuple[lk.Likelihood, Tensor]] = {
    "Bernoulli": (lk.Bernoulli(), (VALUES > 0).long()),
    "Categorical": (lk.Categorical(4), LABELS),
    "Gaussian": (lk.Gaussian(), VALUES),
    "HeteroscedasticGaussian": (lk.HeteroscedasticGaussian(), VALUES),
    "MultivariateGaussian": (lk.MultivariateGaussian(), torch.stack([VALUES, SIGNAL.flip(0) - VALUES], 1)),
    "NegativeBinomial": (lk.NegativeBinomial(), COUNTS),
    "Ordinal": (lk.Ordinal(4), LABELS),
    "Poisson": (lk.Poisson(), COUNTS),
    "StudentT": (lk.StudentT(), VALUES),
}
FULL = bll.Laplace(curvature=bll.curvatures.Full())


def layer_of(likelihood: lk.Likelihood, scale: float | None = 0.7) -> bll.LastLayer:
    return bll.LastLayer(likelihood=likelihood, prior=bll.priors.Normal(scale))


def same_fit(one: bll.Fit, other: bll.Fit, tolerance: float) -> None:
    """Frames, predictions and log evidence agree."""
    for name, value in one.posterior.frame.tensors.items():
        if name != "rotation":  # axes are known up to their sign
            assert torch.allclose(value, other.posterior.frame.tensors[name], rtol=1e-10, atol=1e-12)
    first, second = one.predict(FEATURES), other.predict(FEATURES)
    for name in ("total", "epistemic"):
        assert torch.allclose(getattr(first, name), getattr(second, name), rtol=tolerance, atol=1e-9)
    assert one.log_evidence == pytest.approx(other.log_evidence, rel=tolerance, abs=1e-6)


@pytest.mark.parametrize("scale", [0.7, None], ids=["given", "learned"])
@pytest.mark.parametrize("noise", [bll.noises.Integrated(), bll.noises.Conjugate(), bll.noises.Maximized()])
@pytest.mark.thinned(3)
def test_whole_weights_repeat_rows_exact(noise: Any, scale: float | None) -> None:
    layer, inference = layer_of(lk.Gaussian(), scale), bll.Exact(noise=noise)
    weighted = plain_fit(layer, (FEATURES, VALUES), inference=inference, sample_weight=WEIGHT)
    repeated = plain_fit(layer, (FEATURES[REPEATED], VALUES[REPEATED]), inference=inference)
    same_fit(weighted, repeated, 1e-6)
    first, second = weighted.predict(FEATURES).log_prob(VALUES), repeated.predict(FEATURES).log_prob(VALUES)
    assert torch.allclose(first, second, atol=1e-6)


def test_updates_with_weights_add_up() -> None:
    layer, rest = layer_of(lk.Gaussian()), slice(25, None)
    begun = plain_fit(layer, (FEATURES[:25], VALUES[:25]), inference=bll.Exact(), sample_weight=WEIGHT[:25])
    more = bll.Data((FEATURES[rest], VALUES[rest]), sample_weight=WEIGHT[rest])
    number = int(WEIGHT[:25].sum())
    head = plain_fit(layer, (FEATURES[REPEATED[:number]], VALUES[REPEATED[:number]]), inference=bll.Exact())
    tail = (FEATURES[REPEATED[number:]], VALUES[REPEATED[number:]])
    same_fit(begun.update(more), head.update(tail), 1e-6)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.thinned(3)
def test_whole_weights_repeat_rows_laplace(name: str) -> None:
    likelihood, targets = TARGETS[name]
    weighted = plain_fit(layer_of(likelihood), (FEATURES, targets), inference=FULL, sample_weight=WEIGHT)
    rows = (FEATURES[REPEATED], targets[REPEATED])
    same_fit(weighted, plain_fit(layer_of(likelihood), rows, inference=FULL), 1e-5)


@pytest.mark.parametrize("curvature", [bll.curvatures.Diagonal(), bll.curvatures.Kronecker()])
def test_whole_weights_repeat_rows_other_curvatures(curvature: Any) -> None:
    likelihood, targets = TARGETS["Categorical"]
    inference = bll.Laplace(curvature=curvature)
    weighted = plain_fit(layer_of(likelihood), (FEATURES, targets), inference=inference, sample_weight=WEIGHT)
    rows = (FEATURES[REPEATED], targets[REPEATED])
    same_fit(weighted, plain_fit(layer_of(likelihood), rows, inference=inference), 1e-5)


@pytest.mark.parametrize("name", TARGETS)
def test_log_joint_of_the_objective_and_of_nuts(name: str) -> None:
    """Value and slope in the weights are those of repeated rows, where NUTS and SVI read them."""
    likelihood, targets = TARGETS[name]
    frame = replace(
        plain_fit(layer_of(likelihood), (FEATURES, targets), inference=FULL).posterior.frame, rotation=None
    )
    inside, checked = likelihood.in_units(frame.target_scale), likelihood.check_targets(targets)
    columns = bll.Data(None, WEIGHT).columns(N, False, "data")
    shape = tuple(targets.shape[1:])
    num_outputs = likelihood.num_outputs(shape)
    given = DesignRows(FEATURES, checked, frame, columns=columns)
    plain = DesignRows(FEATURES[REPEATED], checked[REPEATED], frame)
    weights = torch.randn(num_outputs, given.num_columns, generator=generator(1), dtype=torch.float64)
    special = {"cutpoints": [-1.0, 0.2, 1.0], "partial_correlation": [0.6]}
    noise = {
        name: torch.tensor(special.get(name, [4.0] * num_outputs), dtype=torch.float64)
        for name in inside.sites(shape)
    }
    first = row_terms(inside, given, num_outputs)(weights, noise)
    second = row_terms(inside, plain, num_outputs)(weights, noise)
    assert torch.allclose(first[0], second[0]) and torch.allclose(first[1], second[1])
    assert all(torch.allclose(first[2][site], second[2][site]) for site in noise)
    assert given.total_weight == plain.total_weight == len(REPEATED)


@pytest.mark.parametrize("output_space", [True, False])
@pytest.mark.parametrize("name", ["Categorical", "Poisson"])
@pytest.mark.thinned(3)
def test_whole_weights_repeat_rows_in_expectation_svi(name: str, output_space: bool) -> None:
    """The ELBO of one state, averaged over draws, is that of repeated rows."""
    from bll_pyro.inference.start import warm_start
    from bll_pyro.inference.svi.objective import Objective
    from bll_pyro.model import Model

    likelihood, targets = TARGETS[name]
    layer, svi = layer_of(likelihood), bll.SVI(output_space=output_space)
    frame = plain_fit(layer, (FEATURES, targets), inference=FULL).posterior.frame
    frame, checked = replace(frame, rotation=None), likelihood.check_targets(targets)
    columns = bll.Data(None, WEIGHT, EXPOSURE if likelihood.is_count else None).columns(N, False, "data")
    values = []
    with isolated(3, torch.float64):
        plain = DesignRows(
            FEATURES[REPEATED], checked[REPEATED], frame, columns=replace(columns, weight=None)[REPEATED]
        )
        for rows in (DesignRows(FEATURES, checked, frame, columns=columns), plain):
            model = Model(layer, 3, ())
            guide = svi.guide.build(model, warm_start(layer, model.global_sites, rows, model.num_outputs, {}))
            objective = Objective(layer, model, guide, rows.num_rows, output_space)
            random = generator(4)
            with torch.no_grad():
                values.append(torch.stack([objective(*rows[:], random) for _ in range(200)]))
    error = math.sqrt(sum(float(v.var()) / len(v) for v in values))
    assert abs(float(values[0].mean() - values[1].mean())) < 4 * error + 1e-3


def test_minibatches_with_weights_are_unbiased() -> None:
    batches = bll.SVI(batch_size=10, num_epochs=100)
    small = plain_fit(layer_of(lk.Gaussian(0.5)), (FEATURES, VALUES), inference=batches, sample_weight=WEIGHT)
    whole = bll.SVI(num_epochs=300)
    repeated = plain_fit(layer_of(lk.Gaussian(0.5)), (FEATURES[REPEATED], VALUES[REPEATED]), inference=whole)
    assert small.elbo == pytest.approx(repeated.elbo, abs=0.3)


@pytest.mark.parametrize("name", ["Poisson", "NegativeBinomial"])
def test_exposure_is_an_offset(name: str) -> None:
    """Log density at an exposure e is SciPy's at e exp(f); a fit with exposures finds the rate."""
    likelihood = lk.Poisson() if name == "Poisson" else lk.NegativeBinomial(concentration=2.5)
    outputs = torch.randn(N, 1, generator=generator(2), dtype=torch.float64)
    mean = (EXPOSURE[:, None] * outputs.exp()).numpy()
    expected = (
        scipy.stats.poisson(mean).logpmf(COUNTS.numpy()[:, None])
        if name == "Poisson"
        else scipy.stats.nbinom(2.5, 2.5 / (2.5 + mean)).logpmf(COUNTS.numpy()[:, None])
    )
    found = likelihood.log_prob(outputs, COUNTS[:, None], exposure=EXPOSURE[:, None])
    assert np.allclose(found.numpy(), expected[:, 0])
    fit = plain_fit(layer_of(likelihood), (FEATURES, COUNTS), inference=FULL, exposure=EXPOSURE)
    # an exposure of 2 everywhere is log 2 in the bias, up to the bias' prior
    twice = plain_fit(layer_of(likelihood), (FEATURES, COUNTS), inference=FULL, exposure=2 * EXPOSURE)
    shift = float((fit.posterior.outputs(FEATURES).mean - twice.posterior.outputs(FEATURES).mean).mean())
    assert shift == pytest.approx(math.log(2), abs=5e-3)
    one, ten = fit.predict(FEATURES), fit.predict(FEATURES, exposure=torch.full((N,), 10.0))
    assert torch.allclose(ten.mean, 10 * one.mean)
    assert torch.allclose(ten.epistemic, 100 * one.epistemic)
    at = fit.predict(FEATURES, exposure=EXPOSURE)
    parts = [fit.predict(FEATURES[i], exposure=EXPOSURE[i]) for i in (slice(0, 7), slice(7, N))]
    joined = type(at).concat(parts)
    for method in ("log_prob", "cdf"):
        assert torch.allclose(getattr(joined, method)(COUNTS), getattr(at, method)(COUNTS))
    rate = EXPOSURE * SIGNAL.clamp(-2, 2).exp()
    assert float(np.corrcoef(at.mean.numpy(), rate.numpy())[0, 1]) > 0.9


@pytest.mark.parametrize("name", ["Poisson", "NegativeBinomial"])
def test_tree_and_leave_one_out_know_weights_and_exposures(name: str) -> None:
    likelihood = TARGETS[name][0]
    data = bll.Data((FEATURES, COUNTS), WEIGHT.clamp_min(1), EXPOSURE)
    fit = plain_fit(layer_of(likelihood), data, inference=FULL)
    tree = fit.to_datatree(data, num_draws=8, prior=False)
    draws = {k: torch.as_tensor(v.values)[0] for k, v in tree["posterior"].data_vars.items()}
    outputs = fit.posterior.frame.standardized(FEATURES) @ draws["weight"][:, 0].T + draws["bias"][:, 0]
    noise = {k: v[:, None, None] for k, v in draws.items() if k == "concentration"}
    by_row = likelihood.log_prob(outputs.T[..., None], COUNTS[:, None], exposure=EXPOSURE[:, None], **noise)
    found = torch.as_tensor(tree["log_likelihood"]["y"].values)[0]
    assert torch.allclose(found, WEIGHT.clamp_min(1) * by_row, rtol=1e-5)
    assert np.allclose(tree["constant_data"]["exposure"], EXPOSURE)
    left_out = bll.loo(fit, data)
    # without row n: a fit on the others
    row = int(np.argmax(left_out.influence.values))
    others = torch.arange(N) != row
    rest = bll.Data((FEATURES[others], COUNTS[others]), WEIGHT.clamp_min(1)[others], EXPOSURE[others])
    refit = plain_fit(layer_of(likelihood), rest, inference=FULL)
    new = bll.Data(FEATURES[row : row + 1], exposure=EXPOSURE[row : row + 1])
    expected = float(refit.predict(new).log_prob(COUNTS[row : row + 1]))
    whole = float(fit.predict(FEATURES, exposure=EXPOSURE).log_prob(COUNTS)[row])
    assert abs(float(left_out.elpd_i[row]) - expected) < 0.3 * abs(whole - expected) + 0.05


def test_leave_one_out_of_exact_fits_with_weights() -> None:
    """A row of weight 3 is left out with all of it."""
    weight = torch.ones(N, dtype=torch.float64)
    weight[5] = 3.0
    layer = replace(layer_of(lk.Gaussian(0.5)), standardize=False)
    fit = plain_fit(layer, (FEATURES, VALUES), inference=bll.Exact(), sample_weight=weight)
    others = torch.arange(N) != 5
    refit = plain_fit(layer, (FEATURES[others], VALUES[others]), inference=bll.Exact())
    expected = float(refit.predict(FEATURES[5:6]).log_prob(VALUES[5:6]))
    found = bll.loo(fit, bll.Data((FEATURES, VALUES), weight))
    assert float(found.elpd_i[5]) == pytest.approx(expected, abs=1e-6)


def test_joint_training_takes_weights_and_exposures() -> None:
    """A weight of 0 leaves the rows out, in any order of the batches: their targets don't matter."""
    inputs, weight = FEATURES.float(), (torch.arange(N) % 2).float()
    ruined = torch.where(weight > 0, COUNTS, COUNTS + 50).float()
    svi = bll.SVI(backbone_learning_rate=1e-2, num_epochs=2, batch_size=8, final_stage=False)
    layer, fits = layer_of(lk.Poisson()), []
    pairs = [(inputs, COUNTS.float()), (inputs, ruined)]
    for rows in [*pairs, *(list_dataset(*pair) for pair in pairs)]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            backbone = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        fits.append(bll.fit(layer, rows, backbone, svi, sample_weight=weight, exposure=EXPOSURE))
    weights = [fit.posterior.sample(3)["weight"] for fit in fits]
    assert torch.allclose(weights[0], weights[1], atol=1e-5)
    assert torch.allclose(weights[2], weights[3], atol=1e-5)
    plain = bll.fit(layer, (inputs, ruined), fits[0].backbone, svi)
    assert not torch.allclose(plain.posterior.sample(3)["weight"], weights[0])


def list_dataset(inputs: Tensor, targets: Tensor) -> torch.utils.data.Dataset[Any]:
    class Pairs(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(inputs)

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return inputs[index], targets[index]

    return Pairs()


BAD: list[tuple[str, dict[str, Any], str]] = [
    (
        "Gaussian",
        {"sample_weight": -torch.ones(N)},
        "sample_weight of data: expected numbers >= 0, got -1.0 in row 0",
    ),
    ("Gaussian", {"sample_weight": torch.zeros(N)}, "expected at least one weight above 0, got none"),
    (
        "Gaussian",
        {"sample_weight": torch.ones(N - 1)},
        "expected one entry for each of the 40 rows, got shape",
    ),
    ("Gaussian", {"sample_weight": torch.ones(N, 2)}, "expected one number for each row"),
    ("Gaussian", {"sample_weight": torch.full((N,), math.nan)}, "expected finite values"),
    ("Gaussian", {"exposure": torch.ones(N)}, "expected a likelihood of counts"),
    ("Poisson", {"exposure": torch.zeros(N)}, "exposure of data: expected positive numbers, got"),
    ("Poisson", {"exposure": -EXPOSURE}, "exposure of data: expected positive numbers, got"),
    ("Poisson", {"exposure": torch.ones(3)}, "expected one entry for each of the 40 rows, got shape"),
    ("Poisson", {"exposure": torch.ones(N, 2)}, "one for each count"),
]


@pytest.mark.parametrize(("name", "columns", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_columns(name: str, columns: dict[str, Any], message: str) -> None:
    likelihood, targets = TARGETS[name]
    with pytest.raises(ValueError, match=message.replace(".", r"\.").replace("[", r"\[")):
        plain_fit(layer_of(likelihood), (FEATURES, targets), **columns)


def test_bad_exposures_of_predictions() -> None:
    fit = plain_fit(layer_of(lk.Poisson()), (FEATURES, COUNTS), inference=FULL, exposure=EXPOSURE)
    with pytest.raises(ValueError, match="exposure of inputs: expected one entry for each of the 3 rows"):
        fit.predict(FEATURES[:3], exposure=EXPOSURE)
    with pytest.raises(ValueError, match="expected positive numbers"):
        fit.predict(FEATURES[:3], exposure=[1.0, 0.0, 1.0])
    shuffled = DataLoader(TensorDataset(FEATURES, COUNTS), batch_size=8, shuffle=True)
    with pytest.raises(ValueError, match="DataLoader that shuffles"):
        plain_fit(layer_of(lk.Poisson()), shuffled, exposure=EXPOSURE)
    with pytest.raises(ValueError, match="in one place"):
        fit.predict(bll.Data(FEATURES, exposure=EXPOSURE), exposure=EXPOSURE)
    with pytest.raises(ValueError, match="expected a likelihood of counts"):
        plain_fit(layer_of(lk.Gaussian()), (FEATURES, VALUES), inference=FULL).predict(
            FEATURES, exposure=EXPOSURE
        )
