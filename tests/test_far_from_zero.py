"""Numbers far from 0, such as dates: a fit on data plus an offset is the fit on the data, and predictions move along."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro.frame import Frame, as_floats

L, P = bll.likelihoods, bll.priors
OFFSET = 1.7e9  # seconds since 1970
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(300, 2)).astype("float32")
Y = 5 * X[:, 0].astype(float) + 0.1 * RANDOM.normal(size=300)
TRAIN, TEST = slice(0, 200), slice(200, 300)
# float64 resolves the offset to 2.4e-7, which is 5e-8 standard deviations of the targets; SVI carries rounding on
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-3}
INFERENCES = [bll.Exact(), bll.SVI(num_epochs=300), bll.Laplace()]


def fits(inference: Any = None, likelihood: Any = None, **options: Any) -> list[bll.Fit]:
    """On the targets as they are, and with the offset."""
    layer = bll.LastLayer(likelihood or L.Gaussian(), **options)
    return [
        bll.fit(layer, (X[TRAIN], Y[TRAIN] + by), inference=inference or bll.Exact()) for by in (0.0, OFFSET)
    ]


def same(moved: Any, plain: Any, by: float = 0.0) -> None:
    moved, plain = np.asarray(moved), np.asarray(plain)
    np.testing.assert_allclose(moved.astype(float) - by, plain.astype(float), **CLOSE)


@pytest.mark.filterwarnings("ignore:the ELBO was still rising")  # of a fit that is short on purpose
@pytest.mark.parametrize("inference", INFERENCES, ids=lambda i: type(i).__name__)
def test_predictions_move_with_the_targets(inference: Any) -> None:
    near, far = (fit.predict(X[TEST]) for fit in fits(inference))
    same(far.mean, near.mean, OFFSET)
    same(far.scale, near.scale)
    same(far.quantile(0.2), near.quantile(0.2), OFFSET)
    for kind in ("equal_tailed", "hdi"):
        for moved, plain in zip(far.interval(0.9, kind), near.interval(0.9, kind), strict=True):
            same(moved, plain, OFFSET)
    for score in ("log_prob", "crps", "pit", "cdf"):
        same(getattr(far, score)(Y[TEST] + OFFSET), getattr(near, score)(Y[TEST]))
    same(far.sample(50), near.sample(50), OFFSET)
    lower, upper = far.interval(0.9)
    inside = (lower.numpy() <= Y[TEST] + OFFSET) & (Y[TEST] + OFFSET <= upper.numpy())
    assert abs(inside.mean() - 0.9) < 3 * (0.09 / 100) ** 0.5  # three standard errors of a share of 100 rows


def test_the_log_density_is_that_of_the_noise() -> None:
    """Of the linear model that the data come from, in nats."""
    found = fits()[1].predict(X[TEST]).log_prob(Y[TEST] + OFFSET).mean()
    residual = Y[TEST] - 5 * X[TEST][:, 0]
    expected = (-0.5 * (residual / 0.1) ** 2 - np.log(0.1) - 0.5 * np.log(2 * np.pi)).mean()
    assert abs(float(found) - expected) < 0.05


def test_evidence_and_leave_one_out() -> None:
    near, far = fits()
    same(far.log_evidence, near.log_evidence)
    elpd = [bll.loo(fit, (X[TRAIN], Y[TRAIN] + by)).elpd for fit, by in ((near, 0.0), (far, OFFSET))]
    same(elpd[1], elpd[0])


def test_what_is_found_on_held_out_rows() -> None:
    near, far = fits(likelihood=L.Gaussian(0.2))
    found = [
        bll.calibrate(fit, X[TEST], Y[TEST] + by).recalibration for fit, by in ((near, 0.0), (far, OFFSET))
    ]
    same(found[1].factor, found[0].factor)
    ends = [
        bll.conformal.PredictionIntervals().calibrate(fit, X[TEST], Y[TEST] + by).predict(X[TEST])
        for fit, by in ((near, 0.0), (far, OFFSET))
    ]
    for moved, plain in zip(ends[1], ends[0], strict=True):
        same(moved, plain, OFFSET)


def test_the_tree() -> None:
    near, far = (
        fit.to_datatree(X[TEST], Y[TEST] + by, num_draws=40)
        for fit, by in zip(fits(), (0.0, OFFSET), strict=True)
    )
    for group in ("observed_data", "posterior_predictive", "prior_predictive"):
        same(far[group]["y"], near[group]["y"], OFFSET)
    same(far["log_likelihood"]["y"], near["log_likelihood"]["y"])
    same(far["constant_data"]["target_center"], near["constant_data"]["target_center"], OFFSET)


def test_draws_of_whole_numbers_that_are_real_values_are_real() -> None:
    targets = (100 * Y).astype("int64")
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (X, targets), inference=bll.Exact())
    tree = fit.to_datatree(X[:5], targets[:5], num_draws=10, prior=False)
    drawn = tree["posterior_predictive"]["y"].values
    assert tree["observed_data"]["y"].dtype.kind == "i"
    assert (drawn != np.round(drawn)).all()


def test_more_rows_and_the_next_prior() -> None:
    layer = bll.LastLayer(L.Gaussian(0.1), P.Normal(1.0))
    means, again = [], []
    for by in (0.0, OFFSET):
        first = bll.fit(layer, (X[:100], Y[:100] + by), inference=bll.Exact())
        more = first.update((X[100:200], Y[100:200] + by))
        after = bll.LastLayer(L.Gaussian(0.1), first.as_prior())
        following = bll.fit(after, (X[100:200], Y[100:200] + by), inference=bll.Exact())
        means.append(more.predict(X[TEST]).mean)
        again.append(following.predict(X[TEST]).mean)
    same(means[1], means[0], OFFSET)
    same(again[1], again[0], OFFSET)
    same(again[0], means[0])


def test_a_head_on_targets_and_features_far_from_zero() -> None:
    """The centre of the prior gives the outputs of the head in the units of the frame."""
    head = nn.Linear(2, 1)
    rows = torch.tensor(X + 1e6, dtype=torch.float64)
    center, scale = rows.mean(0), rows.std(0)
    target = {"target_center": torch.tensor([OFFSET]).double(), "target_scale": torch.tensor([5.0]).double()}
    inside = bll.LastLayer.from_linear(head, L.Gaussian()).in_frame(
        Frame(center.float(), scale.float(), **target)
    )
    assert inside.bias_loc is not None and inside.bias_loc.dtype == torch.float32
    wide = nn.Linear(2, 1).double()
    wide.load_state_dict(head.state_dict())
    with torch.no_grad():
        expected = (wide(center.float().double()) - OFFSET) / 5.0
    np.testing.assert_allclose(inside.bias_loc.double(), expected, rtol=1e-7)


def test_joint_training() -> None:
    means = []
    for by in (0.0, OFFSET):
        net = nn.Linear(2, 3)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[1.0, 0.2], [0.0, 1.0], [-0.5, 0.5]]))
        inference = bll.SVI(backbone_learning_rate=1e-3, num_epochs=3, batch_size=50, final_stage=False)
        fit = bll.fit(bll.LastLayer(L.Gaussian()), (X[TRAIN], Y[TRAIN] + by), net, inference)
        means.append(fit.predict(X[TEST]).mean)
    same(means[1], means[0], OFFSET)


def test_saved_fits_keep_the_digits(tmp_path: Any) -> None:
    fit = fits()[1]
    fit.save(tmp_path)
    assert torch.equal(bll.load(tmp_path).predict(X[TEST]).mean, fit.predict(X[TEST]).mean)


def test_stacked_fits() -> None:
    layers = {
        "a": bll.LastLayer(L.Gaussian(), P.Normal(1.0)),
        "b": bll.LastLayer(L.Gaussian(), P.Normal(0.1)),
    }
    found = []
    for by in (0.0, OFFSET):
        data = X[TRAIN], Y[TRAIN] + by
        made = {name: bll.fit(layer, data, inference=bll.Exact()) for name, layer in layers.items()}
        prediction = bll.compare(made, data).stack.predict(X[TEST])
        found.append((prediction.mean, prediction.quantile(0.9), prediction.scale))
    same(found[1][0], found[0][0], OFFSET)
    same(found[1][1], found[0][1], OFFSET)
    same(found[1][2], found[0][2])


@pytest.mark.parametrize("kind", ["int64", "float64"])
def test_features_far_from_zero(kind: str) -> None:
    """Whole seconds: as integers and as float64 they are the same features, centred before anything is rounded."""
    seconds = (1e6 * X.astype(float)).round()
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (seconds[TRAIN], Y[TRAIN]), inference=bll.Exact())
    moved = (seconds + OFFSET).astype(kind)
    other = bll.fit(bll.LastLayer(L.Gaussian()), (moved[TRAIN], Y[TRAIN]), inference=bll.Exact())
    same(other.predict(moved[TEST]).mean, fit.predict(seconds[TEST]).mean)


def test_features_of_a_backbone_in_float64(tmp_path: Any) -> None:
    net = nn.Linear(2, 3).double()
    rows = X.astype(float)
    means = []
    for by, store in ((0.0, None), (1e6, None), (1e6, tmp_path)):
        data = rows[TRAIN] + by, Y[TRAIN]
        fit = bll.fit(bll.LastLayer(L.Gaussian()), data, net, bll.Exact(), store=store)
        means.append(fit.predict(rows[TEST] + by).mean)
    same(means[1], means[0])
    assert torch.equal(means[2], means[1])


def test_rows_are_centred_in_the_wider_type() -> None:
    wide = torch.full((3, 2), OFFSET, dtype=torch.float64) + torch.arange(3, dtype=torch.float64)[:, None]
    narrow = Frame.identity(2, 1, torch.empty(0))
    exact = Frame.identity(2, 1, torch.empty(0, dtype=torch.float64))
    center = torch.full((2,), OFFSET, dtype=torch.float64)
    frame = Frame(center, exact.scale, center[:1], exact.target_scale)
    expected = torch.arange(3.0, dtype=torch.float64)
    assert torch.equal(frame.standardized(wide), expected[:, None].expand(3, 2))
    assert torch.equal(frame.design(wide, reuse_memory=True)[:, 0], expected)
    # the fit computes in float32, its targets have more digits
    frame = Frame(narrow.center, narrow.scale, center[:1], exact.target_scale)
    found = frame.targets(wide[:, :1])
    assert found.dtype == torch.float32
    assert torch.equal(found[:, 0], expected.float())
    # a centre in float32, and rows of more digits
    frame = Frame(center.float(), narrow.scale, narrow.target_center, narrow.target_scale)
    assert torch.equal(frame.standardized(wide)[:, 0].double().diff(), torch.ones(2, dtype=torch.float64))


def test_ordinary_float32_stays_float32() -> None:
    fit = bll.fit(bll.LastLayer(L.Gaussian()), (X, Y.astype("float32")), inference=bll.Exact())
    prediction = fit.predict(X)
    assert {prediction.mean.dtype, prediction.scale.dtype, prediction.quantile(0.5).dtype} == {torch.float32}
    assert {value.dtype for value in fit.posterior.frame.tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("int64", "float64"),
        ("int32", "float64"),
        ("int16", "float32"),
        ("uint8", "float32"),
        ("bool", "float32"),
        ("float16", "float16"),
    ],
)
def test_whole_numbers_become_floats_that_hold_them(given: str, expected: str) -> None:
    assert as_floats(torch.ones(2, dtype=getattr(torch, given))).dtype == getattr(torch, expected)


def test_draws_of_the_mean() -> None:
    near, far = (fit.draw(X[TEST], 20) for fit in fits())
    same(far, near, OFFSET)
