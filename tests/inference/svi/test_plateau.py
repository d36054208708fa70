"""When the ELBO has stopped rising: on series whose truth is known, and in fits."""

import inspect
import math

import pytest
import torch

import bll_pyro as bll
from bll_pyro.inference.svi.plateau import LAST_LOOK, TOLERANCE, Plateau
from bll_pyro.scope import generator, isolated


def watch(values: torch.Tensor, num_steps: int | None = None) -> Plateau:
    plateau, history = Plateau(num_steps or len(values)), list(values)
    for done in range(1, len(history) + 1):
        plateau.look(history[:done])
    return plateau


def noise(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=generator(seed))


def test_a_flat_series_has_stopped_and_a_rising_one_has_not() -> None:
    """A step of the means of 10 standard errors is never taken for noise, none at all mostly is."""
    num_steps, window = 1500, 100
    slope = 10 * math.sqrt(2 / window) / window
    seen = [watch(noise(num_steps, seed)).step for seed in range(20)]
    assert all(step is not None for step in seen)
    # two windows differ by less than a standard error with probability 0.84; the binomial tail below 10 is 4e-4
    assert sum(step == 2 * window for step in seen) >= 10
    for seed in range(20):
        rising = watch(noise(num_steps, seed) + slope * torch.arange(num_steps))
        assert rising.step is None
        assert rising.rise == pytest.approx(slope * window, abs=5 * math.sqrt(2 / window))
        assert rising.noise == pytest.approx(math.sqrt(2 / window), rel=0.4)
        assert "still rising" in rising.verdict()


def test_without_noise_a_rise_below_the_tolerance_is_none() -> None:
    steps = torch.arange(1500.0)
    assert watch(steps * TOLERANCE / 100 * 0.9).step == 200
    assert watch(steps * TOLERANCE / 100 * 1.5).step is None


def test_late_looks_do_not_count() -> None:
    """An ELBO that only settles when the step size falls has not shown that it would settle without."""
    late = torch.arange(1500.0).clamp_max(LAST_LOOK * 1500)
    assert watch(late).step is None


def test_too_few_steps_to_tell() -> None:
    plateau = watch(torch.zeros(100))
    assert plateau.step is None
    assert not plateau.can_tell
    assert "too few" in plateau.verdict()


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    random = generator(0)
    features = torch.randn(300, 5, generator=random)
    return features, (features[:, 0] + 0.5 * torch.randn(300, generator=random) > 0).long()


def test_a_default_fit_stops_when_the_elbo_has_stopped_rising(rows) -> None:
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(2))
    short = bll.fit(layer, rows, inference=bll.SVI(learning_rate=0.02))  # a rate of one's own: steps of Adam
    whole = bll.fit(layer, rows, inference=bll.SVI(num_epochs=1500))
    assert len(whole.trace.elbo) == 1500  # passes that were asked for are made
    assert len(short.trace.elbo) < 1100
    assert short.trace.converged
    assert not short.trace.messages
    assert short.trace.statistics["plateau"] == whole.trace.statistics["plateau"] < len(short.trace.elbo)
    # nothing is lost but noise: the standard error of the reported ELBO, from 8 pairs of draws, is about 0.2 nats
    assert short.elbo == pytest.approx(whole.elbo, abs=1.0)


def test_a_fit_that_is_cut_short_says_so(rows) -> None:
    """Correlated features, of which a flow makes much, and steps that are too small to get there."""
    features, labels = rows
    features = features + 3 * features[:, :1]
    layer = bll.LastLayer(likelihood=bll.likelihoods.Gaussian(1.0))
    slow = bll.SVI(num_epochs=200, learning_rate=1e-3, guide=bll.guides.Flow(num_layers=1))
    with pytest.warns(bll.FitWarning, match="the ELBO was still rising, by") as said:
        # without the wrapper that checks annotations in tests, which would be the caller
        fit = inspect.unwrap(bll.fit)(layer, (features, labels.float()), inference=slow)
    assert said[0].filename == __file__ and len(said) == 1
    assert not fit.trace.converged
    assert "still rising" in fit.trace.messages[0]
    few = bll.fit(layer, (features, labels.float()), inference=bll.SVI(num_epochs=20))
    assert few.trace.converged and not few.trace.messages  # whoever asks for few steps knows
    assert "too few" in few.trace.notes[0]


@pytest.mark.parametrize(
    "inference",
    [bll.SVI(patience=1), bll.SVI(backbone_learning_rate=0.3, patience=1)],
    ids=["frozen", "joint"],
)
def test_validation_data_that_end_the_training_are_no_trouble(rows, inference: bll.SVI) -> None:
    """It ended before two windows of steps, and the ELBO was said to be "still rising, by nan nats"."""
    with isolated(0):
        backbone = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh())
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(2))
    noise = torch.randn(40, 5, generator=generator(3)), torch.arange(40) % 2
    fit = bll.fit(layer, rows, backbone, inference=inference, validation_data=noise)
    assert len(fit.trace.elbo) < 100
    for trace in (fit.trace, fit.trace.joint or fit.trace):
        assert trace.converged and not trace.messages and not trace.notes
