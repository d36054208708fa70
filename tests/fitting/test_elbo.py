"""``bll.ELBO`` in a loop of the user's: the loss, its parameters and state, and the fit at the end."""

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pytest
import torch
from guide_cases import guides_for
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

import bll_pyro as bll
from bll_pyro import likelihoods
from bll_pyro.inference.svi import objective
from bll_pyro.inference.svi.train import BETAS
from bll_pyro.scope import generator, isolated

N, D, K = 48, 4, 3
RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(N, D, generator=RANDOM)
LABELS = (X[:, 0] > -0.5).long() + (X[:, 0] > 0.5).long()
Y = 3 * X[:, 0] + torch.randn(N, generator=RANDOM) + 100
CLASSES = bll.LastLayer(likelihoods.Categorical(K))
KNOWN = bll.LastLayer(likelihoods.Gaussian(0.5), bll.priors.Normal(0.7), bias_scale=2.0)
RAW = bll.LastLayer(likelihoods.Gaussian(0.5), bll.priors.Normal(0.7), bias_scale=2.0, standardize=False)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of guides without a closed form."""
    monkeypatch.setattr(objective, "NUM_GUIDE_DRAWS", 10)


def seen(elbo: bll.ELBO, features: Tensor = X) -> bll.ELBO:
    """After a look at the features, then at rest."""
    elbo.train().units(features)
    return elbo.eval()


def steps(elbo: bll.ELBO, targets: Tensor, number: int = 5, features: Tensor = X) -> None:
    optimizer = torch.optim.Adam(elbo.parameters(), 0.05)
    random = generator(1)
    for _ in range(number):
        optimizer.zero_grad()
        elbo(features, targets, generator=random).backward()
        optimizer.step()


# ---- the loss


def test_the_loss_is_the_negative_elbo_a_row_with_the_kl_over_all_rows() -> None:
    """Noise and prior scale are known, so that nothing is drawn: against the closed forms of torch."""
    elbo = bll.ELBO(RAW, D, num_rows=1000)
    loc, scale = elbo.guide.loc.detach(), elbo.guide.scale.detach()
    prior = Normal(torch.zeros(D + 1), torch.tensor([0.7] * D + [2.0]))
    kl = kl_divergence(Normal(loc, scale), prior).sum()
    design = torch.cat([X, torch.ones(N, 1)], 1)
    mean, variance = design @ loc, design.square() @ scale.square()
    each = Normal(mean, 0.5).log_prob(Y) - variance / (2 * 0.5**2)
    torch.testing.assert_close(elbo(X, Y), -each.mean() + kl / 1000, rtol=1e-5, atol=0)
    weight = torch.rand(N, generator=generator(2))
    torch.testing.assert_close(elbo(X, Y, weight), -(weight * each).mean() + kl / 1000, rtol=1e-5, atol=0)


def test_the_mean_over_batches_is_the_loss_of_all_rows_whatever_their_size() -> None:
    elbo = seen(bll.ELBO.from_data(KNOWN, (X, Y)))
    whole = elbo(X, Y)
    for size in (1, 8, 24):
        parts = [elbo(x, y) for x, y in zip(X.split(size), Y.split(size), strict=True)]
        torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_the_loss_is_in_the_users_units() -> None:
    """Targets times 10 have a density a tenth as high."""
    found = [
        seen(bll.ELBO.from_data(CLASSES_OR_NUMBERS, (X, y)))(X, y, generator=generator(3))
        for y in (Y, 10 * Y)
    ]
    torch.testing.assert_close(found[1] - found[0], torch.tensor(math.log(10)), rtol=1e-4, atol=1e-4)


CLASSES_OR_NUMBERS = bll.LastLayer(likelihoods.Gaussian())


def test_names_of_a_frame_are_those_of_the_fit() -> None:
    frame = pd.DataFrame(X.numpy(), columns=list("abcd"))
    elbo = seen(bll.ELBO.from_data(KNOWN, (frame, Y)))
    fit, other_order = elbo.to_fit(), frame[list("dbca")]
    assert fit.feature_names == ("a", "b", "c", "d")
    torch.testing.assert_close(fit.predict(other_order).mean, fit.predict(X).mean)
    network = nn.Linear(D, 2)
    through = bll.ELBO.from_data(KNOWN, (frame, Y), network)
    assert through.to_fit(network).feature_names == ("a", "b", "c", "d")
    assert through.to_fit().feature_names is None  # of the features there are none


def test_a_row_of_weight_two_is_two_rows() -> None:
    weight = torch.ones(N)
    weight[:8] = 2.0
    doubled = torch.cat([X, X[:8]]), torch.cat([Y, Y[:8]])
    weighted, plain = (
        bll.ELBO.from_data(KNOWN, (X, Y), sample_weight=weight),
        bll.ELBO.from_data(KNOWN, doubled),
    )
    torch.testing.assert_close(weighted.target_center, plain.target_center)
    plain.load_state_dict(weighted.state_dict())
    total = N * weighted.eval()(X, Y, weight)
    torch.testing.assert_close((N + 8) * plain.eval()(*doubled), total)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_its_expectation_is_that_of_pyros_trace_elbo(kind: str) -> None:
    layer, targets = (CLASSES, LABELS) if kind == "classes" else (CLASSES_OR_NUMBERS, Y)
    elbo = seen(bll.ELBO.from_data(layer, (X, targets), guide=bll.guides.LowRank(1)))
    steps(elbo, targets)
    num_draws, random = 100, generator(4)
    with torch.no_grad():
        ours = torch.stack([elbo(X, targets, generator=random) for _ in range(num_draws)])
    frame, model = elbo.frame, elbo.objective.model
    model.tau = elbo.posterior().learned["tau"]
    with isolated(5):
        inputs, inside, pyros = (
            frame.standardized(X),
            frame.targets(layer.likelihood.check_targets(targets)),
            Trace_ELBO(),
        )
        theirs = torch.tensor([pyros.loss(model, elbo.guide, inputs, inside) for _ in range(num_draws)]) / N
    theirs = theirs + frame.target_scale.log().sum()
    error = math.sqrt(float(ours.var() + theirs.var()) / num_draws)
    assert abs(float(ours.mean() - theirs.mean())) < 4 * error


@pytest.mark.filterwarnings("ignore::bll_pyro.FitWarning", "ignore:calibration=None:RuntimeWarning")
@pytest.mark.parametrize(
    "guide", [bll.guides.Diagonal(), bll.guides.Flow(num_layers=1)], ids=["Gaussian", "flow"]
)
def test_a_bare_loop_that_does_what_joint_training_does_ends_there(guide: bll.guides.Guide) -> None:
    torch.manual_seed(0)
    network, size, num_epochs = nn.Sequential(nn.Linear(D, 5), nn.Tanh()), 16, 3
    svi = bll.SVI(
        guide, 0.02, backbone_learning_rate=0.01, num_epochs=num_epochs, batch_size=size, final_stage=False
    )
    fit = bll.fit(CLASSES, (X, LABELS), network, svi, calibration=None, seed=7)

    elbo = bll.ELBO.from_data(CLASSES, (X, LABELS), network, guide=guide, seed=7)
    groups = [{"params": elbo.parameters(), "lr": 0.02}, {"params": network.parameters(), "lr": 0.01}]
    optimizer, order, draws = torch.optim.Adam(groups, betas=BETAS), generator(7), generator(7)
    num_steps = num_epochs * N // size
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / num_steps))
    )
    torch.manual_seed(
        7
    )  # guides without a closed form draw from torch's own generator, as fit does in its own state
    for _ in range(num_epochs):
        for rows in torch.randperm(N, generator=order).split(size):
            optimizer.zero_grad()
            elbo(network(X[rows]), LABELS[rows], generator=draws).backward()
            optimizer.step()
            schedule.step()
    found = elbo.to_fit(network).predict(X).probs
    if isinstance(guide, bll.guides.Diagonal):
        torch.testing.assert_close(found, fit.predict(X).probs, rtol=1e-5, atol=1e-6)
    else:  # other draws, and few
        assert (found - fit.predict(X).probs).abs().max() < 0.2


# ---- a plain module


@pytest.mark.parametrize("name", guides_for(K, D))
def test_every_guide(name: str) -> None:
    """All that it trains are parameters, all gradients arrive, its state goes into a new module, and a fit comes out."""
    layer, guide = CLASSES, guides_for(K, D)[name]
    elbo = bll.ELBO(layer, D, N, guide=guide)
    trained = [value for value in elbo.parameters() if value.requires_grad]
    features = X.clone().requires_grad_()
    elbo(features, LABELS).backward()
    assert all(value.grad is not None for value in trained) and bool(features.grad.abs().sum() > 0)
    steps(elbo, LABELS)
    assert [id(value) for value in elbo.parameters() if value.requires_grad] == [
        id(value) for value in trained
    ]

    again = bll.ELBO(layer, D, N, guide=guide, seed=1)
    again.load_state_dict(elbo.state_dict())
    copied = copy.deepcopy(elbo)
    found = [each.eval().predict(X).probs for each in (elbo, again, copied)]
    assert all(torch.equal(probs, found[0]) for probs in found)
    with torch.no_grad():
        for value in copied.parameters():
            value.add_(1.0)
    assert torch.equal(elbo.predict(X).probs, found[0])
    steps(copied, LABELS, 1)
    assert len(elbo.to_fit().predict(X).probs) == N


def test_a_state_goes_on_where_it_was() -> None:
    """The constants of the features too: after two batches a third counts a third."""
    elbo = bll.ELBO.from_data(CLASSES, (X, LABELS))
    parts = X.split(16)
    for part in parts[:2]:
        elbo.units(part)
    again = bll.ELBO.from_data(CLASSES, (X, LABELS), seed=1)
    again.load_state_dict(elbo.state_dict())
    for each in (elbo, again):
        each.units(parts[2])
        torch.testing.assert_close(each.units.center, X.mean(0))
        assert int(each.units.num_batches) == 3


def test_features_are_measured_in_training_and_not_in_evaluation() -> None:
    elbo = bll.ELBO.from_data(CLASSES, (X, LABELS))
    elbo(X, LABELS)
    center = elbo.units.center.clone()
    torch.testing.assert_close(center, X.mean(0))
    elbo.eval()
    elbo(X + 5, LABELS)
    elbo.predict(X + 5)
    assert torch.equal(elbo.units.center, center)
    elbo.train()
    elbo(X + 5, LABELS)
    assert bool((elbo.units.center > center).all())
    with torch.no_grad():
        kept = elbo.units.center.clone()
        assert not elbo((X + 5).mul(torch.inf), LABELS).isfinite()  # a step that half precision lost
    assert torch.equal(elbo.units.center, kept)
    raw = bll.ELBO(RAW, D, N)
    raw(X + 5, Y)
    assert int(raw.units.num_batches) == 0


def test_the_random_draws_are_those_of_the_caller_and_the_store_is_left_alone() -> None:
    flow = bll.ELBO(CLASSES, D, N, guide=bll.guides.Flow(num_layers=1))
    for elbo in (bll.ELBO(CLASSES, D, N), flow):
        elbo.eval()
        with isolated(0):
            found = [elbo(X, LABELS) for _ in range(2)]
            torch.manual_seed(0)
            pyro.param("mine", torch.ones(2))
            assert elbo(X, LABELS) == found[0] != found[1]
            assert list(pyro.get_param_store().keys()) == ["mine"]


def test_half_precision_and_autocast_leave_the_last_layer_in_full() -> None:
    network = nn.Linear(D, D)
    elbo = bll.ELBO.from_data(CLASSES, (X, LABELS), network)
    plain = elbo.eval()(X, LABELS, generator=generator(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(X).dtype == torch.bfloat16
        assert torch.equal(elbo(X, LABELS, generator=generator(0)), plain)
        assert elbo(network(X), LABELS).dtype == torch.float32
    both = nn.ModuleList([network, elbo]).to(torch.bfloat16)
    assert network.weight.dtype == torch.bfloat16
    assert {value.dtype for value in elbo.state_dict().values()} == {torch.float32, torch.int64}
    elbo(network(X.bfloat16()), LABELS).backward()
    assert (
        network.weight.grad is not None and elbo.predict(network(X.bfloat16())).probs.dtype == torch.float32
    )
    both.double()
    assert {value.dtype for value in elbo.state_dict().values()} == {torch.float64, torch.int64}
    assert elbo(network(X.double()), LABELS).dtype == torch.float64


def test_averaged_weights_and_functional_calls() -> None:
    elbo = bll.ELBO.from_data(CLASSES, (X, LABELS))
    average = torch.optim.swa_utils.AveragedModel(elbo, use_buffers=True)
    for _ in range(2):
        steps(elbo, LABELS, 1)
        average.update_parameters(elbo)
    assert torch.isfinite(average.module.eval().predict(X).log_prob(LABELS)).all()
    elbo.eval()
    state = {name: value.detach().clone().requires_grad_() for name, value in elbo.named_parameters()}
    value = torch.func.functional_call(elbo, state, (X, LABELS), {"generator": generator(0)})
    assert torch.equal(value, elbo(X, LABELS, generator=generator(0)))
    gradients = torch.autograd.grad(value, list(state.values()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


# ---- from data, and to a fit


def test_from_data_takes_what_fit_takes() -> None:
    network = nn.Linear(D, 6)
    wide = Y.double()
    for data in ((X, Y), TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), 20, shuffle=True)):
        elbo = bll.ELBO.from_data(KNOWN, data, network)
        assert elbo.objective.num_rows == N and len(elbo.units.center) == 6
        torch.testing.assert_close(elbo.target_center, wide.mean()[None].float())
        torch.testing.assert_close(elbo.target_scale, wide.std(correction=0)[None].float())
    two = bll.ELBO.from_data(bll.LastLayer(likelihoods.Gaussian()), (X, torch.stack([Y, -Y], 1)))
    assert two.objective.model.target_shape == (2,) and two.target_center.shape == (2,)
    by_hand = bll.ELBO(
        KNOWN, 6, N, target_center=float(wide.mean()), target_scale=float(wide.std(correction=0))
    )
    torch.testing.assert_close(by_hand.target_scale, elbo.target_scale)


def test_the_fit_is_a_copy_that_does_all_that_fits_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Linear(D, D)
    elbo = bll.ELBO.from_data(bll.LastLayer(likelihoods.Gaussian()), (X, Y), network)
    steps(elbo, Y, 60, network(X).detach())
    fit = elbo.to_fit(network)
    before = fit.predict(X)
    steps(elbo, Y, 5, network(X).detach())
    assert torch.equal(fit.predict(X).mean, before.mean)
    assert (
        "OwnLoop(guide=Diagonal())" in str(fit) and "converged in" not in str(fit) and "48 rows" in str(fit)
    )
    assert fit.num_rows == N and not fit.trace.messages
    assert fit.to_datatree(X, Y, num_draws=5).log_likelihood.y.shape == (1, 5, N)
    found = bll.calibrate(fit, X, Y)
    found = found.with_detector(bll.ood.Detector(bll.ood.Leverage(), alpha=0.1).calibrate(found, X))
    found.save(tmp_path / "fit")
    again = bll.load(tmp_path / "fit", backbone=nn.Linear(D, D))
    torch.testing.assert_close(again.predict(X).scale, found.predict(X).scale)
    assert again.inference == fit.inference
    other = bll.fit(fit.layer, (X, Y), network)  # the final stage, by composition
    assert len(bll.compare({"as trained": fit, "once more": other}, (X, Y)).table) == 2
    with pytest.raises(AttributeError, match="elbo is given by SVI, not by OwnLoop"):
        _ = fit.elbo
    with pytest.raises(TypeError, match="OwnLoop: expected an inference that can be run"):
        bll.fit(fit.layer, (X, Y), network, fit.inference)
    with torch.no_grad():
        network.weight.add_(1.0)
    with pytest.warns(RuntimeWarning, match="the backbone was changed after the fit"):
        fit.predict(X)


def test_counts_with_exposures() -> None:
    layer, counts = bll.LastLayer(likelihoods.Poisson()), (X[:, 0].exp() * 3).round()
    elbo = seen(bll.ELBO.from_data(layer, (X, counts)))
    exposure = torch.full((N,), 2.0)
    found = elbo(X, counts, exposure=exposure, generator=generator(0))
    assert found != elbo(X, counts, generator=generator(0))
    assert torch.equal(found, elbo(X, counts, exposure=exposure[:, None], generator=generator(0)))
    torch.testing.assert_close(elbo.predict(X, exposure=exposure).mean, 2 * elbo.predict(X).mean)


# ---- bad input


BAD: dict[str, tuple[Any, str]] = {
    "no constants": (lambda: bll.ELBO(KNOWN, D, N), r"expected target_center and target_scale.*from_data"),
    "constants of labels": (
        lambda: bll.ELBO(CLASSES, D, N, target_center=0.0),
        "expected no target_center and target_scale for Categorical",
    ),
    "a scale of 0": (
        lambda: bll.ELBO(KNOWN, D, N, target_center=0.0, target_scale=0.0),
        "expected target_scale above 0",
    ),
    "constants of other targets": (
        lambda: bll.ELBO(KNOWN, D, N, target_shape=(2,), target_center=[0.0] * 3, target_scale=1.0),
        "expected target_center as a finite number, or one for each of 2 targets",
    ),
    "no rows": (lambda: bll.ELBO(CLASSES, D, 0), "num_rows"),
    "half a feature": (lambda: bll.ELBO(CLASSES, 2.5, N), "num_features"),
    "no guide": (lambda: bll.ELBO(CLASSES, D, N, guide="diagonal"), "expected a guide such as"),
    "no layer": (lambda: bll.ELBO(likelihoods.Categorical(3), D, N), r"expected bll\.LastLayer"),
    "a head of frozen features": (
        lambda: bll.ELBO(bll.LastLayer.from_linear(nn.Linear(D, K), likelihoods.Categorical(K)), D, N),
        r"LastLayer\(raw_center=True\): expected standardize=False",
    ),
    "a backbone of another kind": (
        lambda: bll.ELBO(CLASSES, D, N).to_fit(len),
        r"expected a torch\.nn\.Module",
    ),
    "other features": (
        lambda: bll.ELBO(CLASSES, D, N)(X[:, :2], LABELS),
        r"expected a tensor of features \[B, 4\]",
    ),
    "fewer targets": (
        lambda: bll.ELBO(CLASSES, D, N)(X, LABELS[:5]),
        r"expected targets of shape \[48\], got \[5\]",
    ),
    "labels out of range": (lambda: bll.ELBO(CLASSES, D, N)(X, LABELS + 7), "expected labels from 0 to 2"),
    "targets in a list": (lambda: bll.ELBO(CLASSES, D, N)(X, LABELS.tolist()), r"use torch\.as_tensor"),
    "other weights": (
        lambda: bll.ELBO(CLASSES, D, N)(X, LABELS, torch.ones(3)),
        r"expected sample_weight of shape \[48\], got \[3\]",
    ),
    "weights below 0": (
        lambda: bll.ELBO(CLASSES, D, N)(X, LABELS, -torch.ones(N)),
        "expected weights from 0 on, got -1.0",
    ),
    "exposures of labels": (
        lambda: bll.ELBO(CLASSES, D, N)(X, LABELS, exposure=torch.ones(N)),
        "exposure: expected a likelihood of counts",
    ),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_named_with_a_remedy(kind: str) -> None:
    call, message = BAD[kind]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_posterior_as_the_prior_is_of_frozen_features() -> None:
    earlier = bll.fit(KNOWN, (X, Y), inference=bll.Exact())
    layer = bll.LastLayer(likelihoods.Gaussian(0.5), earlier.as_prior())
    with pytest.raises(ValueError, match="expected frozen features"):
        bll.ELBO.from_data(layer, (X, Y))


def test_replicas_of_data_parallel_are_refused() -> None:
    elbo = bll.ELBO(CLASSES, D, N)
    replica = elbo._replicate_for_data_parallel()
    replica.guide = copy.deepcopy(elbo.guide)
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        replica(X, LABELS)


def test_it_says_what_it_is() -> None:
    assert "Categorical(num_classes=3" in repr(bll.ELBO(CLASSES, D, N)) and "num_rows=48" in repr(
        bll.ELBO(CLASSES, D, N)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bll.ELBO(CLASSES, D, N)
