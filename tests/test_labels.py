"""Labels of any type from fit to prediction: what takes targets takes them, what gives classes gives them back."""

import math

import arviz as az
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro import likelihoods as lk
from bll_pyro.sklearn import BayesianLastLayerClassifier

RANDOM = np.random.default_rng(0)
N = 90
X = RANDOM.normal(size=(N, 3))
SCORE = X @ np.array([1.5, -1.0, 0.5]) + 0.5 * RANDOM.normal(size=N)
NUMBERS = np.digitize(SCORE, [-0.7, 0.7])
NAMES = np.array(["low", "middle", "high"])  # not in the order of sorting
TEXT = NAMES[NUMBERS]
INFERENCE = bll.Laplace(scale_criterion=bll.criteria.Evidence())


def fitted(likelihood, targets, inference=INFERENCE, **options):
    return bll.fit(
        bll.LastLayer(likelihood, bll.priors.Normal(1.0)), (X, targets), inference=inference, **options
    )


@pytest.fixture(scope="module")
def text():
    return fitted(lk.Categorical(classes=NAMES), TEXT)


@pytest.fixture(scope="module")
def plain():
    """The same by class numbers: what every result with labels has to equal."""
    return fitted(lk.Categorical(3), NUMBERS)


@pytest.fixture(scope="module")
def ordered():
    return fitted(lk.Ordinal(), pd.Series(pd.Categorical(TEXT, NAMES, ordered=True)), bll.SVI(num_epochs=2))


@pytest.fixture(scope="module")
def two():
    return fitted(lk.Bernoulli(), np.where(NUMBERS > 0, "yes", "no"))


def test_labels_come_back(text, plain):
    said, numbers = text.predict(X), plain.predict(X)
    torch.testing.assert_close(said.probs, numbers.probs)
    assert isinstance(numbers.label, torch.Tensor) and numbers.classes is None and plain.classes is None
    assert said.label.dtype.kind == "U" and (said.label == NAMES[numbers.label.numpy()]).all()
    assert text.classes.tolist() == said.classes.tolist() == NAMES.tolist()
    assert text.head.classes.tolist() == text.with_recalibration(None).classes.tolist() == NAMES.tolist()
    assert "['low', 'middle', 'high']" in repr(text) and f"high: {(said.label == 'high').sum()} rows" in repr(
        said
    )
    frame = said.to_pandas()
    assert frame["label"].tolist() == said.label.tolist()
    np.testing.assert_allclose(frame["p_high"], numbers.to_pandas()["p2"])
    text.classes[0] = "changed"
    assert text.classes[0] == "low"


def test_sorted_classes_are_those_of_the_targets():
    found = fitted(lk.Categorical(3), TEXT)
    assert found.classes.tolist() == ["high", "low", "middle"]
    numbers = fitted(lk.Categorical(), np.unique(TEXT, return_inverse=True)[1])
    torch.testing.assert_close(found.predict(X).probs, numbers.predict(X).probs)
    assert found.layer.likelihood == lk.Categorical(classes=["high", "low", "middle"])


TAKERS = {
    "log_prob": lambda fit, y: fit.predict(X).log_prob(y).double().numpy(),
    "calibrate": lambda fit, y: bll.calibrate(fit, (X, y)).recalibration.temperature,
    "calibrate, two arguments": lambda fit, y: bll.calibrate(fit, X, list(y)).recalibration.temperature,
    "loo": lambda fit, y: np.asarray(bll.loo(fit, (X, y)).elpd_i),
    "evaluate": lambda fit, y: bll.evaluate(fit, (X, y), held_out=(X, y), train=(X, y)).to_pandas().to_numpy(),
    "sets": lambda fit, y: bll.conformal.PredictionSets().calibrate(fit, (X, y)).threshold,
    "detector": lambda fit, y: bll.ood.Detector(bll.ood.Mahalanobis()).calibrate(fit, X, train=(X + 0.01, y)).threshold,
    "tree": lambda fit, y: fit.to_datatree(X, y, num_draws=20)["log_likelihood"]["y"].values,
    "observed": lambda fit, y: fit.to_datatree((X, y), num_draws=2, prior=False)["observed_data"]["y"].values,
    "compare": lambda fit, y: bll.compare({"a": fit, "b": fit.with_recalibration(None)}, (X, y), new_data=(X, y))
    .table[["elpd", "new_nll", "new_ece"]]
    .to_numpy(),
    "diagnose": lambda fit, y: [check.verdict for check in bll.diagnose(fit, (X, y), num_draws=100).checks],
    "numbers": lambda fit, y: fit.predict(X).class_numbers(y).numpy(),
    "reliability": lambda fit, y: len(bll.plots.reliability_diagram(fit.predict(X), y).axes),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detector.calibrate", "ignore:.*Pareto")
@pytest.mark.parametrize("name", TAKERS)
def test_all_that_takes_targets_takes_labels(name, text, plain):
    function = TAKERS[name]
    np.testing.assert_equal(function(text, TEXT), function(plain, NUMBERS))


@pytest.mark.parametrize(
    "name", ["log_prob", "loo", "calibrate", "sets", "tree", "compare", "diagnose", "evaluate"]
)
def test_unseen_labels_are_named(name, text):
    targets = TEXT.copy()
    targets[7] = "huge"
    with pytest.raises(
        ValueError, match=r"among \['low', 'middle', 'high'\], got \['huge'\] \(1 rows, the first is row 7"
    ):
        TAKERS[name](text, targets)


def test_text_for_a_fit_of_numbers_is_refused(plain):
    with pytest.raises(TypeError, match="expected numbers, got labels"):
        plain.predict(X).log_prob(TEXT)
    with pytest.raises(TypeError, match=r"expected numbers, got labels .*Categorical\(classes="):
        bll.loo(plain, (X, TEXT))


def test_sets_say_labels(text, plain):
    sets = bll.conformal.PredictionSets(alpha=0.05).calibrate(text, (X, TEXT))
    held, said = sets.predict(X), sets.predict_labels(X)
    probs = text.predict(X).probs
    for row in range(N):
        assert set(said[row]) == set(NAMES[held[row].numpy()])
        kept = [float(probs[row, NAMES.tolist().index(name)]) for name in said[row]]
        assert kept == sorted(kept, reverse=True)
    numbers = bll.conformal.PredictionSets(alpha=0.05).calibrate(plain, (X, NUMBERS)).predict_labels(X)
    assert all((NAMES[a] == b).all() for a, b in zip(numbers, said, strict=True))


def test_save_and_load(text, ordered, two, tmp_path):
    odd = fitted(lk.Categorical(), NUMBERS * 2 + 3)
    for fit, name in ((text, "text"), (ordered, "ordered"), (two, "two"), (odd, "odd")):
        fit.save(tmp_path / name)
        again = bll.load(tmp_path / name)
        assert again.layer == fit.layer and again.fingerprint == fit.fingerprint
        assert again.classes.dtype == fit.classes.dtype and again.classes.tolist() == fit.classes.tolist()
        assert (again.predict(X).label == fit.predict(X).label).all()
    assert odd.classes.tolist() == [3, 5, 7] and odd.predict(X).label.dtype == np.int64


def test_a_checkpoint_is_of_its_labels(tmp_path):
    made = fitted(lk.Categorical(3), TEXT, checkpoint=tmp_path / "a")
    again = fitted(lk.Categorical(3), TEXT, checkpoint=tmp_path / "a")
    assert again.classes.tolist() == made.classes.tolist()
    others = np.array(["b", "c", "a"])[NUMBERS]  # the same class numbers
    with pytest.raises(ValueError, match="classes"):
        fitted(lk.Categorical(3), others, checkpoint=tmp_path / "a")


def test_classes_in_an_order(ordered):
    prediction, numbers = ordered.predict(X), np.arange(3)
    assert prediction.classes.tolist() == NAMES.tolist()
    cumulative = prediction.probs.cumsum(-1).numpy()
    median = (cumulative < 0.5).sum(1)
    assert (prediction.quantile(0.5) == NAMES[median]).all()
    low, high = prediction.interval(0.6, kind="hdi")
    place = dict(zip(NAMES, numbers, strict=True))
    first, last = (np.array([place[name] for name in ends]) for ends in (low, high))
    inside = np.array(
        [row[a : b + 1].sum() for row, a, b in zip(prediction.probs.numpy(), first, last, strict=True)]
    )
    assert (first <= last).all() and (inside >= 0.6 - 1e-5).all()
    np.testing.assert_allclose(prediction.cdf(TEXT), cumulative[np.arange(N), NUMBERS], rtol=1e-5)
    reached = numbers >= NUMBERS[:, None]
    np.testing.assert_allclose(
        prediction.crps(TEXT), ((cumulative - reached) ** 2).sum(1), rtol=1e-4, atol=1e-6
    )
    pit = prediction.pit(TEXT).numpy()
    below = np.where(NUMBERS > 0, cumulative[np.arange(N), NUMBERS - 1], 0)
    assert (pit >= below - 1e-6).all() and (pit <= cumulative[np.arange(N), NUMBERS] + 1e-6).all()
    bll.plots.pit_histogram(prediction, TEXT)


def test_two_labels(two):
    prediction, flags = two.predict(X), NUMBERS > 0
    assert prediction.classes.tolist() == ["no", "yes"]
    assert (prediction.label == np.where(prediction.probs > 0.5, "yes", "no")).all()
    chosen = np.where(flags, prediction.probs, 1 - prediction.probs)
    np.testing.assert_allclose(
        prediction.log_prob(np.where(flags, "yes", "no")), np.log(chosen), rtol=1e-4, atol=1e-6
    )
    turned = fitted(lk.Bernoulli(classes=["yes", "no"]), np.where(flags, "yes", "no")).predict(X)
    torch.testing.assert_close(turned.probs, 1 - prediction.probs, atol=1e-4, rtol=1e-3)
    truth = fitted(lk.Bernoulli(), flags).predict(X).label
    assert truth.dtype == bool and (truth == (prediction.label == "yes")).all()


def test_stacks_have_the_classes_of_their_fits(text, two):
    both = bll.Stack({"a": text, "b": text.with_recalibration(None)}, {"a": 0.5, "b": 0.5}).predict(X)
    assert both.classes.tolist() == NAMES.tolist() and set(both.label) <= set(NAMES)
    assert math.isfinite(both.log_prob(TEXT).sum())
    mixed = bll.Stack({"a": two, "b": two.with_recalibration(None)}, {"a": 0.5, "b": 0.5}).predict(X)
    assert mixed.classes.tolist() == ["no", "yes"] and set(mixed.label) <= {"no", "yes"}
    other = fitted(lk.Categorical(3), TEXT)
    with pytest.raises(ValueError, match="the same classes in the same order"):
        bll.Stack({"a": text, "b": other}, {"a": 0.5, "b": 0.5}).predict(X)
    with pytest.raises(ValueError, match="the same classes in the same order"):
        bll.compare({"a": text, "b": other}, (X, TEXT))


def test_the_tree_names_classes(text, plain):
    tree = text.to_datatree(X, TEXT, num_draws=30, class_probs=True)
    assert tree["posterior"]["output"].values.tolist() == NAMES.tolist()
    assert tree["class_probs"]["class"].values.tolist() == NAMES.tolist()
    assert tree["observed_data"]["y"].values.tolist() == NUMBERS.tolist()  # ArviZ's plots need numbers
    assert (
        tree.attrs["classes"] == "[low, middle, high]"
        and plain.to_datatree(X, NUMBERS, num_draws=2).attrs["classes"] == ""
    )
    assert "weight[middle, 1]" in az.summary(tree, var_names=["weight"], kind="stats").index
    given = text.to_datatree(X, TEXT, num_draws=2, class_names=["a", "b", "c"])
    assert given["posterior"]["output"].values.tolist() == ["a", "b", "c"]
    figure = bll.plots.class_probs(tree)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == NAMES[::-1].tolist()
    prior = bll.prior_predictive(bll.LastLayer(lk.Categorical()), torch.from_numpy(X), TEXT, num_draws=2)
    assert prior["prior_predictive"]["class"].values.tolist() == ["high", "low", "middle"]


def test_choose_and_a_network(text):
    wide, narrow = bll.priors.Normal(1.0), bll.priors.Normal(0.1)
    layers = {
        "wide": bll.LastLayer(lk.Categorical(), wide),
        "narrow": bll.LastLayer(lk.Categorical(3), narrow),
    }
    chosen = bll.choose(layers, (X, TEXT), inference=INFERENCE)
    assert chosen.fit.classes.tolist() == ["high", "low", "middle"]
    with pytest.raises(ValueError, match=r"choose\(None, ...\): expected real values or counts, got labels"):
        bll.choose(None, (X, TEXT))
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    rows = torch.from_numpy(X).float()
    with pytest.raises(ValueError, match="labels of the network's outputs in their order, got"):
        bll.bayesianize(net, (rows, TEXT), inference=INFERENCE)
    with pytest.raises(ValueError, match="expected labels from 0 to 2, got 4"):
        bll.bayesianize(net, (rows, NUMBERS + 2), inference=INFERENCE)
    named = bll.bayesianize(
        net, (rows, TEXT), likelihood=lk.Categorical(classes=NAMES), inference=INFERENCE, prior_scale=0.3
    )
    assert named.classes.tolist() == NAMES.tolist() and set(named.predict(rows).label) <= set(NAMES)


def test_rows_that_are_set_aside_or_given_have_labels(text):
    shared = fitted(lk.Categorical(), TEXT, calibration=0.3)
    assert shared.recalibration is not None and shared.classes.tolist() == ["high", "low", "middle"]
    given = fitted(lk.Categorical(classes=NAMES), TEXT, calibration=(X, TEXT), validation_data=(X, TEXT))
    assert given.recalibration is not None
    with pytest.raises(ValueError, match="targets of validation_data: expected labels among"):
        fitted(lk.Categorical(), TEXT, validation_data=(X[:2], ["huge", "low"]))
    with pytest.raises(ValueError, match="targets of calibration: expected labels among"):
        fitted(lk.Categorical(), TEXT, calibration=(X[:2], ["huge", "low"]))


def test_features_on_disk_and_labels_beside(tmp_path):
    net = nn.Linear(3, 4).double()
    layer = bll.LastLayer(lk.Categorical(), bll.priors.Normal(1.0))
    options = {"inference": INFERENCE, "store": tmp_path}
    made = bll.fit(layer, (torch.from_numpy(X), TEXT), net, **options)
    turned = bll.fit(layer, (torch.from_numpy(X), np.array(["c", "b", "a"])[NUMBERS]), net, **options)
    assert made.classes.tolist() == ["high", "low", "middle"] and turned.classes.tolist() == ["a", "b", "c"]
    labels = turned.predict((torch.from_numpy(X), TEXT)).label  # targets that come along change nothing
    same = {"low": "c", "middle": "b", "high": "a"}
    assert (
        np.mean([same[a] == b for a, b in zip(made.predict(torch.from_numpy(X)).label, labels, strict=True)])
        > 0.95
    )
    features = made.features((torch.from_numpy(X), TEXT))
    assert features.targets is None  # a store holds numbers


def test_own_loops_take_class_numbers():
    elbo = bll.ELBO.from_data(bll.LastLayer(lk.Categorical()), (X.astype(np.float32), TEXT))
    numbers = torch.from_numpy(np.unique(TEXT, return_inverse=True)[1])
    elbo(torch.from_numpy(X).float(), numbers).backward()
    assert elbo.to_fit().classes.tolist() == ["high", "low", "middle"]


def test_the_fit_of_an_estimator_speaks_the_same_labels():
    for targets in (TEXT, NUMBERS > 0, NUMBERS.astype(float)):
        one = BayesianLastLayerClassifier(inference=INFERENCE).fit(X, targets)
        assert one.classes_.dtype == targets.dtype and (one.classes_ == np.unique(targets)).all()
        label = one.fit_.predict(X).label
        assert (one.predict(X) == np.asarray(label)).all()
        assert math.isfinite(one.fit_.predict(X).log_prob(targets).sum())
    order = BayesianLastLayerClassifier(likelihood=lk.Ordinal(classes=NAMES), inference=bll.SVI(num_epochs=2))
    assert order.fit(X, TEXT).classes_.tolist() == NAMES.tolist()
    more = BayesianLastLayerClassifier(likelihood=lk.Categorical(4), inference=INFERENCE).fit(X, NUMBERS)
    assert more.predict_proba(X).shape == (N, 4) and more.classes_.tolist() == [0, 1, 2, 3]
