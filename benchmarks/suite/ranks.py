"""Mean ranks over tasks with the critical difference of Nemenyi's test, and their picture (Demsar 2006)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, studentized_range

from benchmarks.suite.cells import COST, Cell
from benchmarks.suite.methods import BY_NAME, OURS
from benchmarks.suite.splits import CLASSES

LEVEL = 0.95
RANKED = {
    "NLL, all tasks": ("nll",),
    "NLL, classes": ("nll",),
    "alarms caught at 5% false ones": ("caught_near", "caught_far"),
    "fit + predict, CPU seconds": (COST,),
}


@dataclass(frozen=True)
class Ranks:
    """Mean ranks by method, 1 is best; the critical difference, and the number of blocks that were ranked."""

    what: str
    mean: dict[str, float]
    critical_difference: float
    num_blocks: int


def critical_difference(num_methods: int, num_blocks: int) -> float:
    """Difference of mean ranks that chance alone passes in 5% of the cases, for the largest of all pairs (Nemenyi 1963)."""
    quantile = studentized_range.ppf(LEVEL, num_methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(num_methods * (num_methods + 1) / (6 * num_blocks)))


def ranked(found: list[Cell], what: str) -> Ranks | None:
    """Ranks of the methods that have every block; None where there is nothing to rank."""
    only_classes = what == "NLL, classes" or "caught_near" in RANKED[what]
    looked_at = [cell for cell in found if not only_classes or cell.task.kind == CLASSES]
    blocks = [(cell, measure) for cell in looked_at for measure in RANKED[what]]
    names = [
        name
        for name, method in BY_NAME.items()
        if not method.is_variant and all(cell.badness(name, measure) is not None for cell, measure in blocks)
    ]
    if not blocks or OURS not in names or len(names) < 2:
        return None
    scores = np.array([[cell.badness(name, measure) for name in names] for cell, measure in blocks], float)
    mean = rankdata(scores, axis=1).mean(0)
    order = np.argsort(mean, kind="stable")
    return Ranks(
        what,
        {names[i]: float(mean[i]) for i in order},
        critical_difference(len(names), len(blocks)),
        len(blocks),
    )


def all_ranks(found: list[Cell]) -> list[Ranks]:
    """Everything that is ranked."""
    return [ranks for ranks in (ranked(found, what) for what in RANKED) if ranks is not None]


def picture(ranks: list[Ranks], path: Path) -> None:
    """One panel for each: ranks as points, and a bar that is as long as the critical difference from ours on, both ways."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 0.6 + sum(0.27 * len(r.mean) + 0.75 for r in ranks)), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [len(r.mean) + 2.5 for r in ranks]
    panels = figure.subplots(len(ranks), squeeze=False, height_ratios=heights)[:, 0]
    for panel, one in zip(panels, ranks, strict=True):
        names, places = list(one.mean), np.arange(len(one.mean))
        ours = one.mean[OURS]
        panel.axvspan(
            ours - one.critical_difference, ours + one.critical_difference, color="tab:blue", alpha=0.12, lw=0
        )
        colors = ["tab:blue" if name == OURS else "0.35" for name in names]
        panel.hlines(places, 1, list(one.mean.values()), color=colors, lw=1.2)
        panel.scatter(list(one.mean.values()), places, color=colors, s=26, zorder=3)
        panel.set(
            yticks=places, yticklabels=names, ylim=(len(names) - 0.4, -0.6), xlim=(0.9, len(names) + 0.1)
        )
        panel.set_title(
            f"{one.what}: mean rank over {one.num_blocks} (1 is best); shaded: critical difference "
            f"{one.critical_difference:.2f} around ours", fontsize=9, loc="left",
        )  # fmt: skip
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white")
