"""The four pictures: reliability, entropies, largest weights, most uncertain digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure

import bll_pyro as bll
from bll_pyro.demo.data import NUM_KNOWN, Digits
from bll_pyro.demo.table import HeadResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 110  # resolution of the files, in dots per inch
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # distinguishable for colour-blind readers
NUM_BINS = 10  # bins of confidence
NUM_DIGITS = 9  # digits in a row of images
NUM_WEIGHTS, NUM_DRAWS = 20, 4000  # weights in the forest plot, and draws for it


def draw_reliability(judged: dict[str, HeadResult], digits: Digits) -> Figure:
    """Share of correct predictions against confidence on the noisy test digits, one panel per head.

    The bands are the 95 % Wilson intervals of the bins; for a calibrated head most of them cross the diagonal. The bars
    below show the number of digits in each bin. (Nearly all digits without noise are in the last bin.)
    """
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    grid = figure.subplots(2, len(judged), sharex=True, sharey="row", height_ratios=(4, 1))
    for (top, bottom), one in zip(grid.T, judged.values(), strict=True):
        bins = bll.metrics.reliability(one.noisy.probs, digits.noisy[1], num_bins=NUM_BINS)
        filled = bins.count > 0
        edges = np.linspace(0, 1, NUM_BINS + 1)
        for low, high, lower, upper in zip(edges[:-1], edges[1:], bins.lower, bins.upper, strict=True):
            top.fill_between([low, high], lower, upper, color=BLUE, alpha=0.2, linewidth=0)
        top.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        top.plot(bins.confidence[filled], bins.accuracy[filled], "o", color=BLUE, markersize=5, clip_on=False)
        top.set_title(one.head.title, fontsize=10, loc="left")
        ece = one.noisy_scores["ece"]
        top.text(0.96, 0.05, f"ECE {ece:.3f}", transform=top.transAxes, ha="right", fontsize=9, color=GREY)
        bottom.bar(
            edges[:-1], bins.count, 1 / NUM_BINS, align="edge", color=BLUE, alpha=0.5, edgecolor="white"
        )
        bottom.set_xlabel("confidence")
        top.set(xlim=(0, 1), ylim=(0, 1))
        bare_axes(top)
        bare_axes(bottom)
    grid[0, 0].set_ylabel("share of right answers")
    grid[1, 0].set_ylabel("digits")
    figure.suptitle("Test digits with noise: is a confidence of 80 % right in 80 % of cases?", fontsize=11)
    return figure


def draw_entropy(judged: dict[str, HeadResult]) -> Figure:
    """Predictive entropy of known and unknown digits, one panel for each of three heads."""
    shown = [judged[name] for name in ("softmax", "bayesian_two_stage", "bayesian_joint")]
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True)
    bins = np.geomspace(1e-4, np.log(NUM_KNOWN), 37)
    for axes, one in zip(panels, shown, strict=True):
        for part, color, label in ((one.test, BLUE, "known (test)"), (one.unknown, ORANGE, "unknown (8, 9)")):
            entropy = part.total.numpy().clip(bins[0], bins[-1])  # smaller entropies count in the first bin
            share = np.full(len(part), 1 / len(part))
            axes.hist(entropy, bins, weights=share, color=color, alpha=0.6, label=label)
        axes.set_xscale("log")
        axes.set_title(f"{one.head.title}: AUROC {one.scores['auroc_entropy']:.3f}", fontsize=10, loc="left")
        axes.set_xlabel("predictive entropy, nats")
        bare_axes(axes)
    panels[0].set_ylabel("share of digits")
    panels[0].legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def draw_most_uncertain(one: HeadResult, digits: Digits) -> Figure:
    """Digits as images: known ones with the largest entropy, unknown ones with the largest and with the smallest."""
    rows = (
        ("known, least sure", one.test, digits.test, True),
        ("unknown, least sure", one.unknown, digits.unknown, True),
        ("unknown, most sure", one.unknown, digits.unknown, False),
    )
    figure = Figure(figsize=(10.5, 4.9), layout="constrained")
    grid = figure.subplots(len(rows), NUM_DIGITS)
    for line, (title, prediction, (images, labels), descending) in zip(grid, rows, strict=True):
        order = torch.argsort(prediction.total, descending=descending)[:NUM_DIGITS]
        for axes, row in zip(line, order.tolist(), strict=False):
            axes.imshow(images[row, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            said, confidence = int(prediction.label[row]), float(prediction.confidence[row])
            color = BLUE if said == int(labels[row]) else ORANGE
            axes.set_title(f"{int(labels[row])}: said {said}, {confidence:.0%}", fontsize=8.5, color=color)
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(title, fontsize=10)
    return figure


def bare_axes(axes: Axes) -> None:
    """Remove the lines at the top and the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def draw_largest_weights(fit: bll.Fit, path: Path) -> None:
    """Forest plot of the weights with the largest absolute posterior mean: mean, 50 % and 89 % intervals, by ArviZ."""
    import arviz as az
    from matplotlib import pyplot

    draws = fit.posterior.sample(NUM_DRAWS)["weight"].cpu()
    num_features = draws.shape[-1]
    mean = draws.mean((0, 1)).flatten()
    largest = mean.abs().argsort(descending=True)[:NUM_WEIGHTS]
    largest = largest[mean[largest].argsort(descending=True)]  # the largest at the top
    names = [f"digit {int(i) // num_features}, feature {int(i) % num_features}" for i in largest]
    chosen = draws.flatten(2)[..., largest].numpy()
    tree = az.from_dict(
        {"posterior": {"weight": chosen}}, dims={"weight": ["weight of"]}, coords={"weight of": names}
    )
    plot = az.plot_forest(tree, labels=["weight of"], figure_kwargs={"figsize": (7.5, 5.2)})
    figure = plot.viz["figure"].item()
    intervals = figure.axes[-1]
    intervals.axvline(0, color=GREY, linewidth=1, zorder=0)
    intervals.set_xlabel("weight, for features of scale 1")
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    pyplot.close(figure)
