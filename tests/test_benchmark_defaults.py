"""The comparison of defaults: its splits, what it stores and refuses, and its arithmetic."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.defaults import plain, tables
from benchmarks.defaults.data import NUM_SEEN_SEEDS, SETS
from benchmarks.defaults.measure import chosen, fill
from benchmarks.defaults.methods import METHODS, OURS, Method
from benchmarks.defaults.predictions import Classes, Values
from benchmarks.defaults.splits import COLUMN_NOISE, DataSet, first_and_last, shifted
from benchmarks.defaults.store import Store, line_of
from benchmarks.report import Report

SHIPPED = [data for data in SETS if data.name in ("digits", "breast cancer", "wine", "iris", "diabetes")]
WINE = next(data for data in SETS if data.name == "wine")
ROW = {
    "set": "wine", "size": 60, "seed": 0, "method": OURS, "shift": "none", "split": "abc", "made_with": "x 1", "nll": 0.5,
}  # fmt: skip


# ---- splits


@pytest.mark.parametrize("data", SHIPPED, ids=lambda data: data.name)
def test_splits_keep_test_rows_apart_and_smaller_ones_are_parts_of_larger_ones(data):
    made = [data.make(size, 3) for size in data.sizes]
    for size, one in zip(data.sizes, made, strict=True):
        train, test = one.rows[:size], one.rows[size:]
        assert len(one.features) == size and len(one.test_features) == len(test)
        assert not set(train) & set(test)
        assert set(train) <= set(made[-1].rows[: data.sizes[-1]])
        assert np.array_equal(test, made[0].rows[data.sizes[0] :])
        if one.num_classes:
            shares = np.bincount(made[-1].targets) / data.sizes[-1]
            assert np.abs(np.bincount(one.targets) - shares * size).max() <= 2.0


def test_a_hash_says_which_split_it_is():
    assert WINE.make(60, 0).hash == WINE.make(60, 0).hash
    assert len({WINE.make(size, seed).hash for size in WINE.sizes for seed in range(5)}) == 10
    made = WINE.make(60, 0)
    targets = made.targets.copy()
    targets[0] += 1
    assert replace(made, targets=targets).hash != made.hash


def test_too_many_rows_are_refused():
    with pytest.raises(ValueError, match=r"at most 10 rows, got 8 \+ 3"):
        first_and_last(np.zeros((10, 2)), np.zeros(10), 8, 3, 0)


def test_shifts_do_what_they_say():
    digits = next(data for data in SETS if data.name == "digits")
    made = digits.make(80, 0)
    assert shifted(made, "none", 0) is made.test_features
    images, moved = (x.reshape(-1, 8, 8) for x in (made.test_features, shifted(made, "moved", 0)))
    assert np.array_equal(moved[:, :, 1:], images[:, :, :-1]) and not moved[:, :, 0].any()
    for name, scale in (("noise .3", 0.3), ("noise .6", 0.6)):
        noise = shifted(made, name, 0) - made.test_features
        # of n numbers the standard deviation is off by 1 / sqrt(2 n) of itself
        assert noise.std() == pytest.approx(scale, rel=4 / (2 * noise.size) ** 0.5)
        assert np.array_equal(shifted(made, name, 0), shifted(made, name, 0))
        assert not np.array_equal(shifted(made, name, 0), shifted(made, name, 1))
    table = WINE.make(120, 0)
    noise = (shifted(table, "columns", 0) - table.test_features) / table.features.std(0)
    assert noise.std() == pytest.approx(COLUMN_NOISE, rel=4 / (2 * noise.size) ** 0.5)


def test_what_is_kept_aside_stays_out_until_more_splits_are_asked_for():
    few, many = (list(chosen(SETS, number)) for number in (NUM_SEEN_SEEDS, NUM_SEEN_SEEDS + 1))
    assert max(seed for *_, seed in few) < NUM_SEEN_SEEDS == max(seed for *_, seed in many)
    aside = {data.name for data, *_ in many} - {data.name for data, *_ in few}
    assert aside == {"iris", "energy", "power"}


# ---- what is stored


def test_a_row_without_the_hash_of_its_split_is_refused(tmp_path):
    path = tmp_path / "defaults.jsonl"
    store = Store(path)
    with pytest.raises(ValueError, match=r"new row: .* got none of split"):
        store.add({name: value for name, value in ROW.items() if name != "split"})
    path.write_text(line_of(ROW) + line_of(ROW | {"split": ""}))
    with pytest.raises(ValueError, match=r"defaults.jsonl, line 2: .* got none of split"):
        Store(path)


def test_later_rows_stand_for_earlier_ones_and_those_of_other_splits_do_not_count(tmp_path):
    path = tmp_path / "defaults.jsonl"
    store = Store(path)
    for nll in (0.5, 0.4):
        store.add(ROW | {"nll": nll})
    store.add(ROW | {"method": "another"})
    key = ("wine", 60, 0, OURS, "none")
    again = Store(path)
    assert again.rows[key]["nll"] == 0.4
    assert again.has(key, "abc") and again.has(key, "abc", "x 1")
    assert not again.has(key, "abd") and not again.has(key, "abc", "x 2")
    again.tidy()
    assert [json.loads(line)["nll"] for line in path.read_text().splitlines()] == [0.5, 0.4]  # another, ours


def constant(calls: list[str], name: str, package: str = "scikit-learn", probability: float = 0.5) -> Method:
    """A method of two classes that gives one probability to the first, and notes its calls."""

    def fit(data, made, seed):
        calls.append(name)
        return lambda rows: Classes(np.tile([probability, 1 - probability], (len(rows), 1)))

    return Method(name, package, fit, has_classes=True, is_plain=True)


def coins(size: int, seed: int):
    features = np.random.default_rng(seed).normal(size=(100, 2))
    return first_and_last(features, (features[:, 0] > 0).astype(int), size, 50, seed)


COINS = DataSet("coins", "two columns", (10, 20), coins)


def test_only_what_is_missing_is_measured(tmp_path, monkeypatch):
    calls: list[str] = []
    store = Store(tmp_path / "defaults.jsonl")
    methods = [constant(calls, "a"), constant(calls, "b")]
    fill(store, COINS, methods[:1], 2, again=False)
    assert calls == ["a"] * 4
    fill(store, COINS, methods, 2, again=True)  # of the same version
    assert calls == ["a"] * 4 + ["b"] * 4
    fill(store, COINS, [replace(methods[0], package="vbll"), methods[1]], 2, again=False)
    assert len(calls) == 8
    monkeypatch.setattr(Method, "made_with", "another")
    fill(store, COINS, methods[1:], 2, again=True)
    assert calls[8:] == ["b"] * 4
    row = store.rows["coins", 10, 0, "b", "columns"]
    assert row["nll"] == pytest.approx(np.log(2)) and row["split"] == coins(10, 0).hash


# ---- scores and tables


def test_scores_of_values_are_those_of_scipy():
    random = np.random.default_rng(0)
    mean, scale, values = random.normal(size=50), random.uniform(0.5, 2, 50), random.normal(size=50)
    found = Values.normal(mean, scale).scores(values)
    normal = stats.norm(mean, scale)
    lower, upper = normal.interval(0.9)
    assert found["nll"] == pytest.approx(-normal.logpdf(values).mean())
    assert found["coverage"] == np.mean((lower < values) & (values < upper))
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((mean - values) ** 2)))


def test_a_temperature_divides_the_log_odds():
    made = WINE.make(60, 0)
    rows = made.test_features
    logs = [np.log(fit(WINE, made, 0)(rows).probs) for fit in (plain.logistic, plain.logistic_temperature)]
    odds = [log[:, :1] - log[:, 1:] for log in logs]
    ratios = (odds[0] / odds[1])[np.abs(odds[1]) > 0.1]
    assert np.ptp(ratios) < 1e-6 * ratios.mean()
    assert not np.isclose(ratios.mean(), 1.0)


def test_excess_is_over_the_best_plain_one_on_the_same_splits(tmp_path):
    store = Store(tmp_path / "defaults.jsonl")
    nll = {OURS: (0.5, 0.7), "logistic": (0.4, 0.6), "logistic + temperature": (0.3, 0.9), "vbll": (0.1, 0.1)}
    for name, values in nll.items():
        for seed, value in enumerate(values):
            row = ROW | {"method": name, "seed": seed, "split": f"s{seed}", "nll": value, "ece": 0.1}
            store.add(row | {"accuracy": 0.9, "cpu": 1.0})
            store.add(row | {"accuracy": 0.9, "cpu": 1.0, "shift": "columns", "nll": 2 * value, "ece": 0.2})
    store.add(ROW | {"method": OURS, "seed": 7, "nll": 9.0})  # kept aside
    report = Report("defaults", "")
    tables.add(report, store, [replace(WINE, sizes=(60,))], 2)
    (row,) = report.tables[0].rows
    assert row["plain"] == "logistic" and row["seeds"] == 2
    assert row["excess"] == pytest.approx(100 * 0.1 / 0.5)
    assert row["error"] == pytest.approx(0.0, abs=1e-9)
    assert [(r["shift"], round(r["nll"], 9)) for r in report.tables[3].rows] == [
        ("none", 0.1),
        ("columns", 0.2),
    ]
    assert report.targets[0].found == row["excess"] and report.targets[2].found == 0.0
    assert [target.met for target in report.targets[:3]] == [False] * 3
    assert not any(note.startswith("Incomplete") for note in report.notes)
    tables.add(report, store, [WINE], 2)
    assert report.notes[-1].startswith("Incomplete: judged on 2 of 4 splits")


def test_names_of_methods_are_unique_and_ours_is_one():
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names) and OURS in names
    assert not next(method for method in METHODS if method.name == OURS).is_plain


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in METHODS if m.made_with], ids=lambda m: m.name)
@pytest.mark.filterwarnings("ignore")  # competitors' own deprecations
def test_every_method_predicts(method):
    """Classes: probabilities, far better than the shares of the classes. Values: a linear table, where all come to the same."""
    diabetes, digits = (next(d for d in SETS if d.name == name) for name in ("diabetes", "digits"))
    if method.has_classes:
        made = digits.make(80, 0)
        probs = method.fit(digits, made, 0)(made.test_features).probs
        assert np.abs(probs.sum(-1) - 1).max() < 1e-5
        shares = np.bincount(made.test_targets) / len(made.test_targets)
        assert Classes(probs).scores(made.test_targets)["nll"] < 0.7 * stats.entropy(shares)
    if method.has_values:
        made = diabetes.make(150, 0)
        found = method.fit(diabetes, made, 0)(made.test_features).scores(made.test_targets)
        expected = plain.bayesian_ridge(diabetes, made, 0)(made.test_features).scores(made.test_targets)
        assert found["nll"] == pytest.approx(expected["nll"], abs=0.05)
        assert found["rmse"] == pytest.approx(expected["rmse"], rel=0.05)
        assert found["coverage"] == pytest.approx(expected["coverage"], abs=0.05)
