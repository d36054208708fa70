"""Gaussians over outputs: values at given normals, draws, and the joining and cutting of rows."""

import pytest
import torch
from torch import Tensor

from bll_pyro.gaussian import OutputDraws, OutputGaussian
from bll_pyro.scope import generator

NUM_ROWS, NUM_OUTPUTS = 5, 3


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


LOC = random(NUM_ROWS, NUM_OUTPUTS, seed=0)
SCALE = random(NUM_ROWS, NUM_OUTPUTS, seed=1).abs() + 0.1
MIXING = random(NUM_OUTPUTS, NUM_OUTPUTS, seed=2)
CASES = {
    "point": OutputGaussian(LOC),
    "scale": OutputGaussian(LOC, SCALE),
    "mixing": OutputGaussian(LOC, SCALE, MIXING),
    "common scale": OutputGaussian(LOC, SCALE[:, :1], MIXING),
    "narrow factor": OutputGaussian(LOC, factor=random(NUM_ROWS, NUM_OUTPUTS, 2, seed=3)),
    "wide factor": OutputGaussian(LOC, factor=random(NUM_ROWS, NUM_OUTPUTS, 7, seed=4)),
    "scale and factor": OutputGaussian(LOC, SCALE, factor=random(NUM_ROWS, NUM_OUTPUTS, 2, seed=5)),
}
every_case = pytest.mark.parametrize("outputs", CASES.values(), ids=CASES.keys())


def linear_map(outputs: OutputGaussian, row: int) -> Tensor:
    """The matrix ``[K, noise_dim]`` of a row, from the values at unit vectors."""
    units = torch.eye(outputs.noise_dim, dtype=torch.float64)
    return (outputs.at(units[:, None, :])[:, row] - outputs.loc[row]).mT


@every_case
def test_values_are_linear_in_the_normals(outputs: OutputGaussian) -> None:
    noise = random(4, NUM_ROWS, outputs.noise_dim, seed=6)
    values = outputs.at(noise)
    assert values.shape == (4, NUM_ROWS, NUM_OUTPUTS)
    for row in range(NUM_ROWS):
        matrix = linear_map(outputs, row)
        torch.testing.assert_close(values[:, row], outputs.loc[row] + noise[:, row] @ matrix.mT)
        torch.testing.assert_close(outputs.covariance[row], matrix @ matrix.mT)
        torch.testing.assert_close(outputs.variance[row], (matrix @ matrix.mT).diagonal())


@every_case
def test_one_set_of_normals_serves_all_rows(outputs: OutputGaussian) -> None:
    shared = random(4, 1, outputs.noise_dim, seed=7)
    torch.testing.assert_close(outputs.at(shared), outputs.at(shared.expand(-1, NUM_ROWS, -1)))


@every_case
def test_compact_keeps_the_distribution(outputs: OutputGaussian) -> None:
    compact = outputs.compact()
    wide = outputs.factor is not None and outputs.factor.shape[-1] > NUM_OUTPUTS
    assert compact.noise_dim == (NUM_OUTPUTS if wide else outputs.noise_dim)
    torch.testing.assert_close(compact.mean, outputs.mean)
    torch.testing.assert_close(compact.covariance, outputs.covariance, rtol=1e-9, atol=1e-9)


@every_case
def test_draws_have_the_moments(outputs: OutputGaussian) -> None:
    draws = outputs.draws(4096)
    if outputs.noise_dim == 0:
        torch.testing.assert_close(draws, outputs.loc[None])
        return
    # quasi-random: far inside the standard error of 4096 random draws, 0.016 of a standard deviation
    error = (draws.mean(0) - outputs.mean) / outputs.variance.sqrt()
    assert float(error.abs().max()) < 2e-3
    centred = draws - draws.mean(0)
    covariance = torch.einsum("snk,snl->nkl", centred, centred) / len(draws)
    sizes = (outputs.variance[:, :, None] * outputs.variance[:, None]).sqrt()
    assert float(((covariance - outputs.covariance) / sizes).abs().max()) < 1e-2


@every_case
def test_rsample_has_the_moments_and_its_own_noise_for_each_row(outputs: OutputGaussian) -> None:
    num_draws, random_state = 1000, generator(8)
    draws = torch.stack([outputs.rsample(random_state) for _ in range(num_draws)])
    deviation = (draws - outputs.loc) / outputs.variance.sqrt().clamp_min(1e-12)
    if outputs.noise_dim == 0:
        assert float(deviation.abs().max()) == 0.0
        return
    # 15 means with standard error 1/sqrt(S), 15 mean squares with sqrt(2/S); rows are uncorrelated
    assert float(deviation.mean(0).abs().max()) < 4.5 / num_draws**0.5
    assert float((deviation.square().mean(0) - 1).abs().max()) < 4.5 * (2 / num_draws) ** 0.5
    between_rows = (deviation[:, 0] * deviation[:, 1]).mean(0)
    assert float(between_rows.abs().max()) < 4.5 / num_draws**0.5


@every_case
def test_rows_and_concat(outputs: OutputGaussian) -> None:
    parts = [outputs.rows(slice(0, 2)), outputs.rows(slice(2, None))]
    assert [part.num_rows for part in parts] == [2, 3]
    torch.testing.assert_close(parts[1].covariance, outputs.covariance[2:])
    joined = OutputGaussian.concat(parts)
    torch.testing.assert_close(joined.mean, outputs.mean)
    torch.testing.assert_close(joined.covariance, outputs.covariance)
    torch.testing.assert_close(joined.draws(16), outputs.draws(16))


def test_singular_covariance_can_be_compacted() -> None:
    """Three outputs that are one and the same: a covariance of rank 1 has no Cholesky factor without help."""
    factor = random(2, 1, 5, seed=9).expand(2, NUM_OUTPUTS, 5)
    outputs = OutputGaussian(LOC[:2], factor=factor)
    torch.testing.assert_close(outputs.compact().covariance, outputs.covariance, rtol=1e-6, atol=1e-9)


class TestOutputDraws:
    values = random(6, NUM_ROWS, NUM_OUTPUTS, seed=10)

    def test_moments_are_those_of_the_draws(self) -> None:
        outputs = OutputDraws(self.values)
        torch.testing.assert_close(outputs.mean, self.values.mean(0))
        torch.testing.assert_close(
            outputs.variance, self.values.square().mean(0) - self.values.mean(0).square()
        )
        assert outputs.draws(3) is self.values
        assert (outputs.num_rows, outputs.num_outputs) == (NUM_ROWS, NUM_OUTPUTS)

    def test_rows_and_concat(self) -> None:
        outputs = OutputDraws(self.values)
        joined = OutputDraws.concat([outputs.rows(slice(0, 1)), outputs.rows(slice(1, None))])
        torch.testing.assert_close(joined.values, self.values)


@every_case
def test_mirrored_draws(outputs: OutputGaussian) -> None:
    draws = outputs.mirrored(generator(11))
    if outputs.noise_dim == 0:
        torch.testing.assert_close(draws, outputs.loc)
        return
    first, second = draws.view(2, NUM_ROWS, NUM_OUTPUTS)
    torch.testing.assert_close(first, outputs.rsample(generator(11)))
    torch.testing.assert_close((first + second) / 2, outputs.loc)
