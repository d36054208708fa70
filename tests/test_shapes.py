"""The run-time check of shapes works: members of every family refuse tensors of a wrong shape."""

from collections.abc import Callable
from inspect import isabstract
from typing import Any

import pytest
import torch
from guide_cases import guides_for
from jaxtyping import TypeCheckError
from prior_cases import ELEMENTWISE
from torch import Tensor

import bll_pyro as bll
from bll_pyro import curvatures, gaussian, likelihoods
from bll_pyro.frame import Frame
from bll_pyro.gaussian import OutputGaussian, Outputs, WeightGaussian
from bll_pyro.gaussian.information import DiagonalInformation
from bll_pyro.guides.base import LatentGaussianGuide, Start
from bll_pyro.likelihoods import Likelihood

N, D, K, S = 7, 3, 2, 5
P = D + 1

LIKELIHOODS: list[tuple[Likelihood, Tensor]] = [
    (likelihoods.Bernoulli(), torch.zeros(N, K)),
    (likelihoods.Categorical(K), torch.zeros(N).long()),
    (likelihoods.Gaussian(1.0), torch.zeros(N, K)),
    (likelihoods.HeteroscedasticGaussian(), torch.zeros(N, K)),
    (likelihoods.MultivariateGaussian([[1.0, 0.1], [0.1, 1.0]]), torch.zeros(N, K)),
    (likelihoods.NegativeBinomial(1.0), torch.zeros(N, K)),
    (likelihoods.Ordinal(3), torch.zeros(N).long()),
    (likelihoods.Poisson(), torch.zeros(N, K)),
    (likelihoods.StudentT(4.0, 1.0), torch.zeros(N, K)),
]
GAUSSIANS: list[WeightGaussian] = [
    gaussian.Delta(torch.zeros(K, P)),
    gaussian.Diagonal(torch.zeros(K, P), torch.ones(K, P)),
    gaussian.BlockDiagonal(torch.zeros(K, P), torch.eye(P).expand(K, P, P)),
    gaussian.LowRank(torch.zeros(K, P), torch.ones(K, P), torch.ones(K, P, 2)),
    gaussian.MatrixNormal(torch.zeros(K, P), torch.eye(K), torch.eye(P)),
    gaussian.Dense(torch.zeros(K, P), torch.eye(K * P).view(K, P, K * P), torch.tensor(0.0)),
    gaussian.Kronecker(torch.zeros(K, P), torch.ones(K, P), torch.eye(K), torch.eye(P)),
    gaussian.CentredDiagonal(torch.zeros(K, P), torch.ones(K, P), torch.zeros(K, P), torch.zeros(D)),
]
OUTPUTS: list[Callable[[], Outputs]] = [
    lambda: OutputGaussian(torch.zeros(N, K), torch.ones(N + 1, K)),
    lambda: gaussian.OutputDraws(torch.zeros(N, K)),
    lambda: gaussian.OutputMixture(*(torch.zeros(s) for s in ((S, K), (S, N, K), (S, N + 1, K), (S, K)))),
    lambda: gaussian.OutputCoupled(OutputGaussian(torch.zeros(N, K)), torch.zeros(N, K)),
]
CURVATURES = [curvatures.Diagonal(), curvatures.Kronecker(), curvatures.Full()]


def refuses(call: Callable[[], object]) -> None:
    """The check of shapes refuses a call, before any arithmetic could."""
    with pytest.raises(TypeCheckError, match=r"Float|Int"):
        call()


def name_of(value: Any) -> str:
    return type(value[0] if isinstance(value, tuple) else value).__name__


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_priors(name: str) -> None:
    refuses(lambda: ELEMENTWISE[name].expected_log_prob(torch.zeros(K, D), torch.ones(K, D + 1)))
    refuses(lambda: ELEMENTWISE[name].rotated(torch.zeros(D)))


@pytest.mark.parametrize(("likelihood", "targets"), LIKELIHOODS, ids=map(name_of, LIKELIHOODS))
def test_likelihoods(likelihood: Likelihood, targets: Tensor) -> None:
    num_outputs = likelihood.num_outputs(tuple(targets.shape[1:]))
    right = likelihood.check_targets(targets)
    refuses(lambda: likelihood.log_prob(torch.zeros(S, N + 1, num_outputs), right))
    refuses(lambda: likelihood.distribution(torch.zeros(N)))
    refuses(lambda: likelihood.expected_derivatives(torch.zeros(N, num_outputs), right))


@pytest.mark.parametrize("weights", GAUSSIANS, ids=name_of)
def test_gaussians(weights: WeightGaussian) -> None:
    refuses(lambda: weights.outputs(torch.zeros(P)))
    refuses(lambda: weights.log_prob(torch.zeros(K, P)))
    for name, part in weights.tensors.items():
        refuses(lambda n=name, p=part: type(weights)(**{**weights.tensors, n: p[None]}))


@pytest.mark.parametrize("make", OUTPUTS)
def test_outputs(make: Callable[[], Outputs]) -> None:
    refuses(make)


def test_guides() -> None:
    start = {"globals_loc": torch.zeros(0), "loc": torch.zeros(K, P), "scale": torch.ones(K, P)}
    for name, part in start.items():
        refuses(lambda n=name, p=part: Start(**{**start, n: p[None]}, num_features=D))
    refuses(lambda: Start(**start, num_features=D, tril=torch.eye(K * P + 1)))
    model = bll.Model(bll.LastLayer(likelihoods.Gaussian(1.0), bll.priors.Normal(1.0)), D, (K,))
    for guide in guides_for(K, D).values():
        built = guide.build(model, Start(**start, num_features=D))
        if isinstance(built, LatentGaussianGuide):
            refuses(lambda b=built: b.weights(torch.zeros(K)))
            refuses(lambda b=built: b.matrix(torch.tensor(0.0)))


@pytest.mark.parametrize("curvature", CURVATURES, ids=name_of)
def test_curvatures(curvature: curvatures.Curvature) -> None:
    sums = curvature.zeros(K, P, False, torch.zeros(()))
    refuses(lambda: curvature.add(sums, torch.zeros(P), DiagonalInformation(torch.ones(N, K))))
    refuses(lambda: curvature.precision(sums, torch.ones(K)))
    refuses(lambda: curvature.times(sums, torch.ones(P)))


def test_features() -> None:
    store = bll.Features.from_tensors(torch.zeros(N, D))
    store._features = torch.zeros(N, dtype=torch.long)  # what no constructor lets through
    refuses(lambda: store[0])


def test_predictions() -> None:
    layer = bll.LastLayer(likelihoods.Categorical(K), bll.priors.Normal(1.0))
    data = (torch.randn(20, D, generator=torch.Generator().manual_seed(0)), torch.arange(20) % K)
    fit = bll.fit(layer, data, inference=bll.Laplace())
    right = fit.predict(data[0])
    parts = {name: getattr(right, name) for name in ("total", "aleatoric", "epistemic", "probs")}
    for name, part in parts.items():
        refuses(lambda n=name, p=part: type(right)(**{**parts, n: p[1:]}, likelihood=layer.likelihood))


def test_frame() -> None:
    frame = Frame.identity(D, 1, torch.zeros(()))
    refuses(lambda: frame.design(torch.zeros(D)))
    refuses(lambda: Frame(torch.zeros(D), torch.ones(D + 1), torch.zeros(1), torch.ones(1)))


def test_no_member_is_missing() -> None:
    tables = (
        (likelihoods, Likelihood, [member for member, _ in LIKELIHOODS]),
        (curvatures, curvatures.Curvature, CURVATURES),
        (gaussian, WeightGaussian, GAUSSIANS),
    )
    for room, base, table in tables:
        named = (getattr(room, name) for name in room.__all__)
        expected = {m for m in named if isinstance(m, type) and issubclass(m, base) and not isabstract(m)}
        assert expected - {base} == {type(member) for member in table}
