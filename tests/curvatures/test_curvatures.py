"""Curvatures against Hessians by automatic differentiation, against each other, and against dense matrices."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro.curvatures import Curvature
from bll_pyro.curvatures.base import MAX_BYTES, Sums, curvatures_that_fit
from bll_pyro.gaussian.information import (
    DenseInformation,
    DiagonalInformation,
    Information,
    SoftmaxInformation,
)
from bll_pyro.scope import generator

NUM_ROWS, K, P = 40, 3, 4
CURVATURES = [bll.curvatures.Diagonal(), bll.curvatures.Kronecker(), bll.curvatures.Full()]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


DESIGN = torch.cat([random(NUM_ROWS, P - 1, seed=0), torch.ones(NUM_ROWS, 1, dtype=torch.float64)], 1)
WEIGHTS = 0.5 * random(K, P, seed=1)
LABELS = torch.randint(K, (NUM_ROWS,), generator=generator(2))
COUNTS = torch.poisson(torch.full((NUM_ROWS, K), 1.5, dtype=torch.float64), generator=generator(3))
MODELS = [
    (bll.likelihoods.Categorical(K, temperature=0.8), LABELS),
    (bll.likelihoods.Gaussian((0.5, 1.0, 2.0)), random(NUM_ROWS, K, seed=4)),
    (bll.likelihoods.Bernoulli(), (COUNTS > 1).double()),
    (bll.likelihoods.Poisson(), COUNTS),
]


def sums_of(curvature: Curvature, design: Tensor, information: Information, independent: bool) -> Sums:
    num_outputs = information.diagonal().shape[1]
    sums = curvature.zeros(num_outputs, design.shape[1], independent, design)
    curvature.add(sums, design, information)
    return sums


def dense(curvature: Curvature, sums: Sums, shape: tuple[int, int]) -> Tensor:
    """The matrix ``[K P, K P]`` that the sums stand for."""
    eye = torch.eye(shape[0] * shape[1], dtype=torch.float64)
    return torch.stack([curvature.times(sums, column.view(shape)).flatten() for column in eye], 1)


def written_out(design: Tensor, matrices: Tensor) -> Tensor:
    """``sum_n L_n (x) h_n h_n'``."""
    return torch.stack([torch.kron(m, torch.outer(h, h)) for m, h in zip(matrices, design)]).sum(0)


@pytest.mark.parametrize(("likelihood", "targets"), MODELS, ids=lambda v: type(v).__name__)
def test_full_is_the_hessian(likelihood: bll.likelihoods.Likelihood, targets: Tensor) -> None:
    def log_joint(flat: Tensor) -> Tensor:
        weights = flat.view(K, P)
        fit = likelihood.log_prob(DESIGN @ weights.mT, targets).sum()
        return fit + torch.distributions.Normal(0.3, scale).log_prob(weights).sum()

    scale = random(K, P, seed=5).exp()
    hessian = -torch.autograd.functional.hessian(log_joint, WEIGHTS.flatten())
    information = likelihood.information(DESIGN @ WEIGHTS.mT)
    curvature, prior = bll.curvatures.Full(), scale**-2
    sums = sums_of(curvature, DESIGN, information, likelihood.independent_outputs)
    torch.testing.assert_close(dense(curvature, sums, (K, P)) + torch.diag(prior.flatten()), hessian)
    precision = curvature.precision(sums, prior)
    torch.testing.assert_close(precision.log_det, torch.logdet(hessian))
    weights = precision.gaussian(WEIGHTS)
    draws = WEIGHTS + 0.3 * random(5, K, P, seed=6)
    expected = torch.distributions.MultivariateNormal(WEIGHTS.flatten(), precision_matrix=hessian)
    torch.testing.assert_close(weights.log_prob(draws), expected.log_prob(draws.flatten(1)))
    diagonal = bll.curvatures.Diagonal()
    found = diagonal.precision(sums_of(diagonal, DESIGN, information, False), prior).gaussian(WEIGHTS)
    torch.testing.assert_close(found.marginal_scale().flatten(), hessian.diagonal().rsqrt())


def kronecker_cases() -> dict[str, Information]:
    matrix = random(K, K, seed=7)
    matrix = matrix @ matrix.mT
    return {
        "one output": DiagonalInformation(random(NUM_ROWS, 1, seed=8).exp()),
        "the same for all rows": DiagonalInformation(
            torch.tensor([4.0, 1.0, 0.25]).double().expand(NUM_ROWS, K)
        ),
        "rows of different weight": DenseInformation(
            random(NUM_ROWS, seed=9).exp()[:, None, None].square() * matrix
        ),
    }


@pytest.mark.parametrize("case", ["one output", "the same for all rows"])
def test_kronecker_is_full_where_it_should(case: str) -> None:
    information = kronecker_cases()[case]
    num_outputs = information.diagonal().shape[1]
    shape = (num_outputs, P)
    kronecker, full = bll.curvatures.Kronecker(), bll.curvatures.Full()
    sums, all_sums = (sums_of(c, DESIGN, information, True) for c in (kronecker, full))
    torch.testing.assert_close(dense(kronecker, sums, shape), dense(full, all_sums, shape))
    prior = torch.tensor([4.0, 4.0, 4.0, 0.01], dtype=torch.float64).expand(shape)  # features and bias
    ours, theirs = kronecker.precision(sums, prior), full.precision(all_sums, prior)
    torch.testing.assert_close(ours.log_det, theirs.log_det)
    loc = random(*shape, seed=10)
    draws = loc + 0.2 * random(4, *shape, seed=11)
    torch.testing.assert_close(ours.gaussian(loc).log_prob(draws), theirs.gaussian(loc).log_prob(draws))


def test_kronecker_has_the_partial_traces_of_full() -> None:
    """Tracing out the columns leaves ``sum |h_n|^2 L_n``, tracing out the outputs ``sum tr(L_n) h_n h_n'``."""
    for information in [
        *kronecker_cases().values(),
        SoftmaxInformation(random(NUM_ROWS, K, seed=12).softmax(-1)),
    ]:
        num_outputs = information.diagonal().shape[1]
        kronecker, full = bll.curvatures.Kronecker(), bll.curvatures.Full()
        ours, theirs = (
            dense(c, sums_of(c, DESIGN, information, False), (num_outputs, P)).view(
                num_outputs, P, num_outputs, P
            )
            for c in (kronecker, full)
        )
        torch.testing.assert_close(torch.einsum("kplp->kl", ours), torch.einsum("kplp->kl", theirs))
        torch.testing.assert_close(torch.einsum("kpkq->pq", ours), torch.einsum("kpkq->pq", theirs))


PRIORS: dict[str, Callable[[], Tensor]] = {
    "one scale": lambda: torch.full((K, P), 4.0, dtype=torch.float64),
    "features and bias": lambda: torch.tensor([4.0, 4.0, 4.0, 0.01], dtype=torch.float64).expand(K, P),
    "each feature": lambda: random(P, seed=13).exp().expand(K, P),
    "each output": lambda: random(K, 1, seed=14).exp().expand(K, P),
    "outputs times columns": lambda: random(K, 1, seed=14).exp() * random(P, seed=13).exp(),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_kronecker_takes_product_priors_exactly(prior: str) -> None:
    values = PRIORS[prior]()
    curvature = bll.curvatures.Kronecker()
    sums = sums_of(curvature, DESIGN, SoftmaxInformation(random(NUM_ROWS, K, seed=12).softmax(-1)), False)
    total = dense(curvature, sums, (K, P)) + torch.diag(values.flatten())
    precision = curvature.precision(sums, values)
    torch.testing.assert_close(precision.log_det, torch.logdet(total))
    vectors = random(K, P, seed=15)
    solved = torch.linalg.solve(total, vectors.flatten()).view(K, P)
    torch.testing.assert_close(precision.solve(vectors), solved)
    covariance = torch.linalg.inv(total)
    weights = precision.gaussian(random(K, P, seed=16))
    torch.testing.assert_close(weights.marginal_scale().flatten(), covariance.diagonal().sqrt())


@pytest.mark.parametrize("prior", PRIORS)
def test_eigenvectors_that_are_known_change_nothing(prior: str) -> None:
    """Value, slopes in the sums and in the prior, and solutions: with the eigenvectors made once, and made anew."""
    curvature = bll.curvatures.Kronecker()
    sums = sums_of(curvature, DESIGN, SoftmaxInformation(random(NUM_ROWS, K, seed=12).softmax(-1)), False)
    found = []
    for given in (sums, curvature.finished(sums)):
        parts = tuple(total.detach().requires_grad_() for total in given)
        values = PRIORS[prior]().clone().requires_grad_()
        precision = curvature.precision(parts, values)
        slopes = torch.autograd.grad(precision.log_det, (values, *parts[:3]))
        found.append((precision.log_det.detach(), *slopes, precision.solve(random(K, P, seed=15))))
    for known, anew in zip(*found, strict=True):
        torch.testing.assert_close(known, anew)


def test_kronecker_is_close_for_a_bias_beside_scales_of_outputs() -> None:
    """The bias has its own scale beside one for each output: no product, so that its diagonal is taken."""
    design = torch.cat([random(400, P - 1, seed=0), torch.ones(400, 1, dtype=torch.float64)], 1)
    curvature = bll.curvatures.Kronecker()
    sums = sums_of(curvature, design, SoftmaxInformation(random(400, K, seed=12).softmax(-1)), False)
    prior = torch.tensor([0.5, 4.0, 30.0], dtype=torch.float64)[:, None].expand(K, P).clone()
    prior[:, -1] = 0.01
    total = dense(curvature, sums, (K, P)) + torch.diag(prior.flatten())
    precision = curvature.precision(sums, prior)
    assert float(precision.log_det) == pytest.approx(float(torch.logdet(total)), abs=0.5)
    scale = precision.gaussian(random(K, P, seed=16)).marginal_scale().flatten()
    expected = torch.linalg.inv(total).diagonal().sqrt().view(K, P)
    torch.testing.assert_close(scale.view(K, P)[:, :-1], expected[:, :-1], rtol=0.02, atol=0)


@pytest.mark.parametrize("curvature", CURVATURES, ids=repr)
@pytest.mark.parametrize("kind", ["softmax", "diagonal"])
def test_contraction_is_the_inner_product_with_the_sums(curvature: Curvature, kind: str) -> None:
    def information(outputs: Tensor) -> Information:
        return (
            SoftmaxInformation(outputs.softmax(-1))
            if kind == "softmax"
            else DiagonalInformation(outputs.exp())
        )

    outputs = random(NUM_ROWS, K, seed=17).requires_grad_()
    sums = sums_of(curvature, DESIGN, information(outputs.detach()), kind == "diagonal")
    slopes = tuple(random(total.numel(), seed=18 + i).view(total.shape) for i, total in enumerate(sums))
    # slopes of a function of symmetric matrices are symmetric
    slopes = tuple(symmetric(slope, total) for slope, total in zip(slopes, sums))
    expected = sum((slope * total).sum() for slope, total in zip(slopes, sums))
    found = curvature.contract(slopes, DESIGN, information(outputs))
    torch.testing.assert_close(found.detach(), expected)
    (gradient,) = torch.autograd.grad(found, outputs)
    step = 1e-6 * random(NUM_ROWS, K, seed=30)
    ahead, behind = (
        float(curvature.contract(slopes, DESIGN, information(outputs.detach() + sign * step)))
        for sign in (1, -1)
    )
    assert (ahead - behind) / 2 == pytest.approx(float((gradient * step).sum()), rel=1e-5)


def symmetric(slope: Tensor, total: Tensor) -> Tensor:
    if total.dim() == 4:
        return slope + slope.permute(2, 3, 0, 1)
    square = total.dim() > 1 and total.shape[-1] == total.shape[-2]
    return slope + slope.mT if square else slope


@pytest.mark.parametrize("curvature", CURVATURES, ids=repr)
def test_rows_add_up(curvature: Curvature) -> None:
    information = SoftmaxInformation(random(NUM_ROWS, K, seed=12).softmax(-1))
    whole = sums_of(curvature, DESIGN, information, False)
    parts = curvature.zeros(K, P, False, DESIGN)
    for rows in (slice(0, 7), slice(7, NUM_ROWS)):
        curvature.add(parts, DESIGN[rows], SoftmaxInformation(information.probs[rows]))
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_priors_with_a_covariance() -> None:
    information = DiagonalInformation(random(NUM_ROWS, K, seed=8).exp())
    blocks = torch.stack([m @ m.mT + torch.eye(P) for m in random(K, P, P, seed=20)])
    whole = random(K * P, K * P, seed=21)
    whole = (whole @ whole.mT + torch.eye(K * P)).view(K, P, K, P)
    full, diagonal = bll.curvatures.Full(), bll.curvatures.Diagonal()
    sums = sums_of(full, DESIGN, information, True)
    rows = dense(full, sums, (K, P))
    for prior, matrix in [(blocks, torch.block_diag(*blocks)), (whole, whole.reshape(K * P, K * P))]:
        torch.testing.assert_close(full.precision(sums, prior).log_det, torch.logdet(rows + matrix))
        own = diagonal.precision(sums_of(diagonal, DESIGN, information, True), prior)
        torch.testing.assert_close(own.log_det, (rows + matrix).diagonal().log().sum())
        assert full.takes(prior.dim()) and diagonal.takes(prior.dim())
        assert not bll.curvatures.Kronecker().takes(prior.dim())


class TestMemory:
    def test_refusals_name_what_fits(self) -> None:
        with pytest.raises(
            ValueError, match=r"Full: expected a precision that fits.*use bll.curvatures.Kronecker\(\)"
        ):
            bll.curvatures.Full().check_memory(1000, 2049, False)
        with pytest.raises(ValueError, match=r"Kronecker: .*use bll.curvatures.Diagonal\(\)$"):
            bll.curvatures.Kronecker().check_memory(21_000, 1025, False)
        bll.curvatures.Diagonal().check_memory(21_000, 1025, False)
        bll.curvatures.Kronecker().check_memory(3100, 129, False)
        bll.curvatures.Full().check_memory(10, 257, False)

    def test_independent_outputs_need_less(self) -> None:
        full = bll.curvatures.Full()
        with pytest.raises(ValueError, match="1000 outputs x 129 columns"):
            full.check_memory(1000, 129, False)
        full.check_memory(1000, 129, True)
        sums = full.zeros(7, 5, True, torch.zeros(()))
        assert sums[0].numel() == full.num_numbers(7, 5, True)
        assert full.zeros(7, 5, False, torch.zeros(()))[0].numel() == full.num_numbers(7, 5, False)

    def test_nothing_fits(self) -> None:
        assert curvatures_that_fit(10**6, MAX_BYTES, False) == []
        with pytest.raises(ValueError, match="use fewer features or outputs"):
            bll.curvatures.Diagonal().check_memory(10**6, MAX_BYTES, False)


def test_declarations_go_to_plain_data_and_back() -> None:
    from bll_pyro.declaration import from_plain, to_plain

    for curvature in [*CURVATURES, bll.curvatures.Diagonal(principal_axes=False)]:
        inference = bll.Laplace(curvature=curvature, tolerance=1e-5)
        assert from_plain(to_plain(inference, {}), {}) == inference
