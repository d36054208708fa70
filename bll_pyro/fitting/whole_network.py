"""Noticing that a backbone is a whole network: its columns are the outputs of a head, and not the features before it."""

from __future__ import annotations

import math

from torch import Tensor, nn

from bll_pyro.features.splitting import PASSING, Removed
from bll_pyro.features.state import unwrapped
from bll_pyro.inference.rows import FeatureRows
from bll_pyro.likelihoods import Likelihood
from bll_pyro.likelihoods.base import TargetShape

ROWS = 2048  # that are looked at
FEWEST_CLASSES = 3  # the larger of two features tells two classes apart by accident half the time
# Share of the rows whose largest column is their class: at least, and over that of the most frequent class.
SHARE, TIMES_CHANCE = 0.5, 2.0
HEAD_LEFT_ON = (
    "the backbone returns {width} columns, as many as {what}, and {why}: it is probably a whole network with its head on, so that "
    "the last layer sees its outputs and not its features; backbone, head = bll.split_last_layer(network) takes the head off, and "
    "bll.bayesianize(network, data) makes it Bayesian"
)


def head_left_on(
    backbone: nn.Module | None,
    likelihood: Likelihood,
    target_shape: TargetShape,
    features: FeatureRows,
    targets: Tensor,
) -> list[str]:
    """What to warn of where a backbone is probably a network with its head on, as a list of one message or none.

    As many columns as outputs are no proof, since features may be that few. So either the backbone ends with a ``Linear`` of
    that width, and no activation follows, which would leave no negative number; or the largest column says which class a row is.
    """
    num_classes = getattr(likelihood, "num_classes", None)
    num_targets = num_classes or math.prod(target_shape)
    width = features.shape[1]
    if backbone is None or width not in (num_targets, likelihood.num_outputs(target_shape)):
        return []
    if any(isinstance(part, Removed) for part in backbone.modules()):
        return []
    why, some = "", features[slice(0, ROWS)]
    if ends_with_linear(backbone, width) and bool((some < 0).any()):
        why = "ends with a Linear"
    elif num_classes == width >= FEWEST_CLASSES:
        labels = targets[: len(some)].to(some.device)
        agrees = float((some.argmax(1) == labels).double().mean())
        chance = float(labels.bincount().max()) / len(labels)
        if agrees >= max(SHARE, min(1.0, TIMES_CHANCE * chance)):
            why = f"the largest one is the class of {agrees:.0%} of the rows"
    what = "there are classes" if num_classes == width else "the last layer has outputs"
    return [HEAD_LEFT_ON.format(width=width, what=what, why=why)] if why else []


def ends_with_linear(network: nn.Module, width: int) -> bool:
    """Whether the module that stands last is a ``Linear`` of this width; what does nothing in evaluation may follow it."""
    parts = [
        part
        for part in unwrapped(network).modules()
        if not (isinstance(part, PASSING) or any(part.children()))
    ]
    return bool(parts) and isinstance(parts[-1], nn.Linear) and parts[-1].out_features == width
