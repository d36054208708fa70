"""The model card of a fit: what it is, how to use it, its quality, its calibration, its alarm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bll_pyro.conformal import coverage_band
from bll_pyro.features.backbones import Backbone
from bll_pyro.features.state import unwrapped

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit

HEAD = """---
library_name: bll-pyro
tags:
- bayesian-last-layer
- uncertainty-estimation
- out-of-distribution-detection
---
"""
INTRODUCTION = (
    "A Bayesian last layer by bll_pyro (`pip install bll-pyro`): predictions with their uncertainty, split into what more data "
    "would remove (epistemic) and what they would not (aleatoric)."
)
NUM_ROWS = 1000  # of which the card says how many may raise an alarm
NOT_MEASURED = "Not measured when it was shared: `fit.push_to_hub(..., evaluation=bll.evaluate(...))` puts the scores here."


def model_card(fit: Fit, repo: str, evaluation: Any = None) -> str:
    """Text of the card in Markdown, with the metadata that the hub reads.

    Parameters
    ----------
    fit
        The fit.
    repo
        Name of the repository, ``"owner/name"``.
    evaluation
        Scores on test rows, the result of :func:`bll_pyro.evaluate`; None says that they were not measured.
    """
    sections = {
        "Use": _use(fit, repo),
        "Quality": NOT_MEASURED if evaluation is None else _quality(evaluation),
        "Calibration": _calibration(fit),
        "Alarm for unknown inputs": _alarm(fit),
        "What it is": "\n".join(f"- {name}: {text}" for name, text in fit.lines().items() if text),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{HEAD}\n# {repo.partition('/')[2]}\n\n{INTRODUCTION}\n\n{body}\n"


def _use(fit: Fit, repo: str) -> str:
    given, inputs = "", "the inputs of its network"
    if fit.backbone is None:
        inputs = f"rows of {fit.posterior.frame.num_features:,} features"
    elif not isinstance(unwrapped(fit.backbone), Backbone):
        given = f", backbone={type(unwrapped(fit.backbone)).__name__}(...)"
    lines = [
        "```python",
        "import bll_pyro as bll",
        "",
        f'fit = bll.load("hf://{repo}"{given})',
        f"prediction = fit.predict(rows)  # {inputs}",
        "prediction.to_pandas()",
        "```",
    ]
    text = "\n".join(lines)
    if given:
        text += (
            "\n\nThe network's code is not stored, its weights are: pass a module of the same architecture."
        )
    if fit.classes is not None:
        text += f"\n\nClasses: {', '.join(map(str, fit.classes))}."
    return text


def _quality(evaluation: Any) -> str:
    """The scores as a table; best beside the plain head on the same rows."""
    names = list(next(iter(evaluation.scores.values())))
    lines = ["| head | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for head, scores in evaluation.scores.items():
        cells = ["-" if scores[name] is None else f"{scores[name]:.4f}" for name in names]
        lines.append(f"| {head} | " + " | ".join(cells) + " |")
    return "On rows that nothing was fitted to:\n\n" + "\n".join(lines)


def _calibration(fit: Fit) -> str:
    if fit.recalibration is None:
        return "The averaged predictions are as the posterior gives them."
    return f"The averaged predictions are recalibrated: `{fit.recalibration!r}`."


def _alarm(fit: Fit) -> str:
    detector = fit.detector
    if detector is None or detector.calibration_scores is None:
        return "None: the fit was shared without a detector."
    num = len(detector.calibration_scores)
    low, high = (1 - share for share in reversed(coverage_band(num, NUM_ROWS, detector.alpha)))
    return (
        f"Every prediction has `.ood`. Of rows like the {num:,} of its calibration a share of at most {detector.alpha:.4g} raises "
        f"an alarm, on average over calibrations: with one, {NUM_ROWS * low:.0f} to {NUM_ROWS * high:.0f} of {NUM_ROWS:,} rows "
        f"(95 %). The score is {type(detector.score).__name__}. How many unknown rows it catches depends on what they are. "
        "`bll.ood.Drift()` watches a stream of rows."
    )
