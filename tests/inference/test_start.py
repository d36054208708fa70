"""Where stochastic fits start, and how far they step: what suits a layer of any width, with nothing to tune."""

import math

import numpy as np
import pytest
import torch

import bll_pyro as bll
from bll_pyro.features.columns import Columns
from bll_pyro.frame import Frame
from bll_pyro.inference import start as start_module
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.start import first_weights, warm_start
from bll_pyro.model import Model
from bll_pyro.scope import generator


def classes(
    num_rows: int, num_features: int, num_classes: int, size: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of a softmax whose log odds have a scale of ``size``."""
    random = generator(3)
    features = torch.randn(num_rows, num_features, generator=random)
    weights = size * torch.randn(num_classes, num_features, generator=random) / num_features**0.5
    return features, torch.multinomial((features @ weights.mT).softmax(-1), 1, generator=random)[:, 0]


def start_of(
    num_rows: int, num_features: int, num_classes: int
) -> tuple[DesignRows, torch.Tensor, torch.Tensor]:
    """The rows, and loc and scale ``[K, D + 1]`` of the warm start."""
    features, labels = classes(num_rows, num_features, num_classes, 4.0)
    rows = DesignRows(features, labels, Frame.identity(num_features, 1, features, True))
    layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes), bll.priors.Normal(0.5), standardize=False)
    model = Model(layer, num_features, ())
    start = warm_start(layer, model.global_sites, rows, num_classes, {})
    return rows, start.loc, start.scale


def test_rows_that_are_fewer_than_the_weights_leave_the_means_where_the_prior_has_them() -> None:
    """And the scales are those of a diagonal Laplace approximation there, with all classes alike."""
    rows, loc, scale = start_of(5_000, 50, 120)
    assert bool((loc == 0).all())
    design = rows[:][0]
    precision = (1 / 120) * (119 / 120) * design.square().sum(0)
    precision[:50] += 1 / 0.5**2
    precision[50] += 1 / 10.0**2
    torch.testing.assert_close(scale, precision.rsqrt().expand_as(scale))


@pytest.mark.parametrize(("num_rows", "num_features", "num_classes"), [(5_000, 50, 20), (300, 50, 120)])
def test_rows_that_are_enough_or_all_there_is_move_them(
    num_rows: int, num_features: int, num_classes: int
) -> None:
    _, loc, _ = start_of(num_rows, num_features, num_classes)
    assert float(loc.abs().amax()) > 0.1


def test_a_bounded_memory_of_gradients_finds_the_same_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """L-BFGS that remembers three steps ends where the one that remembers all does, within what twenty steps reach."""
    _, all_of_them, _ = start_of(3_000, 10, 4)
    monkeypatch.setattr(start_module, "MAX_HISTORY", 2 * 3 * 4 * 11)
    _, three, _ = start_of(3_000, 10, 4)
    torch.testing.assert_close(three, all_of_them, rtol=0.02, atol=0.02)


def test_the_step_shrinks_with_the_width() -> None:
    assert [bll.SVI().rate(width) for width in (1, 128)] == [0.02, 0.02]
    assert bll.SVI().rate(512) == pytest.approx(0.01)
    assert bll.SVI().rate(2_048) == pytest.approx(0.005)
    assert bll.SVI(learning_rate=0.3).rate(2_048) == 0.3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the ELBO was still rising")  # of a fit that is short on purpose
def test_wide_features_reach_the_elbo_of_a_long_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 0.005 nats a row by default; neither the first scale nor the steps of narrow features come as close."""
    data = classes(8_000, 1_000, 3, 4.0)
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))

    def reached(**options: float) -> float:
        svi = bll.SVI(scale_criterion=bll.criteria.Evidence(), **options)
        return float(bll.fit(layer, data, inference=svi).trace.statistics["elbo"]) / 8_000

    best = reached(learning_rate=0.003, num_epochs=200)
    assert reached() > best - 0.005
    assert reached(learning_rate=0.02) < best - 0.005
    monkeypatch.setattr("bll_pyro.inference.svi.svi.OUTPUT_SCALE", 100.0)
    assert reached() < best - 0.01


def test_the_search_under_a_narrow_prior_starts_at_its_centre_where_that_is_likelier() -> None:
    """From the mode of a wide prior, which takes every row for certain, Newton's method needs more steps."""
    random = generator(0)
    features = torch.randn(400, 40, generator=random)
    labels = torch.randint(60, (400,), generator=random)
    rows = DesignRows(features, labels, Frame.identity(40, 1, features, True))
    evidence = bll.Laplace().evidence(bll.LastLayer(bll.likelihoods.Categorical(60)), rows, ())
    wide, narrow = torch.tensor([2.0]).double(), torch.tensor([-7.0]).double()
    certain = evidence.fit_at(wide).mode.weights
    start = evidence.likelier(narrow, certain)
    assert bool((start == 0).all())
    near, far = evidence.fit_at(narrow, start).mode, evidence.fit_at(narrow, certain).mode
    assert near.log_joint == pytest.approx(far.log_joint, abs=0.01)
    assert near.num_steps < far.num_steps
    assert evidence.likelier(wide, certain) is certain


@pytest.mark.parametrize("size", [5e3, 1e7])
@pytest.mark.parametrize("likelihood", [bll.likelihoods.Poisson(), bll.likelihoods.NegativeBinomial()])
@pytest.mark.parametrize("inference", [bll.SVI(), bll.Laplace()], ids=["svi", "laplace"])
@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # float32 cannot tell the last hundredth of a posterior scale
@pytest.mark.thinned(3)
def test_large_counts(
    size: float, likelihood: bll.likelihoods.Likelihood, inference: bll.inference.Inference
) -> None:
    """Predicted means add up to the counts, whatever their size: the search begins at the log of their mean.

    A negative binomial does not keep the sum: its mean of N rows has a relative error of about ``1 / sqrt(5 N)``.
    """
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 2)).astype("float32")
    mean = size * np.exp(0.3 * x[:, 0])
    is_poisson = isinstance(likelihood, bll.likelihoods.Poisson)
    y = random.poisson(mean) if is_poisson else random.negative_binomial(5, 5 / (5 + mean))
    fit = bll.fit(bll.LastLayer(likelihood), (x, y), inference=inference)
    ratio = float(fit.predict(x).mean.double().sum()) / y.sum()
    assert ratio == pytest.approx(1.0, abs=1e-3 if is_poisson else 0.01)


def test_first_weights_are_the_moments_of_the_targets() -> None:
    """Counts: the log of the mean for an exposure; labels: log odds, finite without any; and a given bias stays."""
    features, weight = torch.zeros(4, 1), torch.tensor([1.0, 1.0, 2.0, 0.0])
    columns = Columns(weight=weight, exposure=torch.tensor([[2.0], [1.0], [1.0], [9.0]]))
    frame = Frame.identity(1, 1, features, True)
    counts = DesignRows(features, torch.tensor([[4.0], [6.0], [5.0], [70.0]]), frame, columns=columns)
    loc = first_weights(bll.LastLayer(bll.likelihoods.Poisson()), counts, 1)
    torch.testing.assert_close(loc, torch.tensor([[0.0, math.log(20.5 / 5.5)]]))
    labels = DesignRows(features, torch.zeros(4, 1), frame)
    bernoulli = bll.LastLayer(bll.likelihoods.Bernoulli())
    torch.testing.assert_close(first_weights(bernoulli, labels, 1)[:, 1], torch.tensor([math.log(0.5 / 4.5)]))
    given = bll.LastLayer(bll.likelihoods.Bernoulli(), bias_loc=torch.tensor([0.3]))
    torch.testing.assert_close(first_weights(given, labels, 1), torch.tensor([[0.0, 0.3]]))
