"""Every inference of bll_pyro on stored Fashion-MNIST features, with laplace-torch's Kronecker form in the same run."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import ours
from benchmarks.competitors import REFERENCE, laplace_torch
from benchmarks.data import Task
from benchmarks.method import ClassPrediction, Method, Predict
from benchmarks.options import Options
from benchmarks.quality import compare, median, table_of, task_for
from benchmarks.report import Report, Target

NUM_SUBSET = 2_000  # rows of the subset
# inferences that are too slow on 60,000 rows, and are compared with the others on the subset
ON_SUBSET = ("SVI, FullRank", "SVI, Flow", "NUTS")
RIVAL = laplace_torch.METHODS[0]
# inferences that are also run with the prior scale 1, the untuned choice for standardised features
AT_SCALE_ONE = ("SVI, Diagonal (principal axes)", "SVI, BlockDiagonal", "Laplace, Kronecker", "Laplace, Full")


def run(options: Options) -> Report:
    """Compare all inferences; slow ones on a subset of the rows."""
    task = task_for(options)
    report = Report("inferences", f"Inferences of bll_pyro on {task.name}")
    made, missing = ours.methods(short=options.small)
    made += [_at_scale(name, 1.0, short=options.small) for name in AT_SCALE_ONE]
    rivals = [m for m in laplace_torch.METHODS[:3] if m.is_available]
    everywhere = [m for m in made if not m.name.endswith(ON_SUBSET) and options.keeps(m.name)]
    found = compare(task, [REFERENCE, *rivals, *everywhere], options)
    report.tables.append(table_of("All rows", found, REFERENCE.name))
    report.targets += _targets(found, [m.name for m in everywhere])
    slow = [m for m in made if m.name.endswith(ON_SUBSET) and options.keeps(m.name)]
    if slow and not options.small:
        part = compare(_subset(task), [*everywhere, *slow], replace(options, num_runs=1))
        first = next(iter(part))
        report.tables.append(table_of(f"{NUM_SUBSET:,} rows (times over {first})", part, first))
    report.notes += [
        f"Reference of the ratios: {REFERENCE.name}. Every round has its own seed; scores are medians over rounds.",
        f"{'; '.join(ON_SUBSET)}: on {NUM_SUBSET:,} rows only, once, beside the others on the same rows.",
        "Features are standardised and the prior scale is learned where the name of the method does not say otherwise.",
        "Targets hold for one and the same method: of all, the one that meets most, and of those the one with the lowest NLL.",
    ]
    if missing:
        report.notes.append(f"Not in this version, left out: {', '.join(missing)}.")
    return report


def _at_scale(name: str, scale: float, *, short: bool) -> Method:
    """An inference of the tables with a given prior scale."""
    return Method(
        f"bll_pyro, {name}, prior scale {scale:g}",
        partial(_fit_at_scale, name=name, scale=scale, short=short),
        requires="bll_pyro",
    )


def _fit_at_scale(
    features: Tensor, targets: Tensor, num_classes: int, seed: int, *, name: str, scale: float, short: bool
) -> Predict:
    import bll_pyro as bll

    layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes), bll.priors.Normal(scale=scale))
    inference: Any = ours.inference(name)
    if short and isinstance(inference, bll.SVI):
        inference = replace(inference, num_epochs=2)
    fitted = bll.fit(layer, (features, targets), inference=inference, seed=seed)

    def predict(rows: Tensor) -> ClassPrediction:
        prediction = fitted.predict(rows)
        return ClassPrediction(prediction.probs, prediction.epistemic)

    return predict


def _targets(found: dict[str, dict[str, list]], names: list[str]) -> list[Target]:
    """The targets of the best inference: all of them must be met by one inference."""
    limits = [_limits(name, found) for name in names]
    return max(
        limits,
        key=lambda targets: (sum(t.met is True for t in targets), -(targets[0].found or 0.0)),
        default=[],
    )


def _limits(name: str, found: dict[str, dict[str, list]]) -> list[Target]:
    mine = found[name]
    targets = [
        Target(f"{name}: NLL", median(mine["nll"]), 0.2734),
        Target(f"{name}: ECE", median(mine["ece"]), 0.010),
        Target(f"{name}: AUROC by epistemic uncertainty", median(mine["auroc_epistemic"]), 0.96, ">="),
    ]
    if RIVAL.name in found:
        ours_, theirs = (
            (torch.tensor(rounds["fit"]) + torch.tensor(rounds["predict"])).median()
            for rounds in (mine, found[RIVAL.name])
        )
        share = float(ours_ / theirs)
        targets.append(Target(f"{name}: fit + predict over {RIVAL.name}", share, 1.0))
    return targets


def _subset(task: Task) -> Task:
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(len(task.train_features), generator=generator)[:NUM_SUBSET]
    return replace(task, train_features=task.train_features[index], train_targets=task.train_targets[index])
