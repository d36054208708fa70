"""Checks of targets, before any work starts: shape, finite numbers, whole numbers, labels in range."""

from __future__ import annotations

from contextlib import suppress

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bll_pyro.frame import as_floats

MANY_ROWS, VARIES = 4096, 1e-3  # rows that show that targets vary, and by how much of their size
SUM_ERROR = 0.01  # of probabilities, which may be in half precision


def float_targets(targets: Tensor, owner: str, what: str = "real numbers") -> Float[Tensor, "N T"]:
    """Check that targets are finite numbers of shape ``[N]`` or ``[N, T]``; return ``[N, T]``."""
    if targets.dim() not in (1, 2):
        raise ValueError(
            f"{owner}: expected targets of shape [N] or [N, T], got {list(targets.shape)}; reshape them"
        )
    values = targets if targets.is_floating_point() else as_floats(targets)
    # a finite sum has finite terms only, and takes no memory
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
        finite = torch.isfinite(values).reshape(len(values), -1).all(-1)
        row = int((~finite).nonzero()[0])
        raise ValueError(
            f"{owner}: expected {what}, got {int((~finite).sum())} rows with NaN or infinite targets (first: row {row}); "
            "drop or repair these rows"
        )
    return values[:, None] if values.dim() == 1 else values


def check_varying(targets: Float[Tensor, "N T"], owner: str, remedy: str) -> None:
    """Raise where a target is the same in all rows, up to rounding: its noise would be 0, and has no posterior."""
    first, few = targets[0], targets[:MANY_ROWS]
    if len(few) < len(targets) and bool(((few - first).abs().amax(0) > VARIES * first.abs()).all()):
        return
    constant = (targets - first).abs().amax(0) <= torch.finfo(targets.dtype).eps * first.abs()
    if bool(constant.any()):
        which = constant.nonzero().flatten().tolist()
        where = f" in column {which[0]}" if targets.shape[1] > 1 else ""
        raise ValueError(
            f"{owner}: expected targets that vary, got {float(first[which[0]])!r} in all {len(targets)} rows{where}; constant "
            f"targets have no noise to learn: {remedy}"
        )


def count_targets(targets: Tensor, owner: str) -> Float[Tensor, "N T"]:
    """Check that targets are whole numbers >= 0 of shape ``[N]`` or ``[N, T]``; return ``[N, T]`` as floats."""
    values = float_targets(targets, owner, "counts")
    wrong = ((values < 0) | (values != values.round())).any(-1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{owner}: expected counts (whole numbers >= 0), got {values[row].tolist()} in row {row} ({int(wrong.sum())} "
            "such rows); use Gaussian or StudentT for real values"
        )
    return values


def integer_targets(targets: Tensor, num_classes: int, owner: str) -> Int[Tensor, " N"]:
    """Check that targets are labels ``[N]`` in ``0 .. num_classes - 1``; return them as int64."""
    if are_probabilities(targets):
        raise ValueError(
            f"{owner}: expected labels of shape [N], got rows of class probabilities of shape {list(targets.shape)}, as mixup, "
            "CutMix and label smoothing make them; no row was observed so, and with such targets the ELBO is no bound and the "
            "posterior that of no data: leave them out, also in the collate_fn of a loader, and pass labels; augmentation that "
            "keeps the label is fine"
        )
    if targets.dim() != 1:
        raise ValueError(
            f"{owner}: expected labels of shape [N], got {list(targets.shape)}; "
            "turn one-hot rows into labels with targets.argmax(-1) (of a loader that mixes rows leave mixup and CutMix out), or "
            "squeeze a trailing axis of size 1"
        )
    if targets.dtype == torch.bool or targets.is_complex():
        raise ValueError(f"{owner}: expected integer labels, got {targets.dtype}; convert them with .long()")
    if targets.is_floating_point():
        whole = torch.isfinite(targets) & (targets == targets.round())
        if not bool(whole.all()):
            row = int((~whole).nonzero()[0])
            raise ValueError(
                f"{owner}: expected integer labels, got {float(targets[row])!r} in row {row}; "
                "use a Gaussian likelihood for real-valued targets"
            )
    labels = targets.long()
    outside = (labels < 0) | (labels >= num_classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"{owner}: expected labels from 0 to {num_classes - 1}, got {int(labels[row])} in row {row} "
            f"({int(outside.sum())} rows out of range); set num_classes to the number of classes, or name the labels: classes=[...]"
        )
    return labels


def are_probabilities(targets: Tensor) -> bool:
    """Whether rows ``[N, K]`` are probabilities that add up to 1, and not all of them 0 or 1."""
    if targets.dim() != 2 or not targets.is_floating_point() or targets.shape[1] < 2:
        return False
    sums = targets.double().sum(-1)
    good = (targets >= 0).all() & ((sums - 1).abs() < SUM_ERROR).all()
    return bool(good) and bool((targets != targets.round()).any())


def supported(
    values: Float[Tensor, "N T"], law: dist.Distribution, owner: str, *, whole: bool, scaled: bool
) -> Float[Tensor, "N T"]:
    """Check that targets have a density under a likelihood's distribution at outputs of 0; return them.

    ``whole``: what the likelihood says of its targets. ``scaled``: they will be standardised, and their size says nothing yet.
    """
    support, base = None, law
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    with suppress(NotImplementedError):  # unknown: the density alone decides
        support = law.support
    if support is not None and support.is_discrete != whole:
        raise ValueError(
            f"{owner}: expected is_count = {support.is_discrete} for {type(base).__name__} over {base.support}, got {whole}; "
            "set the class attribute is_count of counts (is_binary of labels 0 or 1)"
        )
    good = torch.ones(len(values), dtype=torch.bool, device=values.device)
    if support is not None:
        good = support.check(values.double()).reshape(len(values), -1).all(-1)
    if not scaled:
        good = good & torch.isfinite(law.log_prob(values.double())).reshape(len(values), -1).all(-1)
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        over = "" if support is None else f" over {base.support}"
        raise ValueError(
            f"{owner}: expected targets with a finite density under {type(base).__name__}{over}, got "
            f"{values[row].tolist()} in row {row} ({int((~good).sum())} such rows); drop or repair these rows, or use a "
            "likelihood whose support holds them"
        )
    return values
