"""Reports of every kind of target, with little and with bad data; their numbers are those of the library's own functions."""

import json
import math
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from report_cases import HOSTILE, Case, case

import bll_pyro as bll
from bll_pyro.reporting import Report

KINDS = ("classes", "ordinal", "binary", "multilabel", "values", "counts")
KINDS += ("robust values", "several values", "uneven noise", "spread counts")


@pytest.fixture(scope="module")
def classes() -> Case:
    return case("classes")


@pytest.fixture(scope="module")
def full(classes: Case) -> Report:
    """A report with everything."""
    given = {"train": classes.train, "held_out": classes.held_out, "unknown": 6 * classes.test[0]}
    return bll.report(classes.fit, classes.test, None, **given)


class Balanced(HTMLParser):
    """Whether every element that is opened is closed."""

    VOID = ("meta", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(report: Report) -> None:
    """Well-formed, self-contained, JSON without NaN, and each id once."""
    parser = Balanced()
    parser.feed(report.html)
    assert not parser.open
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', report.html)
    ids = re.findall(r'\sid="([^"]+)"', report.html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', report.html)) <= set(ids)
    assert json.loads(report.json) == report.numbers
    for picture in re.findall(r'<div class="picture" role="img" aria-label="([^"]*)"', report.html):
        assert len(picture) > 40 and "nan" not in picture


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_target(kind: str) -> None:
    given = case(kind)
    report = bll.report(given.fit, given.test, None)
    check(report)
    sections = re.findall(r"<h2[^>]*>([^<]+)", report.html)
    assert sections[:3] == ["Summary", "Quality", "Calibration"]
    metrics = report.metrics
    prediction = given.fit.predict(given.test[0])
    nll = -float(prediction.log_prob(given.test[1]).double().mean())
    assert metrics["nll"] == pytest.approx(nll, rel=1e-5) and metrics["nll_se"] > 0
    total = prediction.total.double().reshape(len(prediction), -1).sum(1).mean()
    assert metrics["total"] == pytest.approx(float(total), rel=1e-5)
    assert metrics["total"] == pytest.approx(metrics["aleatoric"] + metrics["epistemic"], rel=1e-5)
    if kind in ("classes", "ordinal", "binary", "multilabel"):
        assert metrics["ece"] == pytest.approx(bll.metrics.ece(prediction.probs, given.test[1]), rel=1e-5)
    else:
        assert metrics["rmse"] == pytest.approx(bll.metrics.rmse(prediction.mean, given.test[1]), rel=1e-5)
    if kind in ("values", "counts", "ordinal"):
        lower, upper = (end.float() for end in prediction.interval(0.8))
        inside = (lower <= given.test[1]) & (given.test[1] <= upper)
        assert metrics["coverage_80"] == pytest.approx(float(inside.double().mean()), abs=0.011)


def test_everything_together(full: Report, classes: Case) -> None:
    check(full)
    metrics, x, y = full.metrics, *classes.test
    found = bll.evaluate(classes.fit, x, y, train=classes.train, held_out=classes.held_out)
    assert metrics["plain_nll"] == pytest.approx(found.scores["plain head"]["NLL"], rel=1e-5)
    assert metrics["plain_calibrated_ece_se"] == pytest.approx(
        found.standard_errors["plain head, calibrated"]["ECE"], rel=1e-5
    )
    gain, error = found.gains["Bayesian"]
    assert (metrics["nll_gain"], metrics["nll_gain_se"]) == pytest.approx((gain, error), rel=1e-5)
    diagnosis = bll.diagnose(classes.fit, *classes.train)
    assert full.numbers["sections"]["checks"]["verdict"] == str(diagnosis.verdict)
    assert metrics["checks_look"] == sum(check.verdict == "look" for check in diagnosis)
    detector = bll.ood.Detector().calibrate(classes.fit, classes.held_out[0], train=classes.train)
    assert metrics["ood_threshold"] == pytest.approx(detector.threshold, rel=1e-5)
    assert metrics["ood_alarms"] == pytest.approx(float(detector.detect(x).is_ood.double().mean()), rel=1e-5)
    places = [one["grade"] for one in full.numbers["summary"]]
    assert places == sorted(places, key=["wrong", "look", "ok", None].index)  # verdicts first


def test_rows_to_look_at(full: Report, classes: Case) -> None:
    prediction, y = classes.fit.predict(classes.test[0]), classes.test[1]
    shown = full.numbers["sections"]["rows"]
    assert shown["most_uncertain"] == prediction.total.argsort(descending=True)[:8].tolist()
    wrong = (prediction.label != y).nonzero().flatten()
    order = wrong[prediction.confidence[wrong].argsort(descending=True)]
    assert shown["confidently_wrong"] == order[:8].tolist()


def test_every_name_of_a_metric_is_kept(full: Report) -> None:
    """``bll check`` in someone's pipeline asks for these."""
    kept = """accuracy accuracy_se nll nll_se brier ece ece_se nll_gain nll_gain_se plain_nll calibrated_nll plain_calibrated_ece
        auroc_epistemic total aleatoric epistemic epistemic_share ood_alpha ood_alarms ood_caught ood_auroc ood_threshold
        checks_ok checks_look checks_wrong converged seconds elbo_per_row num_rows num_training_rows num_features"""
    assert set(kept.split()) <= set(full.metrics)


def test_hostile_and_long_names_are_text(classes: Case) -> None:
    report = bll.report(
        classes.fit,
        classes.test,
        None,
        class_names=[HOSTILE, "b" * 500, ""],
        row_names=[HOSTILE] * 100,
        title=HOSTILE,
    )
    check(report)
    assert "<script>alert" not in report.html and report.html.count("<script>") == 1
    assert "b" * 61 not in report.html
    assert report.numbers["sections"]["quality"]["classes"][1]["name"] == "b" * 500


def test_no_targets(classes: Case) -> None:
    report = bll.report(classes.fit, classes.test[0], None)
    check(report)
    assert "nll" not in report.metrics and report.metrics["total"] > 0
    assert "without targets" in report.html and 'id="quality"' not in report.html


@pytest.mark.parametrize("kind", ["classes", "multilabel", "values", "counts"])
def test_one_row(kind: str) -> None:
    given = case(kind)
    report = bll.report(given.fit, (given.test[0][:1], given.test[1][:1]), None)
    check(report)
    assert report.metrics["nll_se"] is None and math.isfinite(report.metrics["nll"])


def test_a_class_without_rows(classes: Case) -> None:
    x, y = classes.test
    report = bll.report(classes.fit, (x[y != 1], y[y != 1]), None)
    check(report)
    rows = report.numbers["sections"]["quality"]["classes"]
    assert rows[1]["rows"] == 0 and rows[1]["recall"] is None and rows[0]["recall"] is not None
    assert "A class without rows has no recall." in report.html


def test_many_classes_are_cut_with_a_note() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(1300, 3, generator=generator), torch.arange(1300) % 1200
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bll.FitWarning)
        fit = bll.fit(
            bll.LastLayer(bll.likelihoods.Categorical(1200)),
            (x, y),
            inference=bll.SVI(num_epochs=1),
            calibration=None,
        )
    report = bll.report(fit, (x, y), None)
    check(report)
    assert "60 of 1,200 classes are shown; report.json has all." in report.html
    assert len(report.numbers["sections"]["quality"]["classes"]) == 1200
    assert len(report.html) < 1e6


def test_an_infinite_nll_is_no_number(classes: Case) -> None:
    given = case("values")
    x, y = given.test
    report = bll.report(given.fit, (x, torch.where(torch.arange(len(y)) == 3, 1e30, y)), None)
    check(report)
    assert report.metrics["rmse"] > 1e20


def test_a_loaded_fit(full: Report, classes: Case, tmp_path: Path) -> None:
    classes.fit.save(tmp_path / "model")
    report = bll.report(bll.load(tmp_path / "model"), classes.test, tmp_path / "report.html")
    assert report.metrics["nll"] == pytest.approx(full.metrics["nll"], rel=1e-6)
    assert json.loads((tmp_path / "report.json").read_text()) == report.numbers
    assert (tmp_path / "report.html").read_text() == report.html
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "report.html", "report.json"]


def test_a_comparison(classes: Case) -> None:
    other = bll.fit(bll.LastLayer(bll.likelihoods.Categorical(3)), classes.train, inference=bll.Laplace())
    comparison = bll.compare({"diagonal": classes.fit, "<laplace>": other}, classes.train)
    report = bll.report(classes.fit, classes.test, None, comparison=comparison)
    check(report)
    assert "&lt;laplace&gt;" in report.html
    assert set(report.numbers["sections"]["comparison"]["fits"]) == {"diagonal", "<laplace>"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "report.txt"}, "expected a name that ends in .html, got 'report.txt'"),
        ({"path": "missing/report.html"}, "expected a folder that is there, got .*missing; make it first"),
        ({"path": "folder.html"}, "expected a file, got the folder .*folder.html"),
        ({"items": ["a"]}, r"report\(items=...\): expected one for each of the 100 rows, got 1"),
        ({"row_names": ["a"]}, r"report\(row_names=...\): expected one for each of the 100 rows, got 1"),
        ({"class_names": ["a"]}, r"report\(class_names=...\): expected one for each of the 3 classes, got 1"),
    ],
)
def test_wrong_arguments(
    classes: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ValueError, match=message):
        bll.report(classes.fit, classes.test, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_an_earlier_report_stays_when_the_disk_is_full(
    full: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("earlier")

    def no_space(self: Path, text: str, **_: object) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(OSError, match="No space"):
        full.save(path)
    assert path.read_text() == "earlier" and [one.name for one in tmp_path.iterdir()] == ["report.html"]
