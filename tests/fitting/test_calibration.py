"""Rows that a joint fit keeps: which, from whom, what is found on them, and what is said of it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

import bll_pyro as bll
from bll_pyro.fitting.calibration import of_few_rows
from bll_pyro.fitting.stratified import by_target, one_of_each_bin
from bll_pyro.prediction import NoiseFactor, PredictiveTemperature
from bll_pyro.prediction.held_out import found_on
from bll_pyro.scope import generator

N = 200
RANDOM = generator(0)
# the first column is the number of the row, which the network records and leaves out of its features
X = torch.cat([torch.arange(N)[:, None].float(), torch.randn(N, 3, generator=RANDOM)], 1)
VALUES = X[:, 1] + 0.5 * torch.randn(N, generator=RANDOM)
LABELS = torch.bucketize(VALUES, torch.tensor([-1.0, 0.5]))
REAL = bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.Normal(1.0))
CLASSES = bll.LastLayer(bll.likelihoods.Categorical(3), bll.priors.Normal(1.0))
JOINT = bll.SVI(backbone_learning_rate=1e-2, num_epochs=3, final_stage=False)
TWO_STAGES = replace(JOINT, final_stage=True)


class Recording(nn.Module):
    """A backbone that writes down which rows it was trained on; copies write into the same list."""

    def __init__(self, seen: list[Tensor] | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 4)
        self.seen = [] if seen is None else seen

    def __deepcopy__(self, memo: Any) -> "Recording":
        made = Recording(self.seen)
        made.load_state_dict(self.state_dict())
        return made

    def forward(self, rows: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.seen.append(rows[:, 0].long())
        return torch.tanh(self.layer(rows[:, 1:]))

    @property
    def trained_on(self) -> set[int]:
        return set(torch.cat(self.seen).tolist())


class Rows(Dataset[Any]):
    """Items by number."""

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return X[number], self.targets[number]


class Stream(IterableDataset[Any]):
    def __len__(self) -> int:
        return N

    def __iter__(self) -> Any:
        return iter(zip(X, VALUES))


FORMS = {
    "pair": lambda: (X, VALUES),
    "arrays": lambda: (X.numpy(), VALUES.numpy()),
    "tensors as a dataset": lambda: TensorDataset(X, VALUES),
    "dataset": lambda: Rows(VALUES),
    "dataset and targets": lambda: (Rows(torch.zeros(N)), VALUES),
    "store": lambda: bll.Features.from_tensors(X, VALUES),
    "store of shards": lambda: bll.Features([(X[:90], VALUES[:90]), (X[90:], VALUES[90:])]),
    "loader": lambda: DataLoader(Rows(VALUES), 32),
    "loader that shuffles": lambda: DataLoader(Rows(VALUES), 32, shuffle=True),
    "loader that drops": lambda: DataLoader(Rows(VALUES), 32, shuffle=True, drop_last=True),
    "loader and targets": lambda: (DataLoader(Rows(torch.zeros(N)), 32), VALUES),
}


@pytest.mark.parametrize("form", FORMS)
def test_kept_rows_are_never_trained_on(form: str) -> None:
    """In every form of data the same rows are kept, and the factor is that of `bll.calibrate` on them."""
    backbone = Recording()
    fit = bll.fit(REAL, FORMS[form](), backbone, replace(JOINT, num_epochs=20), seed=3, calibration=0.25)
    left = backbone.trained_on
    reference = Recording()
    bll.fit(REAL, (X, VALUES), reference, JOINT, seed=3, calibration=0.25)
    assert left == reference.trained_on and len(left) == fit.num_rows == N - 50
    kept = sorted(set(range(N)) - left)
    assert isinstance(fit.recalibration, NoiseFactor)
    again = bll.calibrate(fit.with_recalibration(None), X[kept], VALUES[kept]).recalibration
    assert again.factor == pytest.approx(fit.recalibration.factor, rel=1e-3)
    assert again.found_on.before == pytest.approx(fit.recalibration.found_on.before, abs=0.03)


def kept_by(fit_of: Any, targets: Tensor, **options: Any) -> list[int]:
    """Numbers of the rows that were not trained on."""
    backbone = Recording()
    bll.fit(fit_of, (X, targets), backbone, JOINT, calibration=0.25, **options)
    return sorted(set(range(N)) - backbone.trained_on)


def test_the_choice_is_seeded() -> None:
    one, same, other = (kept_by(REAL, VALUES, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert len(one) == len(other) == 50


def test_values_are_stratified() -> None:
    """One of four neighbours in the order of the values: their empirical distribution is that of all rows."""
    rank = VALUES.argsort().argsort()
    assert sorted((rank[kept_by(REAL, VALUES)] // 4).tolist()) == list(range(50))


def test_classes_are_stratified_and_a_class_of_one_row_is_trained_on() -> None:
    labels = LABELS.clone()
    labels[labels == 2] = 1
    labels[7] = 2
    kept = kept_by(CLASSES, labels)
    assert 7 not in kept and len(kept) == 50
    for label in (0, 1):
        assert int((labels[kept] == label).sum()) == pytest.approx(
            50 * float((labels == label).float().mean()), abs=1.5
        )


def test_each_class_keeps_a_row_in_training() -> None:
    """120 classes of one to three rows: no class leaves as a whole, whatever the seed."""
    targets = torch.cat([torch.arange(120), torch.arange(60), torch.arange(20)])
    for seed in range(5):
        order = by_target(targets, torch.ones(N, dtype=torch.bool), True, generator(seed))
        assert len(order) == len(order.unique()) == N - 120
        kept = one_of_each_bin(order, 26, generator(seed))
        left = np.delete(targets.numpy(), kept.numpy())
        assert len(kept.unique()) == 26 and set(left) == set(range(120))


def test_labels_and_rows_without_weight() -> None:
    """A label that is set once stays, and rows of weight 0 are not kept: they say nothing."""
    labels = torch.zeros(N, 2)
    labels[::2, 0] = 1
    labels[5, 1] = 1
    weight = torch.arange(N) % 3 > 0
    for seed in range(10):
        order = by_target(labels, weight, True, generator(seed))
        kept = one_of_each_bin(order, len(order) // 3, generator(seed))
        assert 5 not in kept and bool(weight[kept].all())


def test_the_number_of_rows() -> None:
    """A tenth, at least 50, at most a third; a share that is given is that share."""
    for num_rows, number in ((2000, 200), (1000, 100), (300, 50), (90, 30), (60, 20)):
        random = generator(num_rows)
        x, y = torch.randn(num_rows, 3, generator=random), torch.randn(num_rows, generator=random)
        fit = bll.fit(REAL, (x, y), nn.Linear(3, 2), replace(JOINT, num_epochs=1))
        assert fit.recalibration.found_on.num_rows == number
        assert fit.num_rows == (num_rows if num_rows < 2000 else num_rows - number)
    fit = bll.fit(REAL, (X, VALUES), Recording(), JOINT, calibration=0.3)
    assert fit.recalibration.found_on.num_rows == 60


@pytest.mark.parametrize("inference", [JOINT, TWO_STAGES], ids=["joint", "two stages"])
def test_it_is_printed_saved_and_undone(inference: bll.SVI, tmp_path: Path) -> None:
    for layer, targets, kind, measure in (
        (REAL, VALUES, NoiseFactor, "share inside 90% intervals"),
        (CLASSES, LABELS, PredictiveTemperature, "mean confidence"),
    ):
        fit = bll.fit(layer, (X, targets), Recording(), inference, calibration=0.25)
        assert isinstance(fit.recalibration, kind)
        said = repr(fit)
        assert f"50 rows kept from training: {measure}" in said and kind.__name__ in said
        folder = tmp_path / kind.__name__
        fit.save(folder)
        loaded = bll.load(folder, backbone=Recording())
        assert loaded.recalibration == fit.recalibration
        assert loaded.recalibration.found_on == fit.recalibration.found_on is not None
        assert repr(loaded.recalibration.found_on) == repr(fit.recalibration.found_on)
        plain = loaded.with_recalibration(None)
        assert plain.recalibration is None and "kept" not in repr(plain)
        with_it, without = fit.predict(X).log_prob(targets), plain.predict(X).log_prob(targets)
        number = getattr(fit.recalibration, "factor" if kind is NoiseFactor else "temperature")
        assert torch.allclose(with_it, without) == (abs(number - 1) < 1e-5)
        back = plain.with_recalibration(fit.recalibration)
        torch.testing.assert_close(back.predict(X).log_prob(targets), with_it)


def test_what_is_reported_is_right() -> None:
    """The share of the rows inside the intervals, and confidence and accuracy, by hand."""
    values = bll.fit(REAL, (X, VALUES), Recording(), JOINT, calibration=(X[:80], VALUES[:80]))
    found = values.recalibration.found_on
    for fit, said in ((values.with_recalibration(None), found.before), (values, found.after)):
        low, high = fit.predict(X[:80]).interval(0.9)
        inside = (low <= VALUES[:80]) & (VALUES[:80] <= high)
        assert said == pytest.approx(float(inside.double().mean()), abs=1e-9)
    assert (found.num_rows, found.source, found.aim) == (80, "held-out rows", 0.9)
    classes = bll.fit(CLASSES, (X, LABELS), Recording(), JOINT, calibration=(X[:80], LABELS[:80]))
    found = classes.recalibration.found_on
    for fit, said in ((classes.with_recalibration(None), found.before), (classes, found.after)):
        prediction = fit.predict(X[:80])
        assert said == pytest.approx(float(prediction.confidence.double().mean()), abs=1e-5)
    assert found.aim == pytest.approx(float((prediction.label == LABELS[:80]).double().mean()))


def test_weights_and_exposures_go_along() -> None:
    """The factor of weighted rows is that of `bll.calibrate` on the same rows with the same weights."""
    weight = torch.rand(N, generator=generator(1)) * (torch.arange(N) % 4 > 0)
    backbone = Recording()
    share = 50 / int((weight > 0).sum())
    joint = replace(JOINT, num_epochs=20)
    fit = bll.fit(REAL, (X, VALUES), backbone, joint, sample_weight=weight, calibration=share)
    kept = sorted(set(range(N)) - backbone.trained_on)
    assert len(kept) == 50 and bool((weight[kept] > 0).all())
    again = bll.calibrate(fit, bll.Data((X[kept], VALUES[kept]), weight[kept])).recalibration
    assert again.factor == pytest.approx(fit.recalibration.factor, rel=1e-4)
    unweighted = bll.calibrate(fit, X[kept], VALUES[kept]).recalibration
    assert abs(unweighted.factor - again.factor) > 5e-4


def test_a_network_that_fits_its_rows_too_well_is_mended() -> None:
    """Wide network, few rows, many steps: the noise is found far too small on the rows in training, and right with the factor.

    The bound is that of 2,000 new rows and of a factor from 50: six standard errors.
    """
    random = generator(2)
    x = torch.randn(2200, 4, generator=random)
    y = torch.sin(2 * x[:, 0]) + 0.5 * torch.randn(2200, generator=random)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU())
    svi = bll.SVI(learning_rate=0.02, backbone_learning_rate=1e-2, num_epochs=150, final_stage=False)
    fit = bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (x[:200], y[:200]), network, svi)

    def inside(one: bll.Fit) -> float:
        low, high = one.predict(x[200:]).interval(0.9)
        return float(((low <= y[200:]) & (y[200:] <= high)).double().mean())

    slope = (
        2 * stats.norm.ppf(0.95) * stats.norm.pdf(stats.norm.ppf(0.95))
    )  # of the coverage in the log factor
    assert inside(fit.with_recalibration(None)) < 0.75
    assert inside(fit) == pytest.approx(0.9, abs=6 * slope / 100**0.5)
    assert fit.recalibration.factor > 1.3


def test_none_keeps_all_rows_and_warns_once() -> None:
    """One warning a fit, at the caller's line, so that Python's filters decide how often it is shown; it is printed, too."""
    backbone = Recording()
    with pytest.warns(bll.FitWarning) as caught:
        fit = bll.fit(REAL, (X, VALUES), backbone, TWO_STAGES, calibration=None)
    about = [one for one in caught if "no rows were kept" in str(one.message)]
    assert len(about) == 1
    assert backbone.trained_on == set(range(N)) and fit.num_rows == N
    assert fit.recalibration is None and "no rows were kept" in repr(fit)
    assert bll.fit(REAL, (X, VALUES), calibration=None, inference=bll.Exact()).trace.messages == []


def test_frozen_fits_keep_nothing_of_their_own() -> None:
    for backbone in (None, Recording()):
        fit = bll.fit(REAL, (X, VALUES), backbone, bll.Exact())
        assert fit.num_rows == N and fit.recalibration is None


@pytest.mark.parametrize("likelihood", ["Poisson", "NegativeBinomial"])
def test_counts_have_nothing_to_scale(likelihood: str) -> None:
    layer = bll.LastLayer(getattr(bll.likelihoods, likelihood)())
    backbone = Recording()
    fit = bll.fit(layer, (X, LABELS), backbone, JOINT)
    assert backbone.trained_on == set(range(N)) and fit.recalibration is None
    assert "no rows were kept" in " ".join(fit.trace.notes)
    with pytest.raises(TypeError, match=f"{likelihood} has no noise scale.*leave calibration out"):
        bll.fit(layer, (X, LABELS), Recording(), JOINT, calibration=0.2)


@pytest.mark.parametrize("given", [0.25, "held-out rows"])
@pytest.mark.parametrize("form", ["table", "frozen", "store"])
def test_any_fit_takes_a_share_or_rows(given: Any, form: str) -> None:
    """The fit is that of the rows that are left, and the factor that of the rows that are kept."""
    backbone = Recording() if form == "frozen" else None
    features = X[:, 1:] if backbone is None else X
    rows = bll.Features.from_tensors(features, VALUES) if form == "store" else (features, VALUES)
    held_out = (features[:40], VALUES[:40] + 3)
    fit = bll.fit(
        REAL, rows, backbone, bll.Exact(), calibration=held_out if given == "held-out rows" else given
    )
    assert fit.num_rows == (N if given == "held-out rows" else 150)
    if given == "held-out rows":
        assert fit.recalibration == bll.calibrate(fit, *held_out).recalibration
        assert fit.recalibration.factor > 2
    else:
        order = by_target(VALUES[:, None], torch.ones(N, dtype=torch.bool), False, random := generator(0))
        kept = one_of_each_bin(order, 50, random)
        left = torch.ones(N, dtype=torch.bool)
        left[kept] = False
        those = (
            bll.Features.from_tensors(features[left], VALUES[left])
            if form == "store"
            else (features[left], VALUES[left])
        )
        reference = bll.fit(REAL, those, backbone, bll.Exact())
        torch.testing.assert_close(reference.predict(features).mean, fit.predict(features).mean)
        found = bll.calibrate(reference, features[kept], VALUES[kept]).recalibration
        assert found.factor == pytest.approx(fit.recalibration.factor, rel=1e-4)


def test_validation_rows_stop_the_training_and_nothing_else() -> None:
    """Rows for early stopping are not those of the recalibration, unless they are given for both."""
    backbone = Recording()
    held_out = (X[150:], VALUES[150:])
    fit = bll.fit(REAL, (X[:150], VALUES[:150]), backbone, JOINT, validation_data=held_out, calibration=1 / 3)
    assert len(backbone.trained_on) == 100 and max(backbone.trained_on) < 150
    assert fit.recalibration.found_on.source == "rows kept from training"
    both = (X[150:], VALUES[150:])
    fit = bll.fit(REAL, (X[:150], VALUES[:150]), Recording(), JOINT, validation_data=both, calibration=both)
    assert (fit.num_rows, fit.recalibration.found_on.num_rows) == (150, 50)


UNREACHABLE = {
    "stream": lambda: DataLoader(Stream(), 32),
    "sampler": lambda: DataLoader(Rows(VALUES), 32, sampler=SubsetRandomSampler(range(N))),
}


@pytest.mark.parametrize("form", UNREACHABLE)
def test_a_loader_that_cannot_be_split(form: str) -> None:
    backbone = Recording()
    with pytest.warns(
        bll.FitWarning, match=r"no rows were kept.*cannot be reached by number.*pass calibration=\(inputs"
    ):
        fit = bll.fit(REAL, UNREACHABLE[form](), backbone, JOINT)
    assert backbone.trained_on == set(range(N)) and fit.recalibration is None
    with pytest.raises(ValueError, match="cannot be reached by number"):
        bll.fit(REAL, UNREACHABLE[form](), Recording(), JOINT, calibration=0.1)
    given = bll.fit(REAL, UNREACHABLE[form](), Recording(), JOINT, calibration=(X[:50], VALUES[:50]))
    assert given.recalibration.found_on.num_rows == 50


def test_too_few_rows() -> None:
    few = (X[:59], VALUES[:59])
    with pytest.warns(bll.FitWarning, match="no rows were kept.*59 rows are too few"):
        assert bll.fit(REAL, few, Recording(), JOINT).num_rows == 59
    with pytest.raises(ValueError, match=r"calibration=0.01.*59 rows are too few; pass calibration="):
        bll.fit(REAL, few, Recording(), JOINT, calibration=0.01)
    with pytest.raises(ValueError, match="59 rows are too few"):
        bll.fit(REAL, few, Recording(), JOINT, calibration=0.99)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (0, ValueError, "a number between 0 and 1, got 0"),
        (0.0, ValueError, "a number between 0 and 1, got 0.0"),
        (1, ValueError, "a number between 0 and 1, got 1"),
        (1.5, ValueError, "a number between 0 and 1, got 1.5"),
        (float("nan"), ValueError, "a number between 0 and 1, got nan"),
        (True, ValueError, "a number between 0 and 1, got True"),
        ("x", TypeError, "a share such as 0.1, held-out rows (inputs, targets), or None, got 'x'"),
        (X, ValueError, "calibration: expected inputs and targets"),
        (
            (X[:, :2], VALUES),
            ValueError,
            "calibration: expected inputs of shape ['N', 4], as in the data, got ['N', 2]",
        ),
        (
            (X, torch.stack([VALUES, VALUES], 1)),
            ValueError,
            "calibration: expected targets of shape [200], as in",
        ),
        ((X[:1], VALUES[:1]), ValueError, "calibration: expected at least 2 rows, got 1"),
    ],
)
def test_wrong_calibrations(given: Any, error: type[Exception], said: str) -> None:
    backbone = Recording()
    with pytest.raises(error, match=re.escape(said)):
        bll.fit(REAL, (X, VALUES), backbone, JOINT, calibration=given)
    assert backbone.seen == []  # before any work


def test_with_recalibration_and_a_detector() -> None:
    fit = bll.fit(REAL, (X, VALUES), Recording(), JOINT)
    with_detector = fit.with_detector(bll.ood.Detector(bll.ood.Epistemic()).calibrate(fit, X))
    assert with_detector.with_recalibration(fit.recalibration).detector is not None
    for other in (None, NoiseFactor(3.0)):
        with pytest.raises(
            ValueError, match=r"with_recalibration: expected a fit without a detector.*with_detector\(None\)"
        ):
            with_detector.with_recalibration(other)
    assert fit.with_recalibration(NoiseFactor(3.0)).recalibration.factor == 3.0


@pytest.mark.unchecked
def test_with_recalibration_takes_recalibrations() -> None:
    fit = bll.fit(REAL, (X, VALUES), inference=bll.Exact())
    with pytest.raises(
        TypeError,
        match="with_recalibration: expected a PredictiveTemperature, a NoiseFactor or None, got float",
    ):
        fit.with_recalibration(1.3)  # type: ignore[arg-type]


def test_how_it_was_found_changes_no_fingerprint() -> None:
    """A detector of a fit that an earlier version saved, without that record, stays valid."""
    fit = bll.fit(REAL, (X, VALUES), Recording(), JOINT)
    bare = fit.with_recalibration(NoiseFactor(fit.recalibration.factor))
    assert bare.fingerprint == fit.fingerprint != fit.with_recalibration(None).fingerprint
    assert bare.recalibration != fit.recalibration and bare.recalibration == fit.recalibration.alone


def test_the_sentinel_prints_as_it_is_written() -> None:
    assert repr(bll.AUTOMATIC) == "bll.AUTOMATIC"


L = bll.likelihoods
PAIRS = torch.stack([VALUES, X[:, 2]], 1)
KINDS: dict[str, tuple[bll.likelihoods.Likelihood, Tensor, type]] = {
    "several numbers": (L.Gaussian(), PAIRS, NoiseFactor),
    "known noise": (L.Gaussian(0.1), VALUES, NoiseFactor),
    "correlated numbers": (L.MultivariateGaussian(), PAIRS, NoiseFactor),
    "noise of its own": (L.HeteroscedasticGaussian(), VALUES, NoiseFactor),
    "outliers": (L.StudentT(), VALUES, NoiseFactor),
    "ordered classes": (L.Ordinal(3), LABELS, PredictiveTemperature),
    "a label": (L.Bernoulli(), (VALUES > 0).long(), PredictiveTemperature),
    "several labels": (L.Bernoulli(), (PAIRS > 0).long(), PredictiveTemperature),
}


def cautious(probs: Tensor, targets: Tensor, num_rows: int = 50) -> float:
    """The temperature of kept rows by SciPy: its log has a prior scale of .5, and one row is of another class where it sharpens."""
    if not targets.is_floating_point() and probs.shape != targets.shape:
        logs, labels = probs.double().log().numpy(), targets.numpy()
    else:  # each label has two classes
        logs = torch.stack([1 - probs, probs], -1).double().log().flatten(0, -2).numpy()
        labels = targets.flatten().numpy()
    own = np.eye(logs.shape[1])[labels]
    spread = own + (1 / num_rows) * ((1 - own) / (logs.shape[1] - 1) - own)

    def best(weights: np.ndarray, most: float) -> float:
        def loss(log_number: float) -> float:
            tempered = special.log_softmax(logs / np.exp(log_number), axis=1)
            return float(2 * log_number**2 - (weights * tempered).sum())

        found = optimize.minimize_scalar(loss, bounds=(-5, most), method="bounded", options={"xatol": 1e-9})
        return float(np.exp(found.x))

    plain = best(own, 5.0)
    return plain if plain >= 1 else best(spread, 0.0)


@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_few_rows_without_an_error_make_classes_hardly_sharper(shift: float) -> None:
    """A temperature of 50 kept rows, all predicted right: beside the plain one, and the cautious one by SciPy."""
    probs = torch.softmax(
        torch.tensor([[3.0, 0.0, 0.0]]) * 2**shift + torch.rand(50, 3, generator=generator(3)), 1
    )
    labels = torch.zeros(50, dtype=torch.long)
    fit = bll.fit(CLASSES, (X[:, 1:], LABELS), inference=bll.Laplace(), calibration=None)
    prediction = replace(fit.predict(X[:50, 1:]), probs=probs)
    plain = found_on(prediction, labels, labels, None, "kept")
    found = found_on(prediction, labels, labels, None, "kept", of_few_rows(fit.layer.likelihood, 50))
    assert plain.temperature < 0.8 * found.temperature
    assert (found.temperature > 0.9999) == (shift == 1.0)
    assert found.temperature == pytest.approx(cautious(probs, labels), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*steps are too few:RuntimeWarning")
def test_every_likelihood_with_noise_or_probabilities(kind: str) -> None:
    """A factor is that of `bll.calibrate` on the kept rows, a temperature the cautious one; what is reported is a share."""
    likelihood, targets, expected = KINDS[kind]
    backbone = Recording()
    layer = bll.LastLayer(likelihood, bll.priors.Normal(1.0))
    fit = bll.fit(layer, (X, targets), backbone, JOINT, calibration=0.25)
    kept = sorted(set(range(N)) - backbone.trained_on)
    again = bll.calibrate(fit, X[kept], targets[kept]).recalibration
    assert type(fit.recalibration) is type(again) is expected
    if expected is NoiseFactor:
        assert again.factor == pytest.approx(fit.recalibration.factor, rel=1e-3)
    else:
        by_hand = cautious(fit.with_recalibration(None).predict(X[kept]).probs, targets[kept])
        assert fit.recalibration.temperature == pytest.approx(by_hand, rel=1e-3)
    found = fit.recalibration.found_on
    assert found.num_rows == 50 and all(0 <= share <= 1 for share in (found.aim, found.before, found.after))
    assert abs(found.after - found.aim) <= abs(found.before - found.aim) + 0.1


def test_rows_that_are_kept_go_through_a_store(tmp_path: Path) -> None:
    """A share of rows in memory, whose features are on disk: each part has its own targets."""
    given = {"calibration": 0.25, "inference": bll.Laplace()}
    fits = [bll.fit(CLASSES, (X, LABELS), nn.Tanh(), store=store, **given) for store in (None, tmp_path)]
    assert torch.equal(*(fit.predict(X).probs for fit in fits))
    assert fits[1].num_rows == N - fits[1].recalibration.found_on.num_rows == 150
