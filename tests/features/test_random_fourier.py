"""Random Fourier features: their kernel, a fit with them against a Gaussian process, files, units, and wrong input."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import bll_pyro as bll
from bll_pyro.features.length_scales import Kernel
from bll_pyro.features.random_fourier import RandomFeatures

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(150, 3)) * [1.0, 1e-5, 1e4] + [5.0, 0.0, 1e6]
Z = (X - X.mean(0)) / X.std(0)
Y = np.sin(2 * Z[:, 0]) + 0.5 * Z[:, 1] + 0.1 * RANDOM.normal(size=150)
LAYER = bll.LastLayer(bll.likelihoods.Gaussian())


def fitted(x=X, y=Y, **options):
    return bll.fit(LAYER, (x, y), bll.random_features(**options), bll.Exact())


@pytest.fixture(scope="module")
def fit():
    return fitted()


def test_products_of_features_are_the_kernel():
    rows, lengths = torch.from_numpy(RANDOM.normal(size=(30, 3))), torch.tensor([0.5, 1.0, 4.0]).double()
    exact = ConstantKernel(4.0) * RBF(lengths.numpy()) + ConstantKernel(0.09) * DotProduct(1e-9)
    expected, errors = exact(rows.numpy()), []
    for number in (64, 1024):
        kernel = Kernel(0.3, 2.0, lengths)
        made = RandomFeatures(number).features(kernel, torch.zeros(3), torch.ones(3))
        features = made(rows)
        assert features.shape == (30, number + 3)
        errors.append(np.abs((features @ features.mT).numpy() - expected).max())
    # the error of independent frequencies is about 4 / sqrt(M); that of a Sobol sequence is smaller
    assert errors[1] < 4 * 2 / 512**0.5
    assert errors[1] < errors[0] / 2


def test_a_fit_is_a_gaussian_process(fit):
    """The exact process of the kernel that was found, with the prior scale and the noise of the fit."""
    model = fit.backbone.model
    lengths, amplitude = model.lengths.numpy(), float(model.amplitude) * len(model.frequencies) ** 0.5
    scale = float(fit.posterior.learned["tau"]) / float(fit.posterior.frame.scale[0])
    kernel = ConstantKernel((amplitude * scale) ** 2) * RBF(lengths) + ConstantKernel(
        (float(model.linear) * scale) ** 2
    ) * DotProduct(1e-9)
    noise = float(fit.posterior.sample(200, seed=0)["noise_scale"].mean())
    standard = (Y - Y.mean()) / Y.std()
    process = GaussianProcessRegressor(
        kernel + ConstantKernel(100.0) + WhiteKernel(noise**2), optimizer=None
    ).fit(Z, standard)
    new = RANDOM.normal(size=(50, 3))
    prediction = fit.predict(new * X.std(0) + X.mean(0))
    mean, spread = process.predict(new, return_std=True)
    np.testing.assert_allclose((prediction.mean.numpy() - Y.mean()) / Y.std(), mean, atol=0.15)
    np.testing.assert_allclose(prediction.scale.numpy() / Y.std(), spread, rtol=0.2)


def test_uncertainty_grows_far_from_the_rows(fit):
    near = fit.predict(X).epistemic.mean()
    ways = np.sign(RANDOM.normal(size=(50, 3)))
    far = fit.predict(X.mean(0) + X.std(0) * ways * 30).epistemic
    assert bool((far > 0.25 * Y.var()).all()) and far.mean() > 100 * near


def test_units_never_matter(fit):
    other = fitted(X * [1e6, 1e7, 1e-4] + [0.0, 3.0, 1e3])
    new = RANDOM.normal(size=(20, 3)) * X.std(0) + X.mean(0)
    moved = new * [1e6, 1e7, 1e-4] + [0.0, 3.0, 1e3]
    np.testing.assert_allclose(fit.predict(new).mean, other.predict(moved).mean, atol=1e-3)


def test_same_seed_same_features_and_another_seed_others(fit):
    state = torch.get_rng_state()
    again, other = fitted(), fitted(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.backbone.model.frequencies, fit.backbone.model.frequencies)
    assert not torch.equal(other.backbone.model.frequencies, fit.backbone.model.frequencies)


def test_a_saved_fit_rebuilds_its_features(fit, tmp_path):
    fit.save(tmp_path / "fit")
    loaded = bll.load(tmp_path / "fit")
    assert torch.equal(loaded.predict(X).mean, fit.predict(X).mean)
    for copied in (copy.deepcopy(fit), pickle.loads(pickle.dumps(fit))):
        assert torch.equal(copied.predict(X).mean, fit.predict(X).mean)
    np.testing.assert_allclose(loaded.backbone.length_scales, fit.backbone.length_scales)
    assert "length scale" in str(fit.trace.notes) and "RandomFourierBackbone" in str(fit)


def test_a_checkpoint_and_a_store_are_found_again(tmp_path):
    declared = bll.random_features(64)
    options = {"checkpoint": tmp_path / "runs", "store": tmp_path / "store"}
    first = bll.fit(LAYER, (X, Y), declared, bll.Exact(), **options)
    second = bll.fit(LAYER, (X, Y), declared, bll.Exact(), **options)
    assert torch.equal(first.predict(X).mean, second.predict(X).mean)
    assert len([path for path in (tmp_path / "store").iterdir() if path.is_dir()]) == 1


def test_rows_of_weight_0_are_not_looked_at():
    weight = np.r_[np.ones(100), np.zeros(50)]
    wild = np.r_[Y[:100], 1e3 * RANDOM.normal(size=50)]
    weighted = bll.fit(LAYER, (X, wild), bll.random_features(64), bll.Exact(), sample_weight=weight)
    alone = fitted(X[:100], Y[:100], num_features=64)
    assert weighted.backbone.length_scales == pytest.approx(alone.backbone.length_scales, rel=0.05)


@pytest.mark.parametrize(
    ("likelihood", "targets"),
    [
        (bll.likelihoods.Bernoulli(), np.c_[Y > 0, Y > 1]),
        (bll.likelihoods.Categorical(3), np.digitize(Y, [-0.5, 0.5])),
        (bll.likelihoods.Ordinal(3), np.digitize(Y, [-0.5, 0.5])),
        (bll.likelihoods.Poisson(), np.exp(Y).round()),
        (bll.likelihoods.StudentT(), np.c_[Y, Y]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_target(likelihood, targets):
    inference = bll.SVI(guide=bll.guides.Diagonal(), num_epochs=2)
    fit = bll.fit(bll.LastLayer(likelihood), (X, targets), bll.random_features(16), inference)
    assert fit.predict(X[:5]).log_prob(targets[:5]).isfinite().all()


def test_odd_tables():
    twice = np.c_[X, X[:, 0], np.ones(150)]
    fit = fitted(twice, Y)
    assert fit.backbone.length_scales[-1] == torch.inf
    assert float(((fit.predict(twice).mean.numpy() - Y) ** 2).mean()) < 0.05
    for x, y in ((X[:2], Y[:2]), (RANDOM.normal(size=(6, 40)), Y[:6]), (X[:5].astype(int), Y[:5])):
        assert fitted(x, y).predict(x).mean.isfinite().all()


def test_a_dataset_is_read_by_number_and_a_stream_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(torch.from_numpy(X), torch.from_numpy(Y), strict=True))

        def __len__(self):
            return len(X)

    whole = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    data = DataLoader(whole, batch_size=32)
    fit = bll.fit(LAYER, data, bll.random_features(16), bll.Exact())
    assert fit.predict(X).mean.isfinite().all()
    with pytest.raises(ValueError, match="expected rows that can be reached by number"):
        bll.fit(LAYER, DataLoader(Stream(), batch_size=32), bll.random_features(16), bll.Exact())


def test_wrong_input_is_named(fit):
    with pytest.raises(ValueError, match=r"expected a table \[N, D\], got inputs \[150, 3, 1\]"):
        fitted(X[..., None])
    with pytest.raises(ValueError, match="random_features: expected rows of 3 columns"):
        fit.predict(X[:, :2])
    with pytest.raises(ValueError, match="expected a backbone with weights to train along"):
        bll.fit(LAYER, (X, Y), bll.random_features(), bll.SVI(backbone_learning_rate=1e-3))
    with pytest.raises(ValueError, match="num_features"):
        bll.random_features(1)
    assert bll.random_features(64) == RandomFeatures(64) and "64" in repr(bll.random_features(64))
