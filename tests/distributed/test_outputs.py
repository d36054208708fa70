"""Layers over many classes beside the definition of the ELBO, the library's layer, and a sum over all classes; in one process."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

import bll_pyro as bll
from bll_pyro.distributed.outputs.layer import BLOCK
from bll_pyro.distributed.outputs.training import ShardTraining
from bll_pyro.ranks import ALONE
from bll_pyro.scope import generator

CLASSES, WIDTH, ROWS = BLOCK + 40, 3, 50  # two blocks


def rows(num_classes: int = CLASSES, num_rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    y = torch.randint(num_classes, (num_rows,), generator=random)
    return torch.randn(num_rows, WIDTH, generator=random) + 4 * (y[:, None] == torch.arange(WIDTH)), y


@pytest.mark.parametrize("is_point", [False, True])
def test_the_gradient_is_that_of_the_elbo(is_point):
    x, y = rows()
    training = ShardTraining(x, y, CLASSES, ALONE, is_point, 0.7, 3.0, 0)
    training.loc += 0.3 * torch.randn(training.loc.shape, generator=generator(4))
    design = training.shards(torch.zeros(0)).design(x[:20])
    states = [random.get_state() for random in training.random]
    with torch.no_grad():
        value = training.gradient(design, y[:20])
    for random, state in zip(training.random, states):
        random.set_state(state)
    noise = torch.cat(
        [torch.randn(20, b.stop - b.start, generator=random) for b, random in training.blocks()], 1
    )
    loc = training.loc.detach().double().requires_grad_()
    raw = torch.zeros_like(loc) if is_point else training.raw.detach().double()
    raw.requires_grad_()
    prior = Normal(0.0, torch.tensor([0.7] * WIDTH + [3.0], dtype=torch.float64))
    mean, wide = design.double() @ loc.mT, design.double()
    scale = functional.softplus(raw)
    deviation = 0 if is_point else noise * (wide.square() @ scale.square().mT).sqrt()
    fit = sum((mean + sign * deviation).log_softmax(1)[range(20), y[:20]].sum() for sign in (1, -1)) / 2
    prior_term = prior.log_prob(loc).sum() if is_point else -kl_divergence(Normal(loc, scale), prior).sum()
    elbo = fit * ROWS / 20 + prior_term
    (-elbo / ROWS).backward()
    assert float(value) == pytest.approx(float(elbo.detach()), rel=1e-5)
    for got, expected in [(training.loc, loc)] + ([] if is_point else [(training.raw, raw)]):
        assert torch.allclose(got.grad.double(), expected.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_a_point_is_that_of_the_librarys_layer():
    x, y = rows(5, 300)
    layer = bll.LastLayer(bll.likelihoods.Categorical(5), bll.priors.Normal(1.0), standardize="common")
    expected = bll.fit(layer, (x, y), inference=bll.Laplace(bll.curvatures.Diagonal()), calibration=None)
    found = bll.distributed.fit_outputs(
        (x, y), 5, guide=bll.guides.MAP(), prior_scale=1.0, num_epochs=1500, batch_size=300
    )
    mode = expected.posterior.latents.weights.loc
    if expected.posterior.frame.rotation is not None:
        mode = torch.cat([mode[:, :-1] @ expected.posterior.frame.rotation.mT, mode[:, -1:]], 1)
    assert torch.allclose(found.loc - found.loc.mean(0), mode - mode.mean(0), atol=0.02)


@pytest.mark.slow
def test_the_spread_is_that_of_the_librarys_layer():
    x, y = rows(5, 300)
    layer = bll.LastLayer(bll.likelihoods.Categorical(5), bll.priors.Normal(1.0), standardize="common")
    svi = bll.SVI(bll.guides.Diagonal(principal_axes=False))
    expected = bll.fit(layer, (x, y), inference=svi, calibration=None)
    found = bll.distributed.fit_outputs((x, y), 5, prior_scale=1.0, num_epochs=1500, batch_size=300)
    got, want = found.predict(x, y, num_draws=512), expected.predict(x)
    assert torch.allclose(got.log_prob, want.log_prob(y), atol=0.05)
    assert float(got.epistemic.mean()) == pytest.approx(float(want.epistemic.mean()), rel=0.1)
    assert float(got.total.mean()) == pytest.approx(float(want.total.mean()), rel=0.02)
    scale = expected.posterior.latents.weights.marginal_scale()
    assert torch.allclose(found.scale, scale, rtol=0.1)


def test_a_learned_scale_is_that_of_the_weights():
    found = bll.distributed.fit_outputs(rows(5, 300), 5, num_epochs=100)
    second_moment = (found.loc.square() + found.scale.square())[:, :-1].mean()
    assert found.prior_scale == pytest.approx(float(second_moment.sqrt()), rel=1e-3)


def test_uncertainty_is_that_of_all_classes():
    x, y = rows()
    layer = bll.distributed.fit_outputs((x, y), CLASSES, num_epochs=1, prior_scale=1.0)
    found = layer.predict(x[:7], y[:7], top=3, num_draws=4, seed=2)
    noise = []
    for block in range(2):
        drawn = torch.randn(
            2, 1, min(BLOCK, CLASSES - block * BLOCK), generator=generator(3 * 1_000_003 + block)
        )
        noise.append(torch.cat([drawn, -drawn]))
    design = layer.design(x[:7])
    spread = (design.square() @ layer.scale.square().mT).sqrt()
    probs = (design @ layer.loc.mT + torch.cat(noise, -1) * spread).double().softmax(-1)
    mean = probs.mean(0)
    best = mean.topk(3)
    entropy = torch.special.entr(probs).sum(-1).mean(0)
    assert torch.equal(found.label, best.indices)
    for got, expected in [
        (found.probs, best.values),
        (found.total, torch.special.entr(mean).sum(-1)),
        (found.aleatoric, entropy),
        (found.log_prob, mean[range(7), y[:7]].log()),
    ]:
        assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-5)
    assert bool((found.epistemic >= 0).all())


def test_saved_and_loaded(tmp_path):
    x, y = rows()
    layer = bll.distributed.fit_outputs((x, y), CLASSES, num_epochs=1)
    layer.save(tmp_path / "many")
    again = bll.distributed.OutputShards.load(tmp_path / "many")
    assert torch.equal(again.loc, layer.loc) and torch.equal(again.scale, layer.scale)
    assert (again.prior_scale, again.feature_scale) == (layer.prior_scale, layer.feature_scale)
    (file,) = (tmp_path / "many").glob("classes-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="other contents"):
        bll.distributed.OutputShards.load(tmp_path / "many")
    with pytest.raises(ValueError, match=r"outputs\.json"):
        bll.distributed.OutputShards.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"guide": bll.guides.FullRank()}, "Diagonal"),
        ({"guide": bll.guides.MAP()}, "prior_scale"),
        ({"prior_scale": -1.0}, "prior_scale"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"data": (torch.zeros(4, 2, 2), torch.arange(4))}, r"features \[N, D\]"),
        ({"data": (torch.zeros(4, 2), torch.tensor([0, 1, 2, CLASSES]))}, "class"),
    ],
)
def test_what_is_refused(options, said):
    options = {"data": rows(), "num_classes": CLASSES, **options}
    with pytest.raises((TypeError, ValueError), match=said):
        bll.distributed.fit_outputs(options.pop("data"), options.pop("num_classes"), **options)
