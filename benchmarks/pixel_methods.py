"""Fashion-MNIST from pixels: how the network is trained, plainly, in two stages, and jointly with its Bayesian last layer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

import bll_pyro as bll
from benchmarks.competitors.batches import shuffled
from benchmarks.competitors.map_head import temperature_of
from benchmarks.method import ClassPrediction

BATCH_SIZE, BETAS = 128, (0.9, 0.99)  # those of joint fits
NUM_CLASSES, NUM_FEATURES = 10, 128
ROWS_AT_ONCE = 2000
RATES = (1e-3, 2e-3, 4e-3)  # of Adam on the network
RAW_RATES = (2e-3, 5e-3)  # of the last layer, for features that are not standardised
PLAIN, TEMPERED = "plain", "plain + temperature"
TWO_STAGE, JOINT = "bll_pyro, two-stage", "bll_pyro, joint"
Rows = tuple[Tensor, Tensor]  # images [N, 1, 28, 28], labels [N]


@dataclass(frozen=True)
class Network:
    """A plain network with a temperature."""

    net: nn.Module
    temperature: float = 1.0

    def predict(self, images: Tensor) -> ClassPrediction:
        """Its softmax."""
        return ClassPrediction((self.outputs(images) / self.temperature).softmax(-1))

    def outputs(self, images: Tensor) -> Tensor:
        """Outputs ``[N, 10]`` without gradients, in parts."""
        with torch.no_grad():
            return torch.cat([self.net(part) for part in images.split(ROWS_AT_ONCE)])

    def tempered(self, kept: Rows) -> "Network":
        """The same network with the temperature that kept rows call for."""
        return replace(self, temperature=temperature_of(self.outputs(kept[0]), kept[1]))


@dataclass(frozen=True)
class Ours:
    """A fit of bll_pyro."""

    fit: bll.Fit

    @property
    def temperature(self) -> float:
        """That of its recalibration."""
        return self.fit.recalibration.temperature

    def predict(self, images: Tensor) -> ClassPrediction:
        """Averaged over the posterior."""
        found = self.fit.predict(images)
        return ClassPrediction(found.probs, found.epistemic)


Trained = Network | Ours
Method = Callable[[Rows, Rows, float, int, int], Trained]
"""``method(training rows, kept rows, rate, seed, num_epochs)``."""


def network(seed: int) -> tuple[nn.Module, nn.Linear]:
    """Two convolutions and a hidden layer, from images to 128 features, and a head: the same weights for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 7 * 7, NUM_FEATURES), nn.ReLU(),
        )  # fmt: skip
        return backbone, nn.Linear(NUM_FEATURES, NUM_CLASSES)


def plain(rows: Rows, kept: Rows, rate: float, seed: int, num_epochs: int) -> Trained:
    """Cross-entropy, Adam, a rate that falls along half a cosine: the schedule of the joint fits."""
    net = nn.Sequential(*network(seed))
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, betas=BETAS)
    num_steps = num_epochs * -(-len(rows[1]) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    order = torch.Generator().manual_seed(seed)
    for index in shuffled(len(rows[1]), BATCH_SIZE, num_epochs, order):
        optimizer.zero_grad()
        functional.cross_entropy(net(rows[0][index]), rows[1][index]).backward()
        optimizer.step()
        schedule.step()
    return Network(net)


def two_stage(rows: Rows, kept: Rows, rate: float, seed: int, num_epochs: int) -> Trained:
    """Network and a point estimate of the last layer on features as they come; then a last layer, all default, on the features."""
    point = bll.SVI(
        bll.guides.MAP(), RAW_RATES[-1], backbone_learning_rate=rate, num_epochs=num_epochs, final_stage=False
    )
    first = bll.fit(raw_layer(), rows, network(seed)[0], point, seed=seed, calibration=kept)
    return Ours(bll.fit(layer(), rows, first.backbone, seed=seed, calibration=kept))


def joint(rows: Rows, kept: Rows, rate: float, seed: int, num_epochs: int) -> Trained:
    """Network and Bayesian last layer together, all defaults."""
    inference = bll.SVI(backbone_learning_rate=rate, num_epochs=num_epochs)
    return Ours(bll.fit(layer(), rows, network(seed)[0], inference, seed=seed, calibration=kept))


def raw_joint(head_rate: float, rows: Rows, kept: Rows, rate: float, seed: int, num_epochs: int) -> Trained:
    """As joint, on features as they come, with a rate of the last layer and no final stage."""
    inference = bll.SVI(
        learning_rate=head_rate, backbone_learning_rate=rate, num_epochs=num_epochs, final_stage=False
    )
    return Ours(bll.fit(raw_layer(), rows, network(seed)[0], inference, seed=seed, calibration=kept))


def layer() -> bll.LastLayer:
    """Ten classes and all defaults."""
    return bll.LastLayer(bll.likelihoods.Categorical(NUM_CLASSES))


def raw_layer() -> bll.LastLayer:
    """The same for features as they come."""
    return replace(layer(), standardize=False)


METHODS: dict[str, Method] = {PLAIN: plain, TWO_STAGE: two_stage, JOINT: joint}
TRIALS: dict[str, tuple[Method, tuple[float, ...]]] = {
    PLAIN: (plain, RATES),
    JOINT: (joint, RATES[1:2]),
} | {
    f"{JOINT}, features as they come, rate of the last layer {rate:g}": (
        partial(raw_joint, rate),
        RATES[1:2],
    )
    for rate in RAW_RATES
}
"""What was tried on training rows, with the rates of the network."""
