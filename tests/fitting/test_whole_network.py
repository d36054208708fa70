"""A warning, once, of a backbone that is a whole network, and none of one whose features are as many as the classes."""

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bll_pyro as bll
from bll_pyro.scope import generator, isolated

NUM_CLASSES, SAID = 3, "with its head on"
pytestmark = pytest.mark.filterwarnings("ignore:the ELBO was still rising:bll_pyro.FitWarning")


def inputs() -> Tensor:
    return torch.randn(60, 4, generator=generator(0))


def labels() -> Tensor:
    return inputs()[:, :NUM_CLASSES].argmax(1)


class Functional(nn.Module):
    """As many features as classes, and an activation that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x))


class Scores(nn.Module):
    """Scores of the classes that no Linear gives, as those of a convolution or a log-softmax."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :NUM_CLASSES].log_softmax(1)


def linear_end(width: int = NUM_CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, width), nn.Dropout())


def split() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, NUM_CLASSES), nn.Linear(NUM_CLASSES, NUM_CLASSES))
    return bll.split_last_layer(network)[0]


def said_of(
    backbone: nn.Module, likelihood: bll.likelihoods.Likelihood, targets: Tensor, **given: object
) -> list[str]:
    layer = bll.LastLayer(likelihood)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = bll.fit(layer, (inputs(), targets), backbone, **given)
    said = [str(one.message) for one in caught if SAID in str(one.message)]
    assert [m for m in fit.trace.messages if SAID in m] == said
    assert all(issubclass(one.category, bll.FitWarning) for one in caught if SAID in str(one.message))
    return said


@pytest.mark.parametrize(
    ("make", "why"),
    [(linear_end, "ends with a Linear"), (Scores, "the class of 100% of the rows")],
    ids=["Linear", "scores"],
)
def test_a_whole_classifier(make: Callable[[], nn.Module], why: str) -> None:
    with isolated(0):
        backbone = make()
    (said,) = said_of(backbone, bll.likelihoods.Categorical(NUM_CLASSES), labels())
    assert why in said and "bll.split_last_layer" in said and "bll.bayesianize" in said


def test_a_whole_network_for_one_value_and_one_that_is_trained_along() -> None:
    with isolated(0):
        value, classes = linear_end(1), linear_end()
    (said,) = said_of(value, bll.likelihoods.Gaussian(), inputs()[:, 0])
    assert "as many as the last layer has outputs" in said
    joint = bll.SVI(backbone_learning_rate=1e-3, num_epochs=1)
    assert len(said_of(classes, bll.likelihoods.Categorical(NUM_CLASSES), labels(), inference=joint)) == 1


@pytest.mark.parametrize(
    "make",
    [
        Functional,
        split,
        partial(linear_end, 5),
        lambda: nn.Sequential(nn.Linear(4, NUM_CLASSES), nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(4, NUM_CLASSES), nn.BatchNorm1d(NUM_CLASSES)),
    ],
    ids=["functional", "split", "other width", "Tanh", "BatchNorm"],
)
def test_features_that_happen_to_be_as_many(make: Callable[[], nn.Module]) -> None:
    with isolated(1):
        backbone = make()
    assert not said_of(backbone, bll.likelihoods.Categorical(NUM_CLASSES), labels().flip(0))
