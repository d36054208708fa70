"""The benchmarks: their arithmetic against other sources, and every one of them run small, so that none rots."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from sklearn.metrics import roc_auc_score
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchmetrics.functional.classification import multiclass_calibration_error

from benchmarks import predict, scores
from benchmarks.__main__ import NAMES
from benchmarks.competitors import METHODS, REFERENCE, STEPS, batches, handwritten, map_head, plain_pyro
from benchmarks.data import made_up
from benchmarks.fresh_process import measure, peak_bytes
from benchmarks.harness import Spread, Timing, growth_exponent, interleave, ratio, repeated, repeated_for
from benchmarks.launching import launch
from benchmarks.options import Options
from benchmarks.pixels import Done
from benchmarks.report import Report, Table, Target

ROOT = Path(__file__).resolve().parent.parent
ALONE = (
    "first_fit",
    "joint",
    "choose",
    "precision",
    "bayesianize",
    "recommend",
    "practice",
    "compare_command",
    "deployed",
    "ranks",
    "outputs",
    "extraction",
    "store_size",
    "capacity",
)  # about one fit beside another of ours


@pytest.fixture
def seeded():
    """The competitors draw from torch's global random state, as their users' scripts do; put it back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# ---- harness


@pytest.mark.slow
def test_interleave_takes_turns_and_starts_each_round_with_another():
    order: list[str] = []

    def note(name: str):
        def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    timings = interleave({name: note(name) for name in "abc"}, 3, num_warm_ups=1)
    assert "".join(order) == "cab" + "abc" + "bca" + "cab"
    assert timings["a"].seconds == (4.0, 9.0, 11.0)  # the warm-up round is not among them


def test_ratio_is_of_medians_and_its_quartiles_of_rounds():
    mine, theirs = Timing((2.0, 4.0, 9.0)), Timing((1.0, 2.0, 3.0))
    assert ratio(mine, theirs) == Spread(2.0, 2.0, 2.5)
    with pytest.raises(ValueError, match="same rounds"):
        ratio(mine, Timing((1.0,)))


def test_repeated_counts_calls():
    calls: list[int] = []
    assert repeated(lambda: calls.append(0), 7)() < 1.0
    assert len(calls) == 7
    calls.clear()
    repeated_for(lambda: calls.append(0), 10.0, max_calls=5)()
    assert len(calls) == 1 + 1 + 5  # one to warm up, one to judge, and no more than were allowed


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_growth_exponent_of_a_power_law(power):
    sizes = [10.0, 30.0, 100.0, 300.0, 1000.0]
    assert growth_exponent(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power)


def test_growth_exponent_is_not_fooled_by_fixed_costs():
    sizes = [float(2**i) for i in range(9)]
    costs = [50.0 + size**2 / 100.0 for size in sizes]  # flat at first
    slopes = np.diff(np.log(costs)) / np.diff(np.log(sizes))
    assert growth_exponent(sizes, costs) > slopes[:4].max()


# ---- a process of its own


TESTS_ON_PATH = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_that_of_the_child_alone(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", TESTS_ON_PATH["PYTHONPATH"])
    ballast = bytearray(os.urandom(1)) * (400 * 2**20)  # resident here; no part of what the child needs
    outcome = measure("memory_cases:hold", {"num_bytes": 100 * 2**20})
    assert outcome.failure is None
    assert peak_bytes() > len(ballast)
    assert outcome.value == 100 * 2**20
    assert 99 * 2**20 <= outcome.peak_bytes - outcome.before_bytes < 130 * 2**20
    assert outcome.peak_bytes < 200 * 2**20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("arguments", "limits", "failure"),
    [
        ({"num_bytes": 300 * 2**20, "seconds": 20.0}, {"memory_limit": 200 * 2**20}, "passes 0.195 GiB"),
        ({"num_bytes": 1, "seconds": 20.0}, {"time_limit": 1.0}, "passes 1 s"),
        ({"num_bytes": -1}, {}, "ValueError: negative count"),
    ],
)
def test_a_process_that_goes_too_far_or_fails_says_so(monkeypatch, arguments, limits, failure):
    monkeypatch.setenv("PYTHONPATH", TESTS_ON_PATH["PYTHONPATH"])
    assert measure("memory_cases:hold", arguments, **limits).failure == failure


def test_ranks_are_interpreters_of_their_own(monkeypatch):
    """What each says comes back in their order; of one that fails, its exit code."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), TESTS_ON_PATH["PYTHONPATH"]]))
    said = launch("launched_cases", {"text": "a", "fails": "none"}, 2)
    assert said == [[0, 2, "a"], [1, 2, "a"]]
    with pytest.raises(RuntimeError, match=r"ranks of launched_cases failed: \[3\]"):
        launch("launched_cases", {"text": "a", "fails": "1"}, 2)


# ---- scores


def test_scores_agree_with_other_libraries():
    generator = torch.Generator().manual_seed(1)
    probs = torch.randn(500, 4, generator=generator).mul(2).softmax(-1)
    targets = torch.randint(4, (500,), generator=generator)
    ece = multiclass_calibration_error(probs, targets, 4, n_bins=15, norm="l1").item()
    assert scores.expected_calibration_error(probs, targets) == pytest.approx(ece, abs=1e-6)
    known, unknown = (
        torch.randint(9, (300,), generator=generator),
        torch.randint(3, 12, (200,), generator=generator),
    )
    truth = np.r_[np.zeros(300), np.ones(200)]
    expected = roc_auc_score(truth, torch.cat([known, unknown]).numpy())  # whole numbers: many ties
    assert scores.auroc(known.float(), unknown.float()) == pytest.approx(expected, abs=1e-12)
    assert scores.nll(probs, targets) == pytest.approx(
        torch.nn.functional.nll_loss(probs.double().log(), targets).item()
    )
    assert scores.accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75


def test_mutual_information_of_certain_and_of_opposite_draws():
    same = torch.tensor([[[0.3, 0.7]], [[0.3, 0.7]]])
    opposite = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert scores.mutual_information(same).item() == pytest.approx(0.0, abs=1e-7)
    assert scores.mutual_information(opposite).item() == pytest.approx(math.log(2))


# ---- data and batches


def test_made_up_data_repeat_and_can_be_learned():
    one, two = made_up(2000, 12, 3, num_test_rows=500), made_up(2000, 12, 3, num_test_rows=500)
    assert torch.equal(one.train_features, two.train_features)
    assert torch.equal(one.train_targets, two.train_targets)
    assert (one.train_features >= 0).all()
    weight, bias = map_head.map_by_lbfgs(one.train_features, one.train_targets, 3)
    hits = (one.test_features @ weight.mT + bias).argmax(-1) == one.test_targets
    share = hits.double().mean().item()
    # far above the largest class, and short of certain: labels are drawn, not chosen
    assert share > one.test_targets.bincount().max().item() / 500 + 0.2
    assert share < 0.99


def test_batches_cover_an_epoch():
    generator = torch.Generator().manual_seed(0)
    parts = list(batches.shuffled(10, 4, 2, generator))
    assert [len(part) for part in parts] == [4, 4, 2, 4, 4, 2]
    assert torch.cat(parts[:3]).sort().values.tolist() == list(range(10))
    endless = batches.endless(10, 4, generator)
    assert {len(next(endless)) for _ in range(20)} == {4}
    with pytest.raises(ValueError, match="batch_size <= num_rows"):
        next(batches.endless(3, 4, generator))


# ---- competitors


def _layer_with_values() -> handwritten.MeanField:
    layer = handwritten.MeanField(5, 3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5 - 0.5)
    return layer


@pytest.mark.usefixtures("seeded")
def test_handwritten_kl_is_that_of_torch_distributions():
    layer = _layer_with_values()
    features, targets = torch.zeros(4, 5), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        # without features the outputs are the bias, and a bias without spread and mean leaves log 3
        layer.bias_mean.zero_()
        layer.bias_log_variance.fill_(-200.0)
        found = (layer.loss(features, targets, 4) - math.log(3)) * 4
        weights = torch.distributions.Normal(layer.mean, (0.5 * layer.log_variance).exp())
        prior = torch.distributions.Normal(0.0, 1.0)
        expected = torch.distributions.kl_divergence(weights, prior).sum() + 3 * 0.5 * (200.0 - 1.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.usefixtures("seeded")
@pytest.mark.slow
def test_handwritten_and_pyro_have_the_same_elbo():
    """Output-space draws with closed-form KL, and Pyro's weight draws: one number, within Monte-Carlo error."""
    layer = _layer_with_values()
    features, targets = torch.randn(6, 5), torch.randint(3, (6,))
    num_rows, num_draws = 30, 3000
    with torch.no_grad():
        output_space = (
            torch.stack([layer.loss(features, targets, num_rows) for _ in range(num_draws)]) * num_rows
        )
    with pyro.get_param_store().scope():
        model = plain_pyro.LinearClassifier(5, 3, num_rows)
        guide = AutoDiagonalNormal(model)
        guide(features, targets)  # makes its parameters
        with torch.no_grad():
            guide.loc.copy_(torch.cat([layer.mean.flatten(), layer.bias_mean]))
            guide.scale = torch.cat([layer.log_variance.flatten(), layer.bias_log_variance]).mul(0.5).exp()
            loss = Trace_ELBO()
            weight_space = torch.tensor(
                [loss.loss(model, guide, features, targets) for _ in range(num_draws)]
            )
    error = (output_space.var() / num_draws + weight_space.var() / num_draws).sqrt().item()
    assert abs(output_space.mean().item() - weight_space.mean().item()) < 4 * error
    assert error < 0.05 * output_space.mean().item()  # else the line above would say nothing


def test_map_heads_find_the_mode():
    task = made_up(1500, 6, 3)
    data = (task.train_features, task.train_targets, 3)

    def log_joint(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        likelihood = dist.Categorical(logits=task.train_features @ weight.mT + bias).log_prob(
            task.train_targets
        )
        return likelihood.sum() + sum(dist.Normal(0.0, 1.0).log_prob(p).sum() for p in (weight, bias))

    mode = tuple(p.clone().requires_grad_() for p in map_head.map_by_lbfgs(*data))
    highest = log_joint(*mode)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(highest, mode)]) / 1500
    assert gradient.abs().max() < 1e-4, gradient
    # Adam comes nearer with every pass: nats a row that are missing
    missing = [
        (highest - log_joint(*map_head.map_by_adam(*data, 0, num_epochs=number))).item() / 1500
        for number in (20, 100, 500)
    ]
    assert missing[0] > missing[1] > missing[2] > -1e-6
    assert missing[2] < 0.01


@pytest.mark.usefixtures("seeded")
def test_reference_for_prediction_errors_is_the_average_over_weights():
    """For two classes E[sigmoid(d)] with Gaussian d, by quadrature."""
    layer = handwritten.MeanField(4, 2)
    with torch.no_grad():
        layer.mean.normal_()
        layer.log_variance.uniform_(-2.0, 0.0)
    rows = torch.randn(3, 4)
    arguments = (
        layer.mean,
        (0.5 * layer.log_variance).exp(),
        layer.bias_mean,
        (0.5 * layer.bias_log_variance).exp(),
    )
    found = predict.mean_field_reference(*(a.detach() for a in arguments))(rows, 40_000)
    with torch.no_grad():
        mean, variance = (t.double() for t in layer.outputs(rows))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    gap, scale = (mean[:, 0] - mean[:, 1]).numpy(), variance.sum(-1).sqrt().numpy()
    expected = (weights / (1 + np.exp(-(gap[:, None] + scale[:, None] * nodes)))).sum(-1) / weights.sum()
    assert np.abs(found[:, 0].numpy() - expected).max() < 4 * 0.5 / 40_000**0.5


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(
    "method",  # of those that are installed (benchmarks/requirements.txt)
    [m for m in STEPS if m.is_available and "torch.compile" not in m.name],
    ids=lambda m: m.name,
)
@pytest.mark.filterwarnings("ignore")  # competitors' own deprecations
def test_steps_change_what_they_train(method):
    task = made_up(100, 6, 3)
    run = method.step(task.train_features, task.train_targets, 3, 20, 0)
    for _ in range(12):  # more than an epoch
        run()
    moved: list[torch.Tensor] = []
    handle = register_optimizer_step_post_hook(
        lambda optimizer, *_: moved.extend(
            p.grad for group in optimizer.param_groups for p in group["params"]
        )
    )
    try:
        run()
    finally:
        handle.remove()
    assert moved
    assert any(g is not None and bool(g.abs().sum() > 0) for g in moved)


def test_names_of_methods_are_unique_and_the_reference_is_one_of_them():
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names)
    assert REFERENCE in METHODS
    assert Options(methods=("pyro",)).keeps("plain Pyro")
    assert not Options(methods=("vbll",)).keeps("plain Pyro")


def test_a_training_that_was_measured_is_not_measured_again(tmp_path):
    calls: list[str] = []

    def measure(name: str) -> dict[str, float]:
        calls.append(name)
        return {"nll": 0.25 + len(calls)}

    path = tmp_path / "pixels.jsonl"
    for again, expected in (([], ["plain", "joint"]), ([], []), (["joint"], ["joint"])):
        calls.clear()
        done = Done(path, again)
        found = [done.get(lambda: measure(name), name, 2e-3, "seed 0") for name in ("plain", "joint")]  # noqa: B023
        assert calls == expected
        assert found[0] == {"nll": 1.25}
    assert len(path.read_text().splitlines()) == 2


# ---- reports


def test_report_shows_what_was_met_and_missed(tmp_path):
    table = Table(
        "Sizes", {"a": "first", "b": "second"}, [{"a": 1.23456, "b": Spread(1.0, 0.5, 2.0), "hidden": [1]}]
    )
    targets = [Target("fast", 1.3, 1.2), Target("good", 0.9, 0.8, ">="), Target("later", None, 1.0)]
    report = Report("sample", "A sample", [table], targets, ["a note"])
    environment = {
        "date": "2026-01-01", "processor": "p", "cores": 2, "instructions": "i", "memory_gib": 4.0, "threads": 1,
        "accelerator": "none", "python": "3", "versions": {"torch": "2"}, "load_before": 0.1,
    }  # fmt: skip
    data, text = report.write(tmp_path, environment, {"small": True})
    assert "| 1.235 | 1 (0.5 to 2) |" in text.read_text()
    assert [t["met"] for t in json.loads(data.read_text())["targets"]] == [False, True, None]
    assert "hidden" not in text.read_text()
    assert json.loads(data.read_text())["tables"][0]["rows"][0]["hidden"] == [1]


# ---- all of it, small


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_benchmark_runs(tmp_path):
    paths = [
        str(ROOT / ".bench-packages"),
        os.environ.get("PYTHONPATH", ""),
    ]  # competitors, where they are installed
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--small", "--threads", "1", "--results", str(tmp_path)],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        written = json.loads((tmp_path / f"{name}.json").read_text())
        has_load = (ROOT / ".bench-packages" / "locust").is_dir()
        if (name == "cuda" and not torch.cuda.is_available()) or (name == "service" and not has_load):
            assert "skipped" in written["notes"][0]
            continue
        rows = [row for table in written["tables"] for row in table["rows"]]
        named = [row.get("method", row.get("work", "")) for row in rows]
        assert rows and (name in ALONE or any("bll_pyro" in row for row in named)), name
        assert any("bll_pyro" not in row for row in named), name
        assert [row for row in rows if row.get("outcome", "done") != "done"] == [], name
        assert written["targets"], name
        text = (tmp_path / f"{name}.md").read_text()
        for picture in text.split("](")[1:]:
            assert (tmp_path / picture.partition(")")[0]).stat().st_size > 0
        assert str(ROOT) not in text + json.dumps(written), f"{name} gives away a path of this machine"
