"""The main job and its command line: what is written, what the figures are, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as read

import bll_pyro as bll
from bll_pyro import cli
from bll_pyro.demo import heads as heads_module
from bll_pyro.demo.data import NOISE_SCALE, load_digits
from bll_pyro.demo.folder import replaced_when_complete
from bll_pyro.demo.heads import train_heads
from bll_pyro.demo.job import CONTENTS, PICTURES
from bll_pyro.demo.table import evaluate_head

HEADS = ["softmax", "softmax_temperature", "bayesian_two_stage", "bayesian_joint"]
PROBABILITIES = {"accuracy", "nll", "ece", "brier"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick form, through the command line, in place of an earlier run."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    out.mkdir()
    (out / "metrics.json").write_text("of an earlier run")
    told: set[str] = set()
    with bll.observe(callbacks=[lambda record: told.add(f"{record.run.name}: {record.stage}")]):
        assert cli.main(["demo", "--quick", "--out", str(out), "--seed", "3"]) == 0
    for stage in ("Stage 1: network and softmax head", "Jointly: network and Bayesian last layer"):
        assert f"demo: {stage}/joint training" in told
    return out


@pytest.fixture(scope="module")
def metrics(results: Path) -> dict:
    return json.loads((results / "metrics.json").read_text())


@pytest.mark.slow
def test_every_result_is_there_and_nothing_else(results: Path) -> None:
    assert sorted(entry.name for entry in results.iterdir()) == sorted(CONTENTS)
    assert [entry.name for entry in results.parent.iterdir()] == ["demo"]


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.slow
def test_pictures(results: Path, name: str) -> None:
    """A PNG, large enough to read, that is not blank."""
    from matplotlib.image import imread

    pixels = imread(results / name, format="png")
    height, width = pixels.shape[:2]
    assert 600 <= width <= 1400 and 300 <= height <= 700
    assert pixels[..., :3].std() > 0.05


@pytest.mark.slow
def test_metrics_name_every_head_and_score(metrics: dict) -> None:
    assert list(metrics["heads"]) == HEADS
    for name, head in metrics["heads"].items():
        assert set(head) == PROBABILITIES | {
            "title", "auroc_entropy", "auroc_epistemic", "auroc_output_variance", "noisy", "seconds"
        }  # fmt: skip
        assert set(head["noisy"]) == PROBABILITIES
        assert all(0 <= head[score] <= 1 for score in ("accuracy", "ece", "auroc_entropy"))
        point = name.startswith("softmax")
        assert (head["auroc_epistemic"] is None) == (head["auroc_output_variance"] is None) == point
    assert metrics["seed"] == 3 and metrics["quick"] is True
    assert metrics["rows"] == {"train": 150, "validation": 150, "test": 150, "noisy": 150, "unknown": 150}


@pytest.mark.slow
def test_saved_model_gives_the_figures_of_its_head(results: Path, metrics: dict) -> None:
    fit = bll.load(results / "model")
    digits = load_digits(seed=3, quick=True)
    test, unknown = fit.predict(digits.test[0]), fit.predict(digits.unknown[0])
    head = metrics["heads"]["bayesian_joint"]
    assert (test.label == digits.test[1]).double().mean().item() == pytest.approx(head["accuracy"], abs=1e-12)
    assert -test.log_prob(digits.test[1]).mean().item() == pytest.approx(head["nll"], rel=1e-4)
    # the area under the ROC curve is the share of pairs in the right order
    pairs = torch.sign(unknown.epistemic[:, None] - test.epistemic)
    assert (pairs.double().mean().item() + 1) / 2 == pytest.approx(head["auroc_epistemic"], abs=1e-3)


@pytest.mark.slow
def test_posterior_holds_the_saved_model(results: Path) -> None:
    import xarray as xr

    fit = bll.load(results / "model")
    with xr.open_datatree(results / "posterior.nc") as tree:
        weight = tree["posterior"]["weight"]
        assert weight.sizes["chain"] == 1 and weight.sizes["draw"] == 1000
        assert {"posterior_predictive", "log_likelihood", "observed_data"} <= set(tree.children)
        assert tree["observed_data"].sizes["obs"] == 150
        draws = fit.posterior.sample(20_000)["weight"][0].double().numpy()
        # the mean of 1,000 draws has an error of scale / sqrt(1000); of 784 weights the worst is below five of those
        gap = (weight.mean(("chain", "draw")).values - draws.mean(0)) / draws.std(0)
        assert np.abs(gap).max() < 5 / 1000**0.5


def enlarged_by_numpy(images: np.ndarray) -> np.ndarray:
    """Bilinear enlargement ``[N, 8, 8]`` to ``[N, 32, 32]``, one axis after the other; pixels are areas."""
    old, new = np.arange(8) + 0.5, (np.arange(32) + 0.5) / 4
    wide = np.apply_along_axis(lambda line: np.interp(new, old, line), 2, images)
    return np.apply_along_axis(lambda line: np.interp(new, old, line), 1, wide)


def test_digits_are_split_without_overlap_and_follow_the_seed() -> None:
    digits, again, other = load_digits(0), load_digits(0), load_digits(1)
    assert digits.num_rows == {"train": 866, "validation": 216, "test": 361, "noisy": 361, "unknown": 354}
    parts = [digits.train, digits.validation, digits.test, digits.unknown]
    rows = torch.cat([images.flatten(1) for images, _ in parts]).numpy()
    # every image once: sorted by all their pixels, the parts together are the source
    every = enlarged_by_numpy(read().images / 16).reshape(1797, -1)
    assert np.allclose(rows[np.lexsort(rows.round(4).T)], every[np.lexsort(every.round(4).T)], atol=1e-5)
    assert {int(k) for k in torch.cat([y for _, y in parts[:3]])} == set(range(8))
    assert {int(k) for k in digits.unknown[1]} == {8, 9}
    assert torch.equal(digits.noisy[0], again.noisy[0]) and torch.equal(digits.train[1], again.train[1])
    assert not torch.equal(digits.train[1], other.train[1])
    assert torch.equal(digits.noisy[1], digits.test[1])
    grey = (digits.test[0] > 0.45) & (digits.test[0] < 0.55)  # where hardly any noise is cut off
    assert 0.3 * NOISE_SCALE < (digits.noisy[0] - digits.test[0])[grey].std() < NOISE_SCALE


def stop_half_way(out: Path, error: BaseException) -> None:
    with replaced_when_complete(out, ["a"]) as folder:
        (folder / "a").write_text("half")
        raise error


def test_folder_appears_only_when_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(KeyboardInterrupt):
        stop_half_way(out, KeyboardInterrupt())
    assert list((tmp_path / "deep").iterdir()) == []
    with replaced_when_complete(out, ["a"]) as folder:
        (folder / "a").write_text("first")
        assert not out.exists()
    assert (out / "a").read_text() == "first"


def test_an_interrupted_run_leaves_the_earlier_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with replaced_when_complete(out, ["a"]) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(ZeroDivisionError):
        stop_half_way(out, ZeroDivisionError())
    assert (out / "a").read_text() == "first"

    rename, renamed = Path.rename, []

    def interrupted(path: Path, target: Path) -> Path:
        """Move the earlier folder away, then fail to put the new one in its place."""
        renamed.append(path.name)
        if len(renamed) == 2:
            raise OSError("disk gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(OSError, match="disk gone"), replaced_when_complete(out, ["a"]) as folder:
        (folder / "a").write_text("second")
    assert renamed == ["out", "new", "earlier"]
    assert (out / "a").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def refuse_to_train(*_: object, **__: object) -> None:
    raise AssertionError("training began before the input was checked")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda out: (out.mkdir(), (out / "thesis.tex").write_text("x")), r"also holds thesis\.tex; choose another"),
        (lambda out: out.write_text("x"), r"expected a folder.*which is not; choose another"),
        (lambda out: out.symlink_to(out.parent), r"expected a folder.*which is not; choose another"),
    ],
)  # fmt: skip
def test_other_folders_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, make: object, message: str
) -> None:
    monkeypatch.setattr("bll_pyro.demo.job.train_heads", refuse_to_train)
    out = tmp_path / "out"
    make(out)  # type: ignore[operator]
    assert cli.main(["demo", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert re.fullmatch(rf"bll demo: error: out: .*{message}.*\n", said.err)
    assert out.exists() and [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_bad_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("bll_pyro.demo.job.train_heads", refuse_to_train)
    assert cli.main(["demo", "--seed", "-1", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == (
        "bll demo: error: seed: expected a whole number from 0 to 2**32 - 1, got -1; use for example 0\n"
    )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="got -1"):
        cli.main(["demo", "--seed", "-1", "--out", str(tmp_path / "out"), "--debug"])


@pytest.mark.slow
def test_quality_of_the_bayesian_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars that the full demo has to clear, after half of its epochs: 97 % right, unknown digits told apart at 0.96."""
    monkeypatch.setattr(heads_module, "NUM_EPOCHS", heads_module.NUM_EPOCHS // 2)
    digits = load_digits(0)
    heads = train_heads(digits, seed=0)
    for name in ("bayesian_two_stage", "bayesian_joint"):
        scores = evaluate_head(heads[name], digits).scores
        assert scores["accuracy"] >= 0.97
        assert scores["auroc_epistemic"] >= 0.96
    softmax, joint = (evaluate_head(heads[name], digits) for name in ("softmax", "bayesian_joint"))
    assert joint.scores["nll"] < 0.03
    assert joint.noisy_scores["ece"] < softmax.noisy_scores["ece"]
