"""``bayesianize``: the head stays the centre, new rows say how sure it may be, and the network stays as it is."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import bll_pyro as bll
from bll_pyro.scope import generator, isolated

pytestmark = pytest.mark.filterwarnings("ignore:the ELBO was still rising:bll_pyro.FitWarning")
NUM_FEATURES, NUM_CLASSES, SHARPNESS = 8, 3, 3.0
Rows = tuple[Tensor, Tensor]


def network(num_outputs: int = NUM_CLASSES, sharpness: float = 1.0) -> nn.Sequential:
    """A network of random weights, whose outputs can be made too large, as training makes them."""
    with isolated(1):
        made = nn.Sequential(nn.Linear(4, NUM_FEATURES), nn.Tanh(), nn.Linear(NUM_FEATURES, num_outputs))
    with torch.no_grad():
        made[2].weight.mul_(4 * sharpness)
        made[2].bias.mul_(4 * sharpness)
    return made


def classes(num_rows: int, seed: int) -> Rows:
    """Labels drawn from the probabilities of the network before its outputs are too large."""
    x = torch.randn(num_rows, 4, generator=generator(seed))
    probs = network()(x).softmax(-1).detach()
    return x, torch.multinomial(probs, 1, generator=generator(seed + 1)).squeeze(1)


def values(num_rows: int, seed: int, noise: float) -> Rows:
    x = torch.randn(num_rows, 4, generator=generator(seed))
    return x, network(1)(x).detach().squeeze(1) + noise * torch.randn(num_rows, generator=generator(seed + 1))


def nll(probs: Tensor, labels: Tensor) -> float:
    return float(functional.nll_loss(probs.log(), labels))


def head_with_temperature(net: nn.Module, calibration: Rows, x: Tensor) -> Tensor:
    """Probabilities of the head at the best of many temperatures."""
    with torch.no_grad():
        logits, known = net(x), net(calibration[0])
    found = [
        (float(functional.cross_entropy(known / t, calibration[1])), t) for t in torch.logspace(-1, 1, 200)
    ]
    return (logits / min(found)[1]).softmax(-1)


def test_as_accurate_as_the_head_and_as_calibrated_as_with_a_temperature() -> None:
    net, train, new = network(sharpness=SHARPNESS), classes(300, 0), classes(300, 10)
    x, labels = classes(4000, 20)
    fit = bll.bayesianize(net, train, calibration=new)
    probs = fit.predict(x).probs
    with torch.no_grad():
        head = net(x).softmax(-1)
    assert (probs.argmax(1) == head.argmax(1)).double().mean() > 0.97
    scaled = nll(head_with_temperature(net, new, x), labels)
    assert nll(probs, labels) < scaled + 0.01 < nll(head, labels) - 0.1
    assert fit.recalibration.temperature == pytest.approx(SHARPNESS, rel=0.2)
    assert fit.recalibration.found_on.num_rows == 300 and fit.num_rows == 300
    assert "head of the network (Sequential)" in repr(fit) and "300 held-out rows" in repr(fit)
    scale = fit.layer.prior.scale
    assert torch.equal(fit.layer.prior.loc, net[2].weight) and torch.equal(fit.layer.bias_loc, net[2].bias)
    assert scale == fit.layer.bias_scale
    spread = fit.backbone(train[0]).var(0).mean().sqrt()
    share = scale / float((net[2].weight.square().mean().sqrt() * spread).detach())
    assert any(share == pytest.approx(tried, rel=5e-3) for tried in (1 / 64, 1 / 16, 1 / 4))


def test_rows_are_kept_where_none_are_given() -> None:
    net, (x, labels) = network(sharpness=SHARPNESS), classes(400, 0)
    fit = bll.bayesianize(net, TensorDataset(x, labels), prior_scale=0.1)
    assert fit.num_rows == 200 and fit.recalibration.found_on.num_rows == 200
    assert bll.bayesianize(net, (x, labels), calibration=0.25, prior_scale=0.1).num_rows == 300
    again = bll.bayesianize(net, (x, labels), prior_scale=0.1)
    assert torch.equal(again.predict(x).probs, fit.predict(x).probs)


def test_a_head_that_was_hardly_trained_gets_a_wider_prior() -> None:
    train, new = classes(300, 0), classes(300, 10)
    untrained = network()
    with torch.no_grad():
        untrained[2].weight.copy_(0.05 * torch.randn(NUM_CLASSES, NUM_FEATURES, generator=generator(3)))
    fit = bll.bayesianize(untrained, train, calibration=new)
    size = untrained[2].weight.detach().square().mean().sqrt() * fit.posterior.frame.scale[0]
    assert float(fit.layer.prior.scale / size) == pytest.approx(4.0, rel=1e-3)
    assert "with a scale of 4 of its weights" in repr(fit)
    given = bll.bayesianize(untrained, train, calibration=new, prior_scale=0.125)
    assert given.layer.prior.scale == 0.125 == given.layer.bias_scale


def test_real_values_get_a_noise_factor_from_new_rows() -> None:
    """Of rows that a network knows, the noise is too small: here half of it."""
    noise = 0.5
    train, new = values(300, 0, noise / 2), values(300, 10, noise)
    x, targets = values(2000, 20, noise)
    fit = bll.bayesianize(network(1), train, calibration=new, prior_scale=0.1)
    assert isinstance(fit.layer.likelihood, bll.likelihoods.Gaussian)
    prediction = fit.predict(x)
    low, high = prediction.interval(0.9)
    inside = float(((low <= targets) & (targets <= high)).double().mean())
    assert inside == pytest.approx(0.9, abs=0.03)  # the factor's error of 4% moves it by 1.6 points
    with torch.no_grad():
        error, own = (
            ((mean - targets) ** 2).mean().sqrt() for mean in (prediction.mean, network(1)(x).squeeze(1))
        )
    assert float(error) < 1.02 * float(own)


def test_several_labels() -> None:
    x = torch.randn(300, 4, generator=generator(0))
    labels = torch.bernoulli(network(2)(x).sigmoid().detach(), generator=generator(1))
    labelled = bll.likelihoods.Bernoulli()
    fit = bll.bayesianize(network(2, SHARPNESS), (x, labels), likelihood=labelled, prior_scale=0.1)
    assert fit.predict(x).probs.shape == (300, 2)
    assert fit.recalibration.temperature == pytest.approx(SHARPNESS, rel=0.4)
    with pytest.raises(ValueError, match=r"pass likelihood=: Bernoulli\(\) for labels 0 and 1"):
        bll.bayesianize(network(2), (x, labels))


def test_counts_have_no_recalibration() -> None:
    x = torch.randn(60, 4, generator=generator(0))
    counts = torch.poisson(network(1)(x).clamp(-2, 2).exp().detach().squeeze(1), generator=generator(1))
    fit = bll.bayesianize(network(1), (x, counts), likelihood=bll.likelihoods.Poisson())
    assert fit.recalibration is None and fit.num_rows == 60


def test_the_network_stays_as_it_is_and_the_fit_is_saved(tmp_path: Path) -> None:
    net, data = network(sharpness=SHARPNESS).train(), classes(200, 0)
    net[0].weight.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fit = bll.bayesianize(net, data, store=tmp_path / "features")
    assert net.training and net[2].weight.requires_grad and not net[0].weight.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    fit.save(tmp_path / "fit")
    again = bll.load(tmp_path / "fit", backbone=bll.split_last_layer(network())[0])
    assert torch.equal(again.predict(data[0]).probs, fit.predict(data[0]).probs)
    assert again.recalibration == fit.recalibration
    with torch.no_grad():
        net[0].weight.add_(1.0)  # the fit shares its memory
    with pytest.warns(RuntimeWarning, match="the backbone was changed after the fit"):
        fit.predict(data[0])


def test_rows_that_the_network_was_trained_on_are_noticed() -> None:
    """Labels are the network's own, so that it is always right, and not sure enough for that."""
    x = torch.randn(400, 4, generator=generator(0))
    net = network()
    known, new = (x, net(x).argmax(1)), classes(400, 10)
    with pytest.warns(bll.FitWarning, match="it was probably trained on them") as caught:
        fit = bll.bayesianize(net, known)
    assert len(caught) == 1 and str(caught[0].message) in fit.trace.messages
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bll.bayesianize(net, new)
        bll.bayesianize(net, known, calibration=new)


# ---- bad input

X = torch.randn(60, 4, generator=generator(0))
LABELS = torch.arange(60) % NUM_CLASSES
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "one output, labels": (
        lambda: bll.bayesianize(network(1), (X, LABELS)),
        "integer labels .* for 1 outputs; pass likelihood=",
    ),
    "more values than outputs": (
        lambda: bll.bayesianize(network(1), (X, X)),
        r"of shape \['N', 4\] for 1 outputs",
    ),
    "another head": (
        lambda: bll.bayesianize(network(), (X, LABELS), likelihood=bll.likelihoods.Categorical(5)),
        "expected a head with 5 outputs",
    ),
    "label out of range": (
        lambda: bll.bayesianize(network(2), (X, LABELS)),
        "expected labels from 0 to 1, got 2",
    ),
    "few rows": (
        lambda: bll.bayesianize(network(), (X[:30], LABELS[:30])),
        "expected at least 40 rows.* got 30",
    ),
    "joint": (
        lambda: bll.bayesianize(network(), (X, LABELS), inference=bll.SVI(backbone_learning_rate=1e-3)),
        "leaves the backbone as it is",
    ),
    "zero head": (lambda: bll.bayesianize(network(sharpness=0.0), (X, LABELS)), "expected a trained head"),
    "prior scale": (lambda: bll.bayesianize(network(), (X, LABELS), prior_scale=-1.0), "prior_scale"),
    "softmax": (
        lambda: bll.bayesianize(nn.Sequential(network(), nn.Softmax(-1)), (X, LABELS)),
        "ends with a softmax of '0.2'",
    ),
    "share": (lambda: bll.bayesianize(network(), (X, LABELS), calibration=1.5), "calibration"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, said = BAD[name]
    with pytest.raises(ValueError, match=said):
        call()
