"""Several threads and processes at once: what they compute, save and read is what they would one after the other."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
import world
from torch import Tensor, nn

import bll_pyro as bll
from bll_pyro.inference.svi import objective
from bll_pyro.scope import isolated

NUM_THREADS = 8
RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(80, 4, generator=RANDOM)
LABELS = (X[:, 0] + 0.5 * torch.randn(80, generator=RANDOM) > 0).long()
VALUES = X[:, 1] + 0.3 * torch.randn(80, generator=RANDOM)
CLASSES = bll.LastLayer(bll.likelihoods.Categorical(num_classes=2))
NUMBERS = bll.LastLayer(bll.likelihoods.Gaussian())
SHORT = bll.SVI(num_epochs=4)


def small_network() -> nn.Module:
    with isolated(0):
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).train()


def at_once(call: Callable[[int], Any], numbers: range) -> list[Any]:
    """Results of a call with each number, from several threads; the world stays as it was."""
    with world.watched("threads"), ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(call, numbers))


def test_predictions_through_a_network_with_dropout() -> None:
    network = small_network()
    fit = bll.fit(CLASSES, (X, LABELS), backbone=network, inference=SHORT)
    expected: Any = fit.predict(X)
    before = copy.deepcopy(network.state_dict())
    for found in at_once(lambda _: fit.predict(X), range(40)):
        assert torch.equal(found.probs, expected.probs)
    assert all(part.training for part in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


FITS: dict[str, Callable[[int], bll.Fit]] = {
    "svi": lambda seed: bll.fit(CLASSES, (X, LABELS), inference=SHORT, seed=seed),
    "pyro's own elbo": lambda seed: bll.fit(
        CLASSES, (X, LABELS), inference=bll.SVI(num_epochs=4, output_space=False), seed=seed
    ),
    "flow": lambda seed: bll.fit(
        CLASSES, (X, LABELS), inference=bll.SVI(bll.guides.Flow(), num_epochs=4), seed=seed
    ),
    "joint": lambda seed: bll.fit(
        CLASSES, (X, LABELS), small_network(), bll.SVI(num_epochs=2, backbone_learning_rate=1e-3), seed=seed
    ),
    "exact": lambda seed: bll.fit(NUMBERS, (X, VALUES + seed), inference=bll.Exact(), seed=seed),
    "laplace": lambda seed: bll.fit(CLASSES, (X[seed:], LABELS[seed:]), inference=bll.Laplace(), seed=seed),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "flow" else []) for kind in FITS]
)
def test_fits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "NUM_GUIDE_DRAWS", 20)  # a flow is drawn from that often, one call each

    def draws(seed: int) -> Tensor:
        return FITS[kind](seed).posterior.sample(4, seed=1)["weight"]

    expected = [draws(seed) for seed in range(NUM_THREADS)]
    assert not torch.equal(expected[0], expected[1])
    for one, other in zip(expected, at_once(draws, range(NUM_THREADS)), strict=True):
        torch.testing.assert_close(one, other)


def test_everything_at_once() -> None:
    """Unlike calls beside each other: each has the result that it has alone."""
    fit = bll.calibrate(bll.fit(CLASSES, (X, LABELS), inference=SHORT), X, LABELS)
    values = bll.fit(NUMBERS, (X, VALUES), inference=bll.Exact())
    prediction: Any = values.predict(X)
    calls: list[Callable[[], Any]] = [
        lambda: fit.predict(X).total,
        lambda: prediction.crps(VALUES),
        lambda: torch.stack(prediction.interval(0.9)),
        lambda: prediction.sample(20, seed=2),
        lambda: torch.from_numpy(
            fit.to_datatree(X, LABELS, num_draws=20)["posterior_predictive"]["y"].values
        ),
        # with a dtype: torch's default is one for the process, and that of whatever fit or tree is at work (decision 10)
        lambda: torch.tensor(float(bll.loo(fit, (X, LABELS)).elpd), dtype=torch.float64),
        lambda: bll.fit(CLASSES, (X, LABELS), inference=SHORT, seed=3).predict(X).total,
        lambda: values.update((X, VALUES)).posterior.sample(5)["weight"],
        lambda: bll.extract(small_network(), X).tensor(),
        lambda: torch.from_numpy(np.array(bll.diagnose(fit, (X, LABELS)).to_pandas()["value"], dtype=float)),
    ]
    expected = [call() for call in calls]
    found = at_once(lambda number: calls[number % len(calls)](), range(3 * len(calls)))
    for number, value in enumerate(found):
        torch.testing.assert_close(value, expected[number % len(calls)], equal_nan=True)


def work(seed: int, folder: str) -> Tensor:
    """One process: extract to a shared store, fit, save to a shared folder, read what is there."""
    torch.set_num_threads(1)
    network = small_network()
    features = bll.extract(network, X, store=Path(folder) / "features").tensor()
    fit = bll.fit(CLASSES, (features, LABELS), inference=SHORT, seed=seed)
    fit.save(Path(folder) / "fit")
    read = bll.load(Path(folder) / "fit")
    assert read.num_rows == len(X)
    return fit.posterior.sample(4, seed=1)["weight"]


@pytest.mark.slow
def test_processes(tmp_path: Path) -> None:
    expected = [work(seed, str(tmp_path / "alone")) for seed in range(4)]
    with processes.pool(4) as pool:
        found = list(pool.map(work, range(4), [str(tmp_path / "together")] * 4))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)
    left = sorted(path.name.partition("-")[0] for path in (tmp_path / "together" / "fit").iterdir())
    assert [name for name in left if not name.startswith(".")] == ["manifest.json", "posterior"]
