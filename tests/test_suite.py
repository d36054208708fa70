"""The suite of benchmarks: its arithmetic against other sources, its rows, and one small run of every method that is there."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import friedmanchisquare, norm

import bll_pyro as bll
from benchmarks import suite
from benchmarks.options import Options
from benchmarks.suite import losses, tasks
from benchmarks.suite.cells import cells
from benchmarks.suite.measures import fpr95, measured, p_values
from benchmarks.suite.methods import METHODS, OURS
from benchmarks.suite.peers import REQUIREMENTS, failure_of_install
from benchmarks.suite.predictions import LEVELS, Classes, Normals
from benchmarks.suite.ranks import critical_difference, ranked
from benchmarks.suite.running import in_turn
from benchmarks.suite.splits import CLASSES, NETWORK, VALUES, Scaled, Split
from benchmarks.suite.store import Rows, id_of

RANDOM = np.random.default_rng(0)


def row(task: str, method: str, seed: int, **measures: float) -> dict:
    """A row with some measures, and costs."""
    costs = {"fit_cpu": 1.0, "predict_cpu": 0.5, "alarm_cpu": 0.0, "wall": 1.5}
    given = {"id": id_of(task, method, seed), "task": task, "method": method, "seed": seed, "split": "s"}
    return given | {"versions": "v"} | costs | measures


# ---- predictions and measures


def test_mixtures_agree_with_other_sources():
    mean, scale, targets = (
        RANDOM.normal(size=(3, 7)),
        RANDOM.uniform(0.2, 2, size=(3, 7)),
        RANDOM.normal(size=7),
    )
    found = Normals(mean, scale).arrays(targets)
    parts = torch.distributions.Normal(torch.tensor(mean.T), torch.tensor(scale.T))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(7, 3, dtype=torch.float64)), parts
    )
    assert found["log_prob"] == pytest.approx(mixture.log_prob(torch.tensor(targets)).numpy())
    assert found["mean"] == pytest.approx(mixture.mean.numpy())
    assert found["scale"] == pytest.approx(mixture.stddev.numpy())
    assert found["crps"] == pytest.approx(np.asarray(bll.metrics.crps_normal_mixture(mean, scale, targets)))
    shares = mixture.cdf(torch.tensor(found["quantiles"])).numpy()
    assert shares == pytest.approx(np.broadcast_to(LEVELS[:, None], shares.shape), abs=1e-9)


def test_measures_of_values_are_those_of_the_package():
    mean, targets = RANDOM.normal(size=200), RANDOM.normal(size=200).astype(np.float32)
    rows = np.zeros((200, 1), np.float32)
    split = Split(VALUES, rows, targets, {"test": rows}, targets, 0, np.arange(200))
    found = measured(Normals(mean, np.full(200, 1.3)).arrays(targets.astype(float)), split)
    assert found["rmse"] == pytest.approx(bll.metrics.rmse(mean, targets))
    assert found["crps"] == pytest.approx(np.mean(bll.metrics.crps_normal(mean, np.full(200, 1.3), targets)))
    assert found["nll"] == pytest.approx(-norm.logpdf(targets, mean, 1.3).mean())
    low, high = mean + 1.3 * norm.ppf(0.05), mean + 1.3 * norm.ppf(0.95)
    assert found["coverage"] == pytest.approx(((low <= targets) & (targets <= high)).mean())
    assert found["width"] == pytest.approx(2.6 * norm.ppf(0.95))


def test_alarms_by_the_kept_rows():
    kept, rows = RANDOM.integers(9, size=59).astype(float), RANDOM.integers(12, size=40).astype(float)
    brute = [(1 + sum(k >= r for k in kept)) / 60 for r in rows]
    assert p_values(kept, rows) == pytest.approx(brute)
    known, unknown = RANDOM.normal(size=500), RANDOM.normal(1.0, size=300)
    assert fpr95(known, unknown) == pytest.approx(bll.metrics.fpr_at_tpr(known, unknown))


def test_measures_of_classes_and_both_scores():
    probs = {name: torch.randn(60, 3).mul(2).softmax(-1).numpy() for name in ("test", "kept", "near", "far")}
    labels = RANDOM.integers(3, size=60)
    split = Split(CLASSES, probs["test"], labels, probs, labels, 3, np.arange(60))
    arrays = {}
    for part, values in probs.items():
        arrays |= Classes(values, np.full(60, float(part in ("near", "far"))) + 1e-3 * np.arange(60)).arrays(
            part
        )
    found = measured(arrays, split)
    assert found["nll"] == pytest.approx(-np.log(probs["test"][np.arange(60), labels]).mean(), rel=1e-5)
    assert found["brier"] == pytest.approx(float(bll.metrics.brier(probs["test"], labels)), rel=1e-5)
    assert (found["auroc_near"], found["caught_far"], found["fpr95_near"]) == (1.0, 1.0, 0.0)
    assert found["auroc_near_entropy"] < 0.8  # the entropies know nothing


# ---- splits


def test_the_hash_tells_rows_and_targets_and_the_file_gives_them_back(tmp_path):
    split = tasks.small(0)
    split.write(tmp_path / "one.npz")
    again = Split.read(tmp_path / "one.npz")
    assert again.hash == split.hash == tasks.small(0).hash
    assert np.array_equal(again.parts["near"], split.parts["near"])
    assert tasks.small(1).hash != split.hash


@pytest.mark.parametrize("is_seen", [True, False])
def test_rows_that_judge_are_in_no_training_and_held_out_classes_neither(monkeypatch, is_seen):
    labels = {"train": RANDOM.integers(10, size=400), "test": RANDOM.integers(10, size=300)}
    features = {
        part: np.arange(len(of), dtype=float)[:, None] + 1000 * (part == "test")
        for part, of in labels.items()
    }
    arrays = {f"H_{p}": features[p] for p in labels} | {f"y_{p}": of for p, of in labels.items()}
    monkeypatch.setattr(tasks, "stored", lambda path: arrays)
    left = {
        seed: tasks.images(seed, "", np.zeros((5, 1)), (100, 40, 60), is_seen=is_seen) for seed in range(5)
    }
    for seed, split in left.items():
        used = [split.features, *(split.parts[name] for name in ("test", "kept", "near"))]
        numbers = np.concatenate(used)[:, 0]
        assert len(set(numbers)) == len(numbers)
        assert ((split.features < 1000) == is_seen).all()
        all_labels = np.concatenate([labels["train"], np.zeros(600, int), labels["test"]])
        near = all_labels[split.parts["near"][:, 0].astype(int)]
        assert set(near) == set(tasks.held_out(seed))
        assert not set(all_labels[np.concatenate(used[:3])[:, 0].astype(int)]) & set(near)
        assert split.targets.max() == 7
    assert {c for seed in left for c in tasks.held_out(seed)} == set(range(10))


def test_units_of_features_share_a_scale_and_those_of_inputs_do_not():
    rows = (RANDOM.normal(size=(500, 2)) * [1.0, 100.0] + 7).astype(np.float32)
    values = (RANDOM.normal(size=500) * 3 + 5).astype(np.float32)
    made = {kind: Split(kind, rows, values, {}, values, 0, np.arange(500)) for kind in (VALUES, NETWORK)}
    spreads = {kind: Scaled.of(split).rows(rows).std(0) for kind, split in made.items()}
    assert spreads[NETWORK] == pytest.approx([1.0, 1.0], rel=1e-4)
    assert spreads[VALUES][1] / spreads[VALUES][0] == pytest.approx(100, rel=0.2)
    assert Scaled.of(made[VALUES]).values(values).std() == pytest.approx(1.0, rel=1e-4)


# ---- rows, ranks and losses


@pytest.mark.parametrize("missing", ["split", "seed", "versions", "nll"])
def test_a_row_that_does_not_say_where_it_comes_from_is_refused(tmp_path, missing):
    given = row("fashion", OURS, 0, nll=1.0)
    rows = Rows(tmp_path / "suite.jsonl", tmp_path)
    rows.add(given)
    del given[missing]
    with pytest.raises(ValueError, match=missing if missing != "nll" else "expected measures"):
        rows.add(given)
    (tmp_path / "suite.jsonl").write_text(json.dumps(given) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        Rows(tmp_path / "suite.jsonl", tmp_path)


def test_ids_are_unique_and_every_method_and_peer_is_whole():
    names = [id_of(t.name, m.name, s) for t in tasks.TASKS for m in METHODS for s in range(t.num_seeds)]
    assert len(set(names)) == len(names)
    for method in METHODS:
        if method.peer is not None:
            lines = (REQUIREMENTS / f"{method.peer}.txt").read_text().splitlines()
            pinned = [line for line in lines if not line.startswith("#")]
            assert all("==" in line for line in pinned)
            assert any(line.split("==")[0] == method.package for line in pinned)
        assert all(callable(method.fit(kind)) for kind in method.fits)


def test_a_run_that_is_cut_has_a_part_of_every_task():
    order = in_turn(tasks.TASKS, None)
    assert len(order) == len(set(order)) == sum(task.num_seeds for task in tasks.TASKS)
    first = order[: len(tasks.TASKS) * tasks.NUM_SEEDS]
    assert {seed for _, seed in first} == set(range(tasks.NUM_SEEDS))
    assert [seed for _, seed in first] == sorted(seed for _, seed in first)
    assert in_turn(tasks.TASKS, 1) == [(task, 0) for task in tasks.TASKS]


def test_the_critical_difference_is_that_of_published_tables():
    # q of 0.05 over the square root of 2, by number of methods: Demsar 2006, table 5
    for number, quantile in {2: 1.960, 5: 2.728, 10: 3.164}.items():
        expected = quantile * math.sqrt(number * (number + 1) / (6 * 30))
        assert critical_difference(number, 30) == pytest.approx(expected, rel=1e-3)


def test_ranks_and_losses_of_made_up_rows(tmp_path):
    rows = Rows(tmp_path / "suite.jsonl", tmp_path)
    names = [OURS, "MAP", "vbll"]
    scores = RANDOM.normal(size=(5, 3, 20)) + np.array([0.0, -3.0, 0.0])[:, None]
    for number, table in enumerate(tasks.TABLES):
        for name, values in zip(names, scores[number], strict=True):
            for seed, value in enumerate(values):
                rows.add(row(table, name, seed, nll=value, rmse=2.0, crps=1.0, coverage=0.9))
    found = cells(rows, tasks.TASKS)
    ranks = ranked(found, "NLL, all tasks")
    means = scores.mean(-1)
    statistic = friedmanchisquare(*means.T).statistic  # of the same ranks, by SciPy
    average = np.array([ranks.mean[name] for name in names])
    assert 12 * 5 / (3 * 4) * ((average - 2) ** 2).sum() == pytest.approx(statistic)
    lost = losses.table(found).rows
    by_hand = [
        (t, i) for t in range(5) for i in (1, 2)
        if (gap := scores[t, 0] - scores[t, i]).mean() > gap.std(ddof=1) / 20**0.5
    ]  # fmt: skip
    assert {line["task"] for line in lost} == {tasks.TABLES[t] for t, _ in by_hand}
    assert {line["measure"] for line in lost} == {"NLL"}  # a tie is no loss
    assert len(by_hand) == sum(int(line["count"][0]) for line in lost)


# ---- all of it, small


@pytest.mark.slow
def test_every_method_that_is_there_runs_small_and_rows_can_be_run_again(tmp_path):
    names = [m.name for m in METHODS if m.peer in (None, "vbll")]  # the others take seconds to import
    options = Options(small=True, num_runs=1, results=tmp_path, methods=tuple(names))
    report = suite.run(options)
    rows = [json.loads(line) for line in (tmp_path / "suite.jsonl").read_text().splitlines()]
    assert not [line for line in rows if "failure" in line]
    is_there = failure_of_install("vbll", may_install=False) is None
    assert {line["method"] for line in rows} == {name for name in names if name != "vbll" or is_there}
    assert {line["seed"] for line in rows} == {0, 1}
    assert report.tables[0].title == "Where we lose"
    assert (tmp_path / "suite.png").stat().st_size > 0
    kept = (tmp_path / "suite.jsonl").read_text()
    suite.run(options)  # nothing is missing: nothing is fitted
    assert (tmp_path / "suite.jsonl").read_text() == kept
    name = id_of("small", "MC dropout", 1)
    one = suite.run(Options(small=True, num_runs=1, results=tmp_path, again=name))
    values = {line["measure"]: (line["kept"], line["again"]) for line in one.tables[0].rows}
    assert values["nll"][1] == pytest.approx(values["nll"][0], rel=1e-4)
    assert values["split"][0] == values["split"][1]
    with pytest.raises(ValueError, match="id of a row"):
        suite.run(Options(small=True, num_runs=1, results=tmp_path, again="no such row"))
