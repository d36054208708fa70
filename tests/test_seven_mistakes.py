"""The page of the seven mistakes: the library is right, and each mistake wrong, by a stated margin."""

import importlib.util
import math
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "explanations"


@pytest.fixture(scope="module")
def mistakes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seven_mistakes", FOLDER / "seven_mistakes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_averaged_logits(mistakes: ModuleType) -> None:
    """The library's bound is below the evidence and near it; the mistake is above, with the spread of the prior."""
    found = mistakes.averaged_logits()
    evidence, scale = found["truth"]["log evidence or bound"], found["truth"]["scale"]
    assert evidence - 0.15 < found["library"]["log evidence or bound"] < evidence
    assert found["library"]["scale"] == pytest.approx(scale, rel=0.05)
    assert found["mistake"]["log evidence or bound"] > evidence + 0.5
    assert found["mistake"]["scale"] == pytest.approx(1.0, rel=0.1) and scale < 0.5


def test_kl_over_batch(mistakes: ModuleType) -> None:
    """The library has the exact spread at every batch size; the mistake is too wide by the root of N / B."""
    found = mistakes.kl_over_batch()
    for size, exact in found["truth"].items():
        assert found["library"][size] == pytest.approx(exact, rel=0.03)
        assert found["mistake"][size] == pytest.approx(exact * math.sqrt(1000 / size), rel=0.05)
        assert found["mistake"][size] > 2 * exact


def test_same_weights(mistakes: ModuleType) -> None:
    """256 points are within 5% of quadrature; weights that are repeated have no epistemic uncertainty."""
    found = mistakes.same_weights()
    assert found["library"] == pytest.approx(found["truth"], rel=0.05)
    assert found["truth"] > 0.01 and abs(found["mistake"]) < 1e-6


def test_fixed_threshold(mistakes: ModuleType) -> None:
    """Over random splits the promised rate is exact but for the step of a p-value; a fixed threshold has any rate."""
    found = mistakes.fixed_threshold()
    spread = math.sqrt(0.05 * 0.95 * 2 / 200) / math.sqrt(
        10
    )  # 200 rows for the threshold, 200 judged, 10 splits
    for rate in found["library"].values():
        # at most 0.05, less one step of a p-value where the threshold has 90 rows or more
        assert 0.05 - 0.011 - 4 * spread < rate < 0.05 + 4 * spread
    rates = sorted(found["mistake"].values())
    assert rates[-1] > 0.5 and rates[-1] > 5 * rates[0]


def test_swapped_kl(mistakes: ModuleType) -> None:
    """Divergence and posterior of the library are those of the closed form; the mistake hardly shrinks the slope."""
    found = mistakes.swapped_kl()
    for name, exact in found["truth"].items():
        assert found["library"][name] == pytest.approx(exact, rel=1e-3)
        assert found["mistake"][name] > 1.15 * exact
    assert found["mistake"]["slope"] > 1.5 * found["truth"]["slope"]


def test_variance_head(mistakes: ModuleType) -> None:
    """Epistemic uncertainty falls like one over the root of N; a variance head stays at the noise."""
    found = mistakes.variance_head_for_epistemic()
    few, many = found["truth"]
    for size, tolerance in ((few, 0.2), (many, 0.05)):
        assert found["library"][size] == pytest.approx(found["truth"][size], rel=tolerance)
        assert found["mistake"][size] == pytest.approx(mistakes.NOISE, rel=0.15)
    assert found["library"][few] / found["library"][many] == pytest.approx(math.sqrt(many / few), rel=0.15)
    assert found["mistake"][many] > 15 * found["truth"][many]


def test_one_noise_draw(mistakes: ModuleType) -> None:
    """Intervals of the library hold what those of the closed form hold, in the binomial band; the mistake a fifth at most."""
    found = mistakes.one_noise_draw()
    assert found["library"] == pytest.approx(found["truth"], abs=2e-3)
    assert abs(found["library"] - 0.9) < 4 * math.sqrt(0.09 / 2000)
    assert found["mistake"] < 0.2


def test_every_mistake_stands_on_the_page(mistakes: ModuleType) -> None:
    """Seven sections, each with its wrong lines and its figures."""
    page = (FOLDER / "seven-mistakes.md").read_text()
    sections = page.split("\n## ")[1:]
    assert len(sections) == 7
    for section in sections:
        assert section.count(":pyobject: ") == 1 and len(re.findall(r"mistakes\.\w+\(\)", section)) == 1
        names = [section.split(":pyobject: ")[1].split()[0], re.findall(r"mistakes\.(\w+)\(\)", section)[0]]
        assert all(callable(getattr(mistakes, name)) for name in names)
