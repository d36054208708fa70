"""A last layer that starts at an existing head: what it means, in every frame and inference."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import stats
from torch import Tensor, nn

import bll_pyro as bll
from bll_pyro.declaration import from_plain, to_plain
from bll_pyro.features.store import Features
from bll_pyro.frame import Frame
from bll_pyro.guides import Start
from bll_pyro.inference.standardization import make_frame
from bll_pyro.inference.svi.objective import Objective
from bll_pyro.model import Model
from bll_pyro.scope import generator, isolated

plain_fit = partial(bll.fit, calibration=None)  # predictions of the posterior itself


NUM_FEATURES = 4


def linear(num_outputs: int, bias: bool = True) -> nn.Linear:
    head = nn.Linear(NUM_FEATURES, num_outputs, bias=bias)
    random = generator(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return head


def raw_features(num_rows: int) -> Tensor:
    """Neither centred nor of one scale, and correlated."""
    random = generator(1)
    mixing = torch.randn(NUM_FEATURES, NUM_FEATURES, generator=random)
    return 3 + 2 * torch.randn(num_rows, NUM_FEATURES, generator=random) @ mixing


def values(head: nn.Linear, features: Tensor, noise: float = 0.5) -> Tensor:
    with torch.no_grad():
        outputs = head(features)
    return outputs + noise * torch.randn(outputs.shape, generator=generator(2))


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("rotates", [True, False])
def test_centre_of_the_prior_is_the_function_of_the_head(standardize: bool, rotates: bool) -> None:
    head, features = linear(2), raw_features(50)
    targets = values(head, features)
    layer = bll.LastLayer.from_linear(head, bll.likelihoods.Gaussian(0.5), standardize=standardize)
    frame = make_frame(layer, Features.from_tensors(features, targets), targets, rotates, torch.float32)
    inside = layer.in_frame(frame).rotated(frame.rotation)
    outputs = frame.design(features) @ inside.center(torch.zeros(2, NUM_FEATURES + 1)).mT
    expected = head(features).detach()
    torch.testing.assert_close(
        outputs * frame.target_scale + frame.target_center, expected, rtol=1e-4, atol=1e-3
    )


def test_head_is_copied() -> None:
    head = linear(3)
    layer = bll.LastLayer.from_linear(head, bll.likelihoods.Categorical(3))
    before = layer.bias_loc.clone()
    with torch.no_grad():
        head.bias.add_(1.0)
    torch.testing.assert_close(layer.bias_loc, before)
    assert layer.prior.scale is None
    assert bll.LastLayer.from_linear(head, bll.likelihoods.Categorical(3), 0.3).prior.scale == 0.3


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.filterwarnings("ignore:the ELBO was still rising:bll_pyro.FitWarning")
@pytest.mark.thinned(3)
def test_without_freedom_the_head_comes_back(standardize: bool, bias: bool) -> None:
    """Labels at random, but a prior too tight to move: the probabilities are the head's."""
    if standardize and not bias:
        return  # refused, see below
    head, features = linear(3, bias), raw_features(30)
    labels = torch.randint(0, 3, (30,), generator=generator(3))
    layer = bll.LastLayer.from_linear(
        head, bll.likelihoods.Categorical(3), 3e-3, standardize=standardize, bias_scale=3e-3
    )
    fit = plain_fit(layer, (features, labels), inference=bll.SVI(num_epochs=300))
    expected = head(features).softmax(-1).detach()
    torch.testing.assert_close(fit.predict(features).probs, expected, rtol=0, atol=0.02)


def closed_form(
    layer: bll.LastLayer, frame: Frame, features: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Mean ``[K, P]`` and covariance ``[P, P]`` of weight and bias in a frame without rotation, and log evidence."""
    inside = layer.in_frame(frame)
    center = inside.center(torch.zeros(targets.shape[1], NUM_FEATURES + 1)).double()
    design = torch.cat([frame.standardized(features), torch.ones(len(features), 1)], 1).double()
    noise = float(inside.likelihood.known_noise.flatten()[0])
    scales = torch.tensor([layer.prior.scale] * NUM_FEATURES + [layer.bias_scale], dtype=torch.float64)
    covariance = torch.linalg.inv(design.mT @ design / noise**2 + torch.diag(scales**-2))
    residual = ((targets - frame.target_center) / frame.target_scale).double() - design @ center.mT
    loc = center + (covariance @ design.mT @ residual / noise**2).mT
    marginal = design @ torch.diag(scales**2) @ design.mT + noise**2 * torch.eye(len(design))
    density = stats.multivariate_normal(torch.zeros(len(design)), marginal)
    log_evidence = sum(float(density.logpdf(residual[:, k])) for k in range(targets.shape[1]))
    return loc, covariance, log_evidence - len(features) * float(frame.target_scale.double().log().sum())


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize(
    "inference",
    [bll.SVI(guide=bll.guides.FullRank()), bll.Laplace(curvature=bll.curvatures.Full())],
    ids=["SVI", "Laplace"],
)
@pytest.mark.thinned(3)
def test_posterior_is_the_exact_one(inference: bll.SVI | bll.Laplace, standardize: bool) -> None:
    """A narrow prior around the head, bias included, and few rows: the centre decides the posterior."""
    head, features = linear(1), raw_features(8)
    targets = values(head, features) + 0.8
    layer = bll.LastLayer.from_linear(
        head, bll.likelihoods.Gaussian(0.5), 0.05, bias_scale=0.1, standardize=standardize
    )
    fit = plain_fit(layer, (features, targets), inference=inference)
    loc, covariance, log_evidence = closed_form(layer, fit.posterior.frame, features, targets)
    if isinstance(inference, bll.SVI):
        assert log_evidence - fit.elbo == pytest.approx(0, abs=0.02)
    else:
        assert fit.log_evidence == pytest.approx(log_evidence, abs=1e-3)
    draws = fit.posterior.sample(20_000, seed=4)
    found = torch.cat([draws["weight"][0, :, 0], draws["bias"][0]], -1).double()
    scale = covariance.diagonal().sqrt()
    # the standard error of a mean of 20,000 draws is 0.007 standard deviations, of a scale 0.5%
    assert float(((found.mean(0) - loc[0]) / scale).abs().max()) < 0.05
    assert float((found.std(0) / scale - 1).abs().max()) < 0.05


@pytest.mark.nuts
def test_nuts_agrees() -> None:
    head, features = linear(1), raw_features(8)
    targets = values(head, features) + 0.8
    layer = bll.LastLayer.from_linear(head, bll.likelihoods.Gaussian(0.5), 0.05, bias_scale=0.1)
    fit = plain_fit(
        layer, (features, targets), inference=bll.NUTS(num_warmup=200, num_samples=400, num_chains=2)
    )
    loc, covariance, _ = closed_form(layer, fit.posterior.frame, features, targets)
    draws = fit.posterior.sample()
    found = torch.cat([draws["weight"][0, :, 0], draws["bias"][0]], -1).double()
    error = (found.mean(0) - loc[0]) / covariance.diagonal().sqrt()
    assert float(error.abs().max()) < 0.3  # 800 draws, hardly correlated: a standard error near 0.04


@pytest.mark.parametrize("guide", [bll.guides.Diagonal(), bll.guides.FullRank(), bll.guides.MAP()], ids=repr)
def test_output_space_elbo_is_pyros(guide: bll.guides.Guide) -> None:
    features = raw_features(20)
    labels = torch.randint(0, 3, (20,), generator=generator(3))
    layer = bll.LastLayer.from_linear(
        linear(3), bll.likelihoods.Categorical(3), 0.5, bias_scale=0.7, standardize=False
    )
    layer = layer.in_frame(Frame.identity(NUM_FEATURES, 1, torch.empty(0)))
    with isolated(0):
        model = Model(layer, NUM_FEATURES)
        scale = torch.full((3, NUM_FEATURES + 1), 0.1)
        start = Start(torch.zeros(0), layer.center(scale) + 0.3, scale, NUM_FEATURES)
        objective = Objective(layer, model, guide.build(model, start), 20)
        design, random = torch.cat([features, torch.ones(20, 1)], 1), generator(5)
        pyros = Trace_ELBO(num_particles=100, vectorize_particles=True)(model, objective.guide)
        with torch.no_grad():
            ours = torch.stack([objective(design, labels, random) for _ in range(400)])
            theirs = torch.stack([-pyros(features, labels, 20) for _ in range(40)])
    error = (float(ours.var()) / 400 + float(theirs.var()) / 40) ** 0.5
    assert abs(float(ours.mean() - theirs.mean())) < 5 * error + 1e-3


def test_tree_knows_the_centre() -> None:
    head, features = linear(3), raw_features(40)
    labels = head(features).argmax(-1)
    layer = bll.LastLayer.from_linear(head, bll.likelihoods.Categorical(3), 0.5, bias_scale=0.7)
    fit = plain_fit(layer, (features, labels), inference=bll.SVI(num_epochs=20))
    tree = fit.to_datatree(features, labels)
    center = fit.posterior.layer.bias_loc.double().numpy()
    expected = stats.norm(center, 0.7).logpdf(tree.posterior["bias"].values).sum(-1)
    np.testing.assert_allclose(tree.log_prior["bias"].values, expected, rtol=1e-5)
    drawn = tree.prior["bias"].values.reshape(-1, 3)
    np.testing.assert_allclose(drawn.mean(0), center, atol=5 * 0.7 / len(drawn) ** 0.5)


@pytest.mark.filterwarnings("ignore:no rows were kept:RuntimeWarning")
def test_joint_training_starts_at_the_head() -> None:
    """With rates too small to move, network and head come back as they went in."""
    torch_state = torch.get_rng_state()
    backbone = nn.Sequential(nn.Linear(5, NUM_FEATURES), nn.Tanh())
    head = linear(3)
    torch.set_rng_state(torch_state)
    inputs = torch.randn(40, 5, generator=generator(6))
    labels = torch.randint(0, 3, (40,), generator=generator(3))
    layer = bll.LastLayer.from_linear(head, bll.likelihoods.Categorical(3), standardize=False)
    inference = bll.SVI(
        guide=bll.guides.MAP(),
        learning_rate=1e-7,
        backbone_learning_rate=1e-7,
        num_epochs=1,
        final_stage=False,
    )
    fit = plain_fit(layer, (inputs, labels), backbone, inference)
    expected = head(backbone(inputs)).softmax(-1).detach()
    torch.testing.assert_close(fit.predict(inputs).probs, expected, rtol=0, atol=1e-4)


def test_written_and_read_back() -> None:
    layer = bll.LastLayer.from_linear(linear(3), bll.likelihoods.Categorical(3), 0.2)
    tensors: dict[str, Tensor] = {}
    plain = json.loads(json.dumps(to_plain(layer, tensors)))
    assert from_plain(plain, tensors) == layer
    assert layer != bll.LastLayer.from_linear(linear(3), bll.likelihoods.Categorical(3), 0.3)


@pytest.mark.slow
def test_few_rows_on_real_features(data_dir: Path) -> None:
    """Fashion-MNIST features, the network's own head, 100 rows: near the head, and far better than a fresh layer."""
    stored = np.load(data_dir / "fashion_features" / "cnn128.npz", allow_pickle=False)
    head = nn.Linear(128, 10)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(stored["head_weight"]))
        head.bias.copy_(torch.from_numpy(stored["head_bias"]))
    features, labels = stored["H_train"][:100].astype(np.float32), stored["y_train"][:100].astype(np.int64)
    test, truth = torch.from_numpy(stored["H_test"].astype(np.float32)), stored["y_test"].astype(np.int64)
    plain = float(nn.functional.cross_entropy(head(test).detach(), torch.from_numpy(truth)))
    likelihood = bll.likelihoods.Categorical(10)
    from_head = plain_fit(bll.LastLayer.from_linear(head, likelihood, bias_scale=1.0), (features, labels))
    fresh = plain_fit(bll.LastLayer(likelihood=likelihood), (features, labels))
    nll = {
        name: -float(f.predict(test).log_prob(truth).mean())
        for name, f in (("head", from_head), ("fresh", fresh))
    }
    assert nll["head"] < plain + 0.02
    assert nll["head"] < nll["fresh"] - 0.1


class TestBadInput:
    def test_not_a_linear_layer(self) -> None:
        with pytest.raises(TypeError, match=r"expected a torch.nn.Linear, got Conv2d"):
            bll.LastLayer.from_linear(nn.Conv2d(3, 3, 1), bll.likelihoods.Categorical(3))  # type: ignore[arg-type]

    test_not_a_linear_layer = pytest.mark.unchecked(test_not_a_linear_layer)

    def test_number_of_classes(self) -> None:
        with pytest.raises(ValueError, match=r"head with 5 outputs.*got 3"):
            bll.LastLayer.from_linear(linear(3), bll.likelihoods.Categorical(5))

    def test_width(self) -> None:
        layer = bll.LastLayer.from_linear(linear(3), bll.likelihoods.Categorical(3), 0.5)
        with pytest.raises(ValueError, match=r"broadcasts to the weight.s \[3, 7\].*got \[3, 4\]"):
            plain_fit(layer, (torch.randn(20, 7, generator=generator(0)), torch.zeros(20).long()))

    def test_a_head_that_would_broadcast(self) -> None:
        """One feature or one output broadcasts as a prior's centre does, but is no head for these rows."""
        features = torch.randn(20, 7, generator=generator(0))
        layer = bll.LastLayer.from_linear(nn.Linear(1, 3), bll.likelihoods.Categorical(3), 0.5)
        with pytest.raises(ValueError, match="expected the 7 features of the data, got a head for 1"):
            plain_fit(layer, (features, torch.zeros(20).long()))
        layer = bll.LastLayer.from_linear(nn.Linear(7, 1), bll.likelihoods.Gaussian(), 0.5)
        with pytest.raises(ValueError, match="one output for each of the 2 standardised targets, got 1"):
            plain_fit(layer, (features, features[:, :2]))

    def test_standardised_without_bias(self) -> None:
        with pytest.raises(ValueError, match="standardize=False"):
            bll.LastLayer.from_linear(linear(3, bias=False), bll.likelihoods.Categorical(3), standardize=True)

    def test_no_centre(self) -> None:
        with pytest.raises(ValueError, match="prior with a centre"):
            bll.LastLayer(likelihood=bll.likelihoods.Categorical(3), raw_center=True)

    def test_bias_of_a_layer_without_one(self) -> None:
        with pytest.raises(ValueError, match="bias=True"):
            bll.LastLayer(likelihood=bll.likelihoods.Categorical(3), bias=False, bias_loc=torch.zeros(3))

    def test_infinite_bias(self) -> None:
        with pytest.raises(ValueError, match="bias_loc"):
            bll.LastLayer(likelihood=bll.likelihoods.Categorical(3), bias_loc=torch.full((3,), torch.inf))

    def test_joint_training_of_standardised_features(self) -> None:
        layer = bll.LastLayer.from_linear(linear(3), bll.likelihoods.Categorical(3))
        data = (torch.randn(20, 5, generator=generator(0)), torch.zeros(20).long())
        with pytest.raises(ValueError, match="standardize=False"):
            plain_fit(layer, data, nn.Linear(5, NUM_FEATURES), bll.SVI(backbone_learning_rate=1e-3))

    def test_exact(self) -> None:
        layer = bll.LastLayer.from_linear(linear(1), bll.likelihoods.Gaussian(0.5), 0.1)
        with pytest.raises(ValueError, match=r"Exact: expected a bias centred at 0.*SVI"):
            plain_fit(layer, (raw_features(10), torch.zeros(10)), inference=bll.Exact())
