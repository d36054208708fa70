"""The log likelihood that chains evaluate, against the likelihoods themselves."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro.frame import Frame
from bll_pyro.inference.nuts import row_terms as module
from bll_pyro.inference.nuts.row_terms import AnyRows, GaussianRows, SoftmaxRows, row_terms
from bll_pyro.inference.rows import DesignRows
from bll_pyro.scope import generator, isolated

NUM_ROWS, NUM_FEATURES = 37, 4
RANDOM = generator(0)
FEATURES = torch.randn(NUM_ROWS, NUM_FEATURES, generator=RANDOM, dtype=torch.float64)
VALUES = torch.randn(NUM_ROWS, 2, generator=RANDOM, dtype=torch.float64)
LABELS = torch.randint(0, 3, (NUM_ROWS,), generator=RANDOM)
MODELS = {
    bll.likelihoods.Gaussian(): VALUES,
    bll.likelihoods.Gaussian(0.7): VALUES,
    bll.likelihoods.Gaussian((0.7, 1.3)): VALUES,
    bll.likelihoods.Categorical(3): LABELS,
    bll.likelihoods.Categorical(3, temperature=2.5): LABELS,
    bll.likelihoods.Bernoulli(): (LABELS > 0).long(),
    bll.likelihoods.Poisson(): LABELS,
    bll.likelihoods.NegativeBinomial(): LABELS,
    bll.likelihoods.StudentT(): VALUES,
    bll.likelihoods.HeteroscedasticGaussian(): VALUES,
    bll.likelihoods.Ordinal(3): LABELS,
    bll.likelihoods.MultivariateGaussian(): VALUES,
    bll.likelihoods.MultivariateGaussian([[0.5, 0.4], [0.4, 2.0]]): VALUES,
}


def make(
    likelihood: bll.likelihoods.Likelihood, num_rows: int = NUM_ROWS
) -> tuple[DesignRows, Tensor, dict[str, Tensor]]:
    """DesignRows, weights, and noise drawn from its prior."""
    given = MODELS[likelihood][:num_rows]
    target_shape = tuple(given.shape[1:]) if likelihood.real_valued else ()
    targets = likelihood.check_targets(given)
    num_targets = targets.shape[1] if targets.dim() == 2 else 1
    frame = Frame.identity(NUM_FEATURES, num_targets, FEATURES)
    weights = torch.randn(
        likelihood.num_outputs(target_shape), NUM_FEATURES + 1, generator=generator(1)
    ).double()
    with isolated(2, torch.float64):
        noise = {name: prior.sample() for name, prior in likelihood.sites(target_shape).items()}
    return DesignRows(FEATURES[:num_rows], targets, frame), weights, noise


@pytest.mark.parametrize("num_rows", [NUM_ROWS, 3])  # more and fewer rows than columns
@pytest.mark.parametrize("likelihood", MODELS, ids=repr)
def test_value_and_slopes(
    likelihood: bll.likelihoods.Likelihood, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "block_size", lambda num_outputs, rows: 10)  # several blocks
    rows, weights, noise = make(likelihood, num_rows)
    terms = row_terms(likelihood, rows, len(weights))
    leaves = [value.clone().requires_grad_() for value in (weights, *noise.values())]
    design, targets = rows[:]
    named = dict(zip(noise, leaves[1:], strict=True))
    expected = likelihood.log_prob(design @ leaves[0].mT, targets, **named).sum()
    slopes = torch.autograd.grad(expected, leaves)
    found = terms.log_prob(leaves[0], named)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for one, other in zip(torch.autograd.grad(found, leaves), slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_kinds() -> None:
    kinds = {
        bll.likelihoods.Gaussian(): GaussianRows,
        bll.likelihoods.Categorical(3): SoftmaxRows,
        bll.likelihoods.Poisson(): AnyRows,
    }
    for likelihood, kind in kinds.items():
        rows, weights, _ = make(likelihood)
        assert type(row_terms(likelihood, rows, len(weights))) is kind


def test_gaussian_rows_do_not_grow_with_the_data() -> None:
    rows, weights, _ = make(bll.likelihoods.Gaussian())
    terms = row_terms(bll.likelihoods.Gaussian(), rows, len(weights))
    assert isinstance(terms, GaussianRows)
    assert len(terms.design) == NUM_FEATURES + 1 + 2


def test_single_precision_sums_in_double() -> None:
    """The value, whose differences decide what is accepted, is good to far more than single precision's 1e-7."""
    likelihood = bll.likelihoods.Categorical(3)
    features, labels = FEATURES.repeat(200, 1).float().double(), LABELS.repeat(200)
    frame = Frame.identity(NUM_FEATURES, 1, FEATURES.float())
    weights = make(likelihood)[1]
    found = row_terms(likelihood, DesignRows(features.float(), labels, frame), 3)(weights, {})[0]
    design = torch.cat([features, torch.ones(len(features), 1)], 1)
    expected = likelihood.log_prob(design @ weights.mT, labels).sum()
    assert found.dtype == torch.float64
    assert float(found / expected - 1) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("likelihood", [*MODELS][3:8:2], ids=repr)
def test_goes_to_another_process(likelihood: bll.likelihoods.Likelihood) -> None:
    rows, weights, noise = make(likelihood)
    terms = row_terms(likelihood, rows, len(weights))
    for other in (pickle.loads(pickle.dumps(terms)), copy.deepcopy(terms)):
        for one, two in zip(terms(weights, noise)[:2], other(weights, noise)[:2], strict=True):
            assert torch.equal(one, two)
