"""Evaluation of the heads: figures for metrics.json, and the printed tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import bll_pyro as bll
from bll_pyro.demo.data import Digits, Images
from bll_pyro.demo.heads import ROWS_AT_ONCE, Head
from bll_pyro.prediction import ClassPrediction

if TYPE_CHECKING:
    from rich.table import Table

HeadScores = dict[str, float | None]

# name of a score: its heading, and whether larger is better
PROBABILITIES = {
    "accuracy": ("accuracy", True),
    "nll": ("NLL", False),
    "ece": ("ECE", False),
    "brier": ("Brier", False),
}
DETECTION = {
    "auroc_entropy": ("AUROC\nentropy", True),
    "auroc_epistemic": ("AUROC\nepistemic", True),
}


@dataclass(frozen=True)
class HeadResult:
    """A head's predictions and scores.

    Parameters
    ----------
    head
        The head.
    test, noisy, unknown
        Its predictions for these digits.
    scores
        Accuracy, NLL (nats), ECE (15 bins) and Brier score on the test digits; AUROC of unknown against test digits by
        predictive entropy, by epistemic uncertainty, and by the variance of the outputs, the latter two None for a point
        estimate. (The variance depends only on the distance of the features from the centre, which is larger for known
        digits.)
    noisy_scores
        The first four scores on the noisy test digits.
    """

    head: Head
    test: ClassPrediction
    noisy: ClassPrediction
    unknown: ClassPrediction
    scores: HeadScores
    noisy_scores: HeadScores


def evaluate_head(head: Head, digits: Digits) -> HeadResult:
    """Predictions and scores of a head."""
    test, noisy, unknown = (predict(head, part) for part in (digits.test, digits.noisy, digits.unknown))
    detection: HeadScores = {"auroc_entropy": bll.metrics.auroc(test.total, unknown.total)}
    detection |= {"auroc_epistemic": None, "auroc_output_variance": None}
    if head.bayesian:
        detection["auroc_epistemic"] = bll.metrics.auroc(test.epistemic, unknown.epistemic)
        spread = (output_variance(head, part) for part in (digits.test, digits.unknown))
        detection["auroc_output_variance"] = bll.metrics.auroc(*spread)
    scores = score(test, digits.test) | detection
    return HeadResult(head, test, noisy, unknown, scores, score(noisy, digits.noisy))


def predict(head: Head, part: Images) -> ClassPrediction:
    """Predictions of a head for images."""
    prediction = head.fit.predict(part[0])
    assert isinstance(prediction, ClassPrediction)
    return prediction


@torch.no_grad()
def output_variance(head: Head, part: Images) -> Tensor:
    """Variance of the outputs under the posterior, summed over the classes, ``[N]``."""
    batches = head.fit.features(part[0]).batches(ROWS_AT_ONCE)
    return torch.cat([head.fit.posterior.outputs(features).variance.sum(-1) for features, _ in batches])


def score(prediction: ClassPrediction, part: Images) -> HeadScores:
    """Accuracy, NLL (nats), ECE and Brier score of a prediction."""
    probs, labels = prediction.probs, part[1]
    return {
        "accuracy": bll.metrics.accuracy(probs, labels),
        "nll": -float(prediction.log_prob(labels).double().mean()),
        "ece": bll.metrics.ece(probs, labels),
        "brier": bll.metrics.brier(probs, labels),
    }


def make_tables(judged: dict[str, HeadResult], digits: Digits) -> list[Table]:
    """Two tables: test and unknown digits, and noisy test digits."""
    titles, rows = [one.head.title for one in judged.values()], digits.num_rows
    test = [one.scores for one in judged.values()]
    noisy = [one.noisy_scores for one in judged.values()]
    test_title = f"{rows['test']} test digits (0 to 7) and {rows['unknown']} unknown digits (8 and 9)"
    return [
        make_table(test_title, PROBABILITIES | DETECTION, titles, test),
        make_table(f"The same {rows['noisy']} test digits with noise", PROBABILITIES, titles, noisy),
    ]


def make_table(
    title: str, columns: dict[str, tuple[str, bool]], heads: list[str], scores: list[HeadScores]
) -> Table:
    """One line per head; in each column all numbers that are printed like the best one are bold."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("head", no_wrap=True)
    cells = []
    for name, (heading, larger) in columns.items():
        table.add_column(heading, justify="right", no_wrap=True)
        values = [one[name] for one in scores]
        best = (max if larger else min)(value for value in values if value is not None)
        texts = ["–" if value is None else f"{value:.4f}" for value in values]
        cells.append([f"[bold]{text}[/bold]" if text == f"{best:.4f}" else text for text in texts])
    for head, *line in zip(heads, *cells, strict=True):
        table.add_row(head, *line)
    return table
