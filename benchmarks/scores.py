"""Scores of predicted class probabilities, implemented independently of the package."""

import torch
from torch import Tensor


def nll(probs: Tensor, targets: Tensor) -> float:
    """Mean negative log-probability of the targets, in nats."""
    picked = probs.double().gather(-1, targets[:, None])
    return -picked.clamp_min(torch.finfo(torch.float32).tiny).log().mean().item()


def accuracy(probs: Tensor, targets: Tensor) -> float:
    """Share of rows whose most probable class is the target."""
    return (probs.argmax(-1) == targets).double().mean().item()


def expected_calibration_error(probs: Tensor, targets: Tensor, num_bins: int = 15) -> float:
    """Mean gap of confidence and accuracy over bins of equal width, weighted by their rows (Guo et al. 2017).

    A confidence ``c`` falls into bin ``b`` where ``(b - 1) / num_bins < c <= b / num_bins``.
    """
    confidence, label = probs.double().max(-1)
    hit = (label == targets).double()
    bin_of = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gap = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bin_of, confidence - hit)
    return (gap.abs().sum() / len(targets)).item()


def entropy(probs: Tensor) -> Tensor:
    """Shannon entropy of the last axis, in nats."""
    return torch.special.entr(probs).sum(-1)


def mutual_information(draws: Tensor) -> Tensor:
    """Entropy of the mean minus mean entropy over the first axis of ``draws [S, N, K]``; ``[N]``, in nats."""
    return entropy(draws.mean(0)) - entropy(draws).mean(0)


def auroc(known: Tensor, unknown: Tensor) -> float:
    """Probability that a random unknown row scores above a random known one; ties count one half.

    The Mann-Whitney statistic from mid-ranks.
    """
    _, inverse, counts = torch.cat([known, unknown]).unique(return_inverse=True, return_counts=True)
    mid_rank = counts.cumsum(0).double() - (counts.double() - 1) / 2
    rank_sum = mid_rank[inverse][len(known) :].sum()
    n, m = len(known), len(unknown)
    return ((rank_sum - m * (m + 1) / 2) / (n * m)).item()


def classification_scores(
    probs: Tensor,
    targets: Tensor,
    *,
    epistemic: Tensor | None,
    ood_probs: Tensor,
    ood_epistemic: Tensor | None,
) -> dict[str, float | None]:
    """Give every score that the quality tables show, by column name."""
    return {
        "nll": nll(probs, targets),
        "accuracy": accuracy(probs, targets),
        "ece": expected_calibration_error(probs, targets),
        "auroc_entropy": auroc(entropy(probs), entropy(ood_probs)),
        "auroc_epistemic": None
        if epistemic is None or ood_epistemic is None
        else auroc(epistemic, ood_epistemic),
    }
