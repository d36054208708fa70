"""Declarations as plain data: distributions inside them keep every argument, or are refused."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

import bll_pyro as bll
from bll_pyro.declaration import Declaration, from_plain, to_plain
from bll_pyro.likelihoods.base import Likelihood

DISTRIBUTIONS = [
    dist.Normal(0.0, 0.1),
    dist.Normal(torch.zeros(2, 3), torch.rand(3, generator=torch.Generator().manual_seed(0)) + 0.1),
    dist.Normal(torch.zeros(3), 0.1).to_event(1),
    # scale is a property of the transformed base here, and no attribute of its own
    dist.HalfNormal(0.3),
    dist.HalfCauchy(2.5),
    dist.LogNormal(-1.0, 0.7),
    dist.LogNormal(-1.0, 0.7).expand([4]),
    dist.InverseGamma(2.0, 3.0),
    dist.Gamma(2.0, 3.0),
    dist.Beta(1.0, 9.0),
    dist.Uniform(0.1, 0.7),
    dist.StudentT(3.0, 0.0, 0.4),
    dist.Delta(torch.ones(2), event_dim=1),
    dist.MultivariateNormal(torch.zeros(2), covariance_matrix=torch.tensor([[1.0, 0.3], [0.3, 2.0]])),
    dist.MixtureSameFamily(
        dist.Categorical(probs=torch.tensor([0.2, 0.8])),
        dist.Normal(torch.zeros(2), torch.tensor([0.01, 1.0])),
    ),
    dist.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)),
]


@pytest.mark.parametrize("given", DISTRIBUTIONS, ids=lambda d: type(d).__name__)
def test_distribution_comes_back(given: dist.Distribution) -> None:
    plain = to_plain(given, {})
    back = from_plain(json.loads(json.dumps(plain)), {})
    assert type(back) is type(given)
    assert (back.batch_shape, back.event_shape) == (given.batch_shape, given.event_shape)
    value = given.sample()
    assert back.log_prob(value).dtype == given.log_prob(value).dtype
    torch.testing.assert_close(back.log_prob(value), given.log_prob(value), rtol=1e-6, atol=0)
    again = to_plain(back, {})
    assert again.keys() == plain.keys()
    if not isinstance(given, dist.MixtureSameFamily):  # logits are normalised anew, which rounds
        assert again == plain


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (dist.HalfCauchy(1.0), dist.HalfCauchy(2.0)),
        (dist.LogNormal(0.0, 1.0), dist.LogNormal(0.0, 2.0)),
        (dist.Normal(0.0, 1.0).to_event(0), dist.Normal(0.0, 2.0)),
    ],
)
def test_other_arguments_are_another_declaration(one: dist.Distribution, other: dist.Distribution) -> None:
    assert to_plain(one, {}) != to_plain(other, {})


def test_reading_an_argument_changes_nothing() -> None:
    """Torch keeps what it has computed, so that a covariance would be there in two forms."""
    given = dist.MultivariateNormal(torch.zeros(2), covariance_matrix=2 * torch.eye(2))
    before = to_plain(given, {})
    assert given.precision_matrix is not None
    assert to_plain(given, {}) == before


@pytest.mark.parametrize(
    "given",
    [torch.distributions.Normal(0.0, 1.0), dist.Normal(0.0, 1.0).mask(torch.tensor(True)).mask(False)],
)
def test_what_cannot_be_written_is_refused(given: dist.Distribution) -> None:
    with pytest.raises(TypeError, match="so that it can be written down, got"):
        to_plain(given, {})


OWN = """
from dataclasses import dataclass
import pyro.distributions as dist
from bll_pyro.likelihoods.base import Likelihood

@dataclass(frozen=True, eq=False)
class Poisson(Likelihood):
    factor: float = 1.0
    is_count = True

    def distribution(self, outputs, **_):
        return dist.Poisson(self.factor * outputs.exp(), validate_args=False)
"""


def test_a_class_of_the_users_is_found_by_its_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that has the name of a class of the package, which stays what it was."""
    (tmp_path / "counts_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import counts_of_mine

    given = counts_of_mine.Poisson(2.0)
    plain = json.loads(json.dumps(to_plain(given, {})))
    assert plain == {"class": "likelihoods.Poisson", "module": "counts_of_mine", "factor": 2.0}
    assert to_plain(bll.likelihoods.Poisson(), {}) == {"class": "likelihoods.Poisson"}
    assert type(from_plain({"class": "likelihoods.Poisson"}, {})) is bll.likelihoods.Poisson
    assert from_plain(plain, {}) == given
    # another process: the module is imported, or named
    del sys.modules["counts_of_mine"], Declaration.registry["counts_of_mine:likelihoods.Poisson"]
    assert from_plain(plain, {}).factor == 2.0
    del sys.modules["counts_of_mine"], Declaration.registry["counts_of_mine:likelihoods.Poisson"]
    (tmp_path / "counts_of_mine.py").unlink()
    message = (
        r"got 'likelihoods.Poisson' of the module counts_of_mine \(No module .*make that module importable"
    )
    with pytest.raises(ValueError, match=message):
        from_plain(plain, {})


def test_a_class_without_fields_needs_no_decorator_and_one_with_attributes_does() -> None:
    class Plain(Likelihood):
        def distribution(self, outputs, **_):
            return dist.Normal(outputs, 1.0)

    class WithState(Plain):
        def __init__(self, scale: float) -> None:
            self.scale = scale

    @dataclass(frozen=True, eq=False)
    class Scaled(Plain):
        scale: float = 1.0

    assert Plain() == Plain() and Scaled(2.0) == Scaled(2.0) != Scaled(3.0)
    assert from_plain(to_plain(Plain(), {}), {}) == Plain()
    with pytest.raises(
        TypeError, match=r"WithState: expected a frozen dataclass.*\['scale'\].*put @dataclass"
    ):
        to_plain(WithState(1.0), {})
    with pytest.raises(ValueError, match=r"'likelihoods.Gone'; import the module that defines it"):
        from_plain({"class": "likelihoods.Gone"}, {})
