"""Features that move in joint training: what they are centred and divided by, and that their scale does not matter."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import bll_pyro as bll
from bll_pyro.inference.svi.batch_elbo import NUM_BATCHES, FirstUnits
from bll_pyro.inference.svi.train import BETAS

IMAGES, LABELS = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
TRAIN, KEPT, TEST = (
    (IMAGES[rows].float() / 16, LABELS[rows]) for rows in (slice(500), slice(500, 700), slice(700, 1700))
)
CLASSES = bll.LastLayer(bll.likelihoods.Categorical(10))
RATE, NUM_EPOCHS, BATCH_SIZE = 5e-3, 15, 50
JOINT = bll.SVI(backbone_learning_rate=RATE, num_epochs=NUM_EPOCHS, batch_size=BATCH_SIZE)


def noise(num_rows: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Times(nn.Module):
    """Features in another unit."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def network(factor: float = 1.0, small: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    last = nn.Linear(64, 32)
    with torch.no_grad():
        for value in last.parameters():
            value.mul_(small)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), last, nn.ReLU(), Times(factor))


# ---- the constants


def test_the_first_batches_are_measured_and_no_later_one() -> None:
    units = FirstUnits(3)
    batches = [0.5 * noise(8, seed) + seed for seed in range(NUM_BATCHES + 5)]
    found = [units(batch) for batch in batches]
    first = torch.stack(batches[:NUM_BATCHES])
    torch.testing.assert_close(units.center, first.mean((0, 1)).float())
    torch.testing.assert_close(units.variance, first.var(1).mean().float())
    assert float(units.unit) == 1.0 and int(units.num_batches) == NUM_BATCHES
    torch.testing.assert_close(found[-1], (batches[-1] - units.center).float())
    center = units.center.clone()
    units.eval()(batches[0])
    units.train()(batches[0][:1])
    assert torch.equal(units.center, center)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(1e-4, 0.1), (0.03, 0.1), (0.1, 0.1), (0.37, 0.37), (1.0, 1.0), (20.0, 1.0), (1e5, 1.0), (0.0, 0.0)],
)
def test_a_scale_between_the_bounds_stays_and_others_are_brought_to_the_nearer_one(
    scale: float, expected: float
) -> None:
    batch = noise(4000)
    batch = scale * (batch - batch.mean(0)) / batch.var(0).mean().sqrt() + 7
    found = FirstUnits(3)(batch)
    assert float(found.var(0).mean().sqrt()) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert float(found.mean(0).abs().max()) < 1e-4


def test_growth_of_the_features_reaches_the_outputs_and_the_gradient() -> None:
    """Below constants that follow, outputs would not change, and the gradient would promise that they do."""
    units, factor = FirstUnits(3), torch.ones((), dtype=torch.float64, requires_grad=True)
    for seed in range(NUM_BATCHES):
        units(noise(50, seed))
    batch, step = noise(50, 99), 1e-2
    values = [units(batch * each).double().square().sum() for each in (factor, factor + step)]
    (gradient,) = torch.autograd.grad(values[0], factor)
    assert float((values[1] - values[0]).detach()) / step == pytest.approx(float(gradient), rel=2e-2)


def test_features_far_from_zero_keep_their_digits() -> None:
    """In float32 the features 1e6 + h would have three digits of h; standardised they are as h is."""
    h = noise(64)
    near, far = FirstUnits(3), FirstUnits(3)
    expected, found = near(h), far(h + 1e6)
    assert found.dtype == expected.dtype == torch.float32
    # the averages are float32 numbers: 1e6 has steps of 1/16
    assert float((found - expected).mean(0).abs().max()) < 1 / 32
    torch.testing.assert_close(found - found.mean(0), expected - expected.mean(0), atol=1e-5, rtol=1e-5)


# ---- rates


def test_the_last_layer_has_a_rate_for_features_as_they_come_and_the_final_stage_its_own() -> None:
    final = JOINT.on_features()
    assert final is not None
    assert (JOINT.rate(64), JOINT.rate(128), final.rate(128)) == (0.005, 0.005, 0.02)
    assert JOINT.rate(512) == pytest.approx(0.0025) and final.rate(512) == pytest.approx(0.01)
    assert bll.SVI(backbone_learning_rate=RATE, learning_rate=0.1).rate(512) == 0.1


def test_the_last_layer_is_not_slower_than_its_backbone_as_no_plain_head_is() -> None:
    assert bll.SVI(backbone_learning_rate=0.03).rate(64) == 0.03
    assert bll.SVI(backbone_learning_rate=0.03).rate(512) == pytest.approx(0.015)
    assert bll.SVI(backbone_learning_rate=1e-4).rate(64) == 0.005


# ---- training


@pytest.fixture(scope="module")
def plain() -> tuple[float, float]:
    """Accuracy and NLL of a plain head, trained with the network as it is: same rows, rates and schedule."""
    torch.manual_seed(1)
    net = nn.Sequential(network(), nn.Linear(32, 10))
    optimizer, num_steps = (
        torch.optim.Adam(net.parameters(), RATE, betas=BETAS),
        NUM_EPOCHS * len(TRAIN[1]) // BATCH_SIZE,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(NUM_EPOCHS):
        for rows in torch.randperm(len(TRAIN[1])).split(BATCH_SIZE):
            optimizer.zero_grad()
            functional.cross_entropy(net(TRAIN[0][rows]), TRAIN[1][rows]).backward()
            optimizer.step()
            schedule.step()
    return scores(net(TEST[0]).detach().log_softmax(-1))


def scores(log_probs: Tensor) -> tuple[float, float]:
    right = (log_probs.argmax(-1) == TEST[1]).double().mean()
    return float(right), float(functional.nll_loss(log_probs, TEST[1]))


@pytest.mark.parametrize(
    "made",
    [{}, {"factor": 1e-3}, {"factor": 1e3}, {"small": 1e-3}],
    ids=["as it is", "1e-3", "1e3", "small weights"],
)
def test_a_joint_fit_is_as_good_as_a_plain_head_whatever_the_scale_of_the_features(
    made: dict[str, float], plain: tuple[float, float]
) -> None:
    fit = bll.fit(CLASSES, TRAIN, network(**made), JOINT, calibration=KEPT)
    accuracy, nll = scores(fit.predict(TEST[0]).probs.log())
    assert accuracy > plain[0] - 0.02 and nll < plain[1] + 0.05
