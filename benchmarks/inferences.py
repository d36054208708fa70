"""Every inference of bll_pyro on stored Fashion-MNIST features, with laplace-torch's Kronecker form in the same run."""

import torch

from benchmarks import ours
from benchmarks.competitors import REFERENCE, laplace_torch
from benchmarks.data import Task
from benchmarks.options import Options
from benchmarks.quality import compare, median, table_of, task_for
from benchmarks.report import Report, Target

NUM_SUBSET = 2_000
ON_SUBSET = ("NUTS", "SVI, Flow")  # far too slow on 60,000 rows: compared with the others on 2,000
RIVAL = laplace_torch.METHODS[0]


def run(options: Options) -> Report:
    """Compare all inferences that there are; those that draw from Markov chains or flows on a subset."""
    task = task_for(options)
    report = Report("inferences", f"Inferences of bll_pyro on {task.name}")
    made, missing = ours.methods(short=options.small)
    rivals = [m for m in laplace_torch.METHODS[:3] if m.is_available]
    everywhere = [m for m in made if not m.name.endswith(ON_SUBSET) and options.keeps(m.name)]
    found = compare(task, [REFERENCE, *rivals, *everywhere], options)
    report.tables.append(table_of("All rows", found, REFERENCE.name))
    report.targets += _targets(found, [m.name for m in everywhere])
    slow = [m for m in made if m.name.endswith(ON_SUBSET) and options.keeps(m.name)]
    if slow and not options.small:
        part = compare(_subset(task), [*everywhere, *slow], options)
        first = next(iter(part))
        report.tables.append(table_of(f"{NUM_SUBSET:,} rows (times over {first})", part, first))
    report.notes += [
        f"Reference of the ratios: {REFERENCE.name}. Every round has its own seed; scores are medians over rounds.",
        f"{' and '.join(ON_SUBSET)} run on {NUM_SUBSET:,} rows only, beside the others on the same rows.",
    ]
    if missing:
        report.notes.append(f"Not in this version, left out: {', '.join(missing)}.")
    return report


def _targets(found: dict[str, dict[str, list]], names: list[str]) -> list[Target]:
    """Limits for the best inference: all of them must hold for one and the same."""
    if not names:
        return []

    def met(name: str) -> int:
        mine = found[name]
        checks = [(median(mine["nll"]), 0.2734), (median(mine["ece"]), 0.010)]
        reached = sum(value is not None and value <= limit for value, limit in checks)
        epistemic = median(mine["auroc_epistemic"])
        return reached + int(epistemic is not None and epistemic >= 0.96)

    best = max(names, key=lambda name: (met(name), -(median(found[name]["nll"]) or 0.0)))
    mine = found[best]
    targets = [
        Target(f"{best}: NLL", median(mine["nll"]), 0.2734),
        Target(f"{best}: ECE", median(mine["ece"]), 0.010),
        Target(f"{best}: AUROC by epistemic uncertainty", median(mine["auroc_epistemic"]), 0.96, ">="),
    ]
    if RIVAL.name in found:
        theirs = found[RIVAL.name]
        shares = torch.tensor(mine["fit"]) + torch.tensor(mine["predict"])
        shares = shares.median() / (torch.tensor(theirs["fit"]) + torch.tensor(theirs["predict"])).median()
        targets.append(Target(f"{best}: fit + predict over {RIVAL.name}", shares.item(), 1.0))
    return targets


def _subset(task: Task) -> Task:
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(len(task.train_features), generator=generator)[:NUM_SUBSET]
    return Task(
        name=task.name,
        train_features=task.train_features[index],
        train_targets=task.train_targets[index],
        test_features=task.test_features,
        test_targets=task.test_targets,
        ood_features=task.ood_features,
        num_classes=task.num_classes,
    )
