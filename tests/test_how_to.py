"""The code of a how-to page runs; the page's own assertions hold."""

import re
from pathlib import Path

import pytest

from bll_pyro.scope import isolated

HOW_TO = Path(__file__).resolve().parent.parent / "docs" / "how-to"


def cells(page: Path) -> str:
    """All code cells as one script, each line where it stands on the page, so that errors point there."""
    lines, inside = [], False
    for line in page.read_text().splitlines():
        inside = line.startswith("```{code-cell}") if line.startswith("```") else inside
        lines.append(line if inside and not re.match(r"```|:\w+:", line) else "")
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.nuts
@pytest.mark.filterwarnings(
    "ignore:NUTS. :bll_pyro.FitWarning"
)  # chains as short as the page says that they are
def test_own_likelihood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Every inference, predict, intervals, tree, leave-one-out, diagnosis, save and load of two likelihoods."""
    monkeypatch.chdir(tmp_path)
    page = HOW_TO / "own-likelihood.md"
    with isolated():
        exec(compile(cells(page), str(page), "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    zero_inflated, plain = (
        float(value) for value in re.findall(r"(-\d+) nats, and of a plain Poisson\s+(-\d+)", said)[0]
    )
    assert zero_inflated > plain + 50
    assert "Exact: expected likelihoods.Gaussian" in said and "NUTS: precision" in said


@pytest.mark.slow
def test_choose_likelihood() -> None:
    """The page's own assertion, and that every cell runs."""
    page = HOW_TO / "choose-likelihood.md"
    names: dict[str, object] = {"__name__": "__main__"}
    with isolated():
        exec(compile(cells(page), str(page), "exec"), names)
    assert names["choice"].best == names["unseen"].best == "HeteroscedasticGaussian"
