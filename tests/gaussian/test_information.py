"""Fisher information of a row's outputs: every form against its matrices, every likelihood against its Hessian."""

import pytest
import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro.gaussian.information import (
    DenseInformation,
    DiagonalInformation,
    Information,
    SoftmaxInformation,
    WeightedInformation,
)
from bll_pyro.scope import generator

NUM_ROWS, NUM_OUTPUTS = 6, 4


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def forms() -> dict[str, tuple[Information, Tensor]]:
    """One of each form, with its matrices ``[N, K, K]`` written out."""
    values = random(NUM_ROWS, NUM_OUTPUTS, seed=0).exp()
    probs = random(NUM_ROWS, NUM_OUTPUTS, seed=1).softmax(-1)
    root = random(NUM_ROWS, NUM_OUTPUTS, NUM_OUTPUTS, seed=2)
    share = random(NUM_ROWS, seed=14).exp()
    softmax = torch.stack([0.25 * (torch.diag(p) - torch.outer(p, p)) for p in probs])
    return {
        "diagonal": (DiagonalInformation(values), torch.stack([torch.diag(v) for v in values])),
        "softmax": (SoftmaxInformation(probs, 0.25), softmax),
        "dense": (DenseInformation(root @ root.mT), root @ root.mT),
        "weighted": (
            WeightedInformation(SoftmaxInformation(probs, 0.25), share),
            share[:, None, None] * softmax,
        ),
    }


@pytest.mark.parametrize("form", forms())
def test_forms_equal_their_matrices(form: str) -> None:
    information, matrices = forms()[form]
    vectors, weights = random(NUM_ROWS, NUM_OUTPUTS, seed=3), random(NUM_ROWS, seed=4)
    symmetric = random(NUM_OUTPUTS, NUM_OUTPUTS, seed=5)
    symmetric = symmetric + symmetric.mT
    products = torch.stack([m @ v for m, v in zip(matrices, vectors)])
    torch.testing.assert_close(information.times(vectors), products)
    torch.testing.assert_close(information.diagonal(), torch.stack([m.diagonal() for m in matrices]))
    torch.testing.assert_close(information.trace(), torch.stack([m.trace() for m in matrices]))
    torch.testing.assert_close(information.sum(), matrices.sum(0))
    weighted = torch.stack([w * m for w, m in zip(weights, matrices)]).sum(0)
    torch.testing.assert_close(information.sum(weights), weighted)
    inner = torch.stack([(symmetric @ m).trace() for m in matrices])
    torch.testing.assert_close(information.inner(symmetric), inner)
    for row in range(NUM_OUTPUTS):
        for column in range(NUM_OUTPUTS):
            torch.testing.assert_close(information.entry(row, column), matrices[:, row, column])
    off = matrices - torch.diag_embed(matrices.diagonal(dim1=-2, dim2=-1))
    assert information.is_diagonal == (not off.any())
    torch.testing.assert_close(information[2:5].times(vectors[2:5]), products[2:5])
    assert type(information[2:5]) is type(information)


LABELS = torch.randint(NUM_OUTPUTS, (NUM_ROWS,), generator=generator(6))
COUNTS = torch.poisson(torch.full((NUM_ROWS, NUM_OUTPUTS), 2.0, dtype=torch.float64), generator=generator(7))
ROOT = random(NUM_OUTPUTS, NUM_OUTPUTS, seed=12)
CANONICAL = [
    (bll.likelihoods.MultivariateGaussian(ROOT @ ROOT.mT), random(NUM_ROWS, NUM_OUTPUTS, seed=13)),
    (bll.likelihoods.Categorical(NUM_OUTPUTS, temperature=1.7), LABELS),
    (bll.likelihoods.Gaussian((0.5, 1.0, 2.0, 3.0)), random(NUM_ROWS, NUM_OUTPUTS, seed=8)),
    (bll.likelihoods.Bernoulli(), (COUNTS > 1).double()),
    (bll.likelihoods.Poisson(), COUNTS),
]


@pytest.mark.parametrize(("likelihood", "targets"), CANONICAL, ids=lambda v: type(v).__name__)
def test_canonical_likelihoods_give_their_hessian(
    likelihood: bll.likelihoods.Likelihood, targets: Tensor
) -> None:
    """In the canonical form the Hessian does not depend on the target, so that its expectation is itself."""
    outputs = random(NUM_ROWS, NUM_OUTPUTS, seed=9)
    information = likelihood.information(outputs)
    for n in range(NUM_ROWS):

        def log_prob(row: Tensor, n: int = n) -> Tensor:
            return likelihood.log_prob(row[None], targets[n : n + 1]).squeeze()

        hessian = -torch.autograd.functional.hessian(log_prob, outputs[n])
        own = torch.stack(
            [information.entry(k, j)[n] for k in range(NUM_OUTPUTS) for j in range(NUM_OUTPUTS)]
        )
        torch.testing.assert_close(own.view(NUM_OUTPUTS, NUM_OUTPUTS), hessian)
    assert likelihood.independent_outputs == information.is_diagonal


@pytest.mark.parametrize(
    ("likelihood", "noise", "num_outputs"),
    [
        (bll.likelihoods.NegativeBinomial(3.0), {}, 1),
        (bll.likelihoods.Ordinal(3), {"cutpoints": torch.tensor([-0.5, 0.8], dtype=torch.float64)}, 1),
        (bll.likelihoods.StudentT(df=5.0, noise_scale=0.7), {}, 1),
        (bll.likelihoods.HeteroscedasticGaussian(), {}, 2),
    ],
    ids=lambda v: type(v).__name__,
)
def test_other_likelihoods_give_its_expectation(
    likelihood: bll.likelihoods.Likelihood, noise: dict[str, Tensor], num_outputs: int
) -> None:
    """The variance of the score over draws of the target is the Fisher information (Bartlett's identity)."""
    num_draws = 200_000
    outputs = random(1, num_outputs, seed=10) * 0.5
    information = likelihood.information(outputs, **noise)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        targets = likelihood.distribution(outputs, **noise).sample((num_draws,)).squeeze(1)
    point = outputs.expand(num_draws, -1).clone().requires_grad_()
    (score,) = torch.autograd.grad(likelihood.log_prob(point, targets, **noise).sum(), point)
    found = score.mT @ score / num_draws
    # a mean of products of scores: five standard errors, from the draws themselves
    for k in range(num_outputs):
        for j in range(num_outputs):
            error = (score[:, k] * score[:, j]).std() / num_draws**0.5
            assert abs(float(found[k, j] - information.entry(k, j)[0])) < 5 * float(error)
