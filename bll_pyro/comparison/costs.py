"""What a fit will cost: processor time and memory, from constants that were measured.

With N rows, ``P = D + 1`` columns, K outputs and ``W = K P`` weights:

==================== ============================================================== =====================================
inference            seconds of one core                                            bytes beside the rows
==================== ============================================================== =====================================
``Exact``            ``N P^2`` of the sums, ``P^3`` of the eigenvectors             ``P^2``, ``W`` for each noise value
``SVI``, independent steps of B rows, ``B W`` each; ``N P^2`` of the axes, and      ``W``, ``P^2`` of the axes, ``K P^2``
                     ``N K P^2`` of rows left out for the temperature
``SVI``, full rank   the same steps, ``W^3`` each                                   ``W^2``
``Laplace``          passes over all rows, ``N W`` each; ``P^3`` and ``K^3``        ``W``, ``P^2``, ``K^2``
==================== ============================================================== =====================================

The constants come from ``benchmarks/results/recommend.md``, where each estimate stands beside what was measured. Seconds are within
a factor of three there, enough to tell a second from an hour; bytes are an upper bound, so that what is chosen fits.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bll_pyro.guides import Diagonal, FullRank
from bll_pyro.inference import SVI, Exact, Inference, Laplace
from bll_pyro.inference.exact.exact import NUM_NOISE_VALUES
from bll_pyro.inference.leave_one_out.outputs import MAX_BLOCK_NUMBERS, MAX_BLOCK_WORK
from bll_pyro.inference.rows import IN_MEMORY_BYTES
from bll_pyro.inference.svi.ascent import FEWEST_POINTS, MAX_ROWS, MOST_NUMBERS, MOST_POINTS
from bll_pyro.likelihoods import Likelihood

GIB = 2**30
FIXED_BYTES = 0.05 * GIB  # of batches and libraries that load late
BYTES_OF_OUTPUT = 16_384  # at all points of an integration, in several arrays,
MOST_OUTPUT_BYTES = 0.35 * GIB  # of so many rows at a time
BATCH, MOST_STEPS, FEWEST_PASSES = 512, 1500, 6  # of SVI's default
MOST_EVALUATIONS = 60  # of its ELBO where it takes no steps: typical
CONSTANTS = {  # seconds for each of what the table names
    "Exact": {"fit": 0.2, "N": 5e-7, "N P^2": 1.5e-10, "P^3": 3e-10},
    "SVI": {
        "fit": 0.1,
        "evaluation N K S": 1e-8,
        "step": 5e-4,
        "step, full rank": 1.2e-3,
        "step, by draws": 5e-3,
        "step B W": 1.2e-10,
        "step W^3": 1e-11,
        "N P^2": 1e-10,
        "N K P^2": 1e-10,
    },
    "Laplace": {"fit": 0.05, "N W": 4e-8, "P^3 + K^3": 1e-9},
}


@dataclass(frozen=True)
class FitSize:
    """How much there is to fit.

    Parameters
    ----------
    num_rows, num_features, num_outputs
        N, D and K.
    itemsize
        Bytes of a feature.
    makes_features
        Whether the features are made by a backbone, and so held beside the inputs.
    """

    num_rows: int
    num_features: int
    num_outputs: int
    itemsize: int = 4
    makes_features: bool = False

    @property
    def num_columns(self) -> int:
        """P: the features and the bias."""
        return self.num_features + 1

    @property
    def num_weights(self) -> int:
        """W: all weights with their biases."""
        return self.num_columns * self.num_outputs

    @property
    def row_bytes(self) -> int:
        """Bytes of the rows in a fit: features that are made, design matrix, targets, their order and weights."""
        design = self.num_rows * self.num_columns * self.itemsize
        made = design if self.makes_features else 0
        return made + (design if design <= IN_MEMORY_BYTES else 0) + 64 * self.num_rows


@dataclass(frozen=True)
class Cost:
    """Estimated processor seconds and bytes of a fit."""

    seconds: float
    num_bytes: float

    def __str__(self) -> str:
        return f"about {duration(self.seconds)}, {self.num_bytes / GIB:.2g} GiB"


def duration(seconds: float) -> str:
    """Seconds in words, to two digits."""
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{max(seconds, 0.1):.2g} s"


def cost(inference: Inference, likelihood: Likelihood, size: FitSize) -> Cost:
    """What a fit by this inference costs; TypeError for one that was not measured."""
    if isinstance(inference, Exact):
        return _exact(size)
    if isinstance(inference, Laplace):
        return _laplace(size)
    if isinstance(inference, SVI) and isinstance(inference.guide, FullRank):
        return _full_rank(likelihood, size)
    if isinstance(inference, SVI) and isinstance(inference.guide, Diagonal):
        return _diagonal(likelihood, size, inference.guide.principal_axes)
    raise TypeError(
        f"cost: expected Exact, Laplace, or SVI with a Diagonal or FullRank guide, got {inference!r}"
    )


def _exact(size: FitSize) -> Cost:
    each, n, p = CONSTANTS["Exact"], size.num_rows, size.num_columns
    seconds = each["fit"] + each["N"] * n + each["N P^2"] * n * p**2 + each["P^3"] * p**3
    num_bytes = 48 * p**2 + 24 * NUM_NOISE_VALUES * size.num_weights + _output_bytes(size)
    return Cost(seconds, size.row_bytes + FIXED_BYTES + num_bytes)


def _diagonal(likelihood: Likelihood, size: FitSize, has_principal_axes: bool) -> Cost:
    each, n, k, p = CONSTANTS["SVI"], size.num_rows, size.num_outputs, size.num_columns
    axes, blocks = p**2 if has_principal_axes else 0, k * p**2
    seconds = each["fit"] + each["N P^2"] * n * axes + each["N K P^2"] * min(n * blocks, MAX_BLOCK_WORK)
    if n <= MAX_ROWS and n * k * FEWEST_POINTS <= MOST_NUMBERS:
        numbers = min(n * k * MOST_POINTS, MOST_NUMBERS)
        seconds += MOST_EVALUATIONS * each["evaluation N K S"] * numbers
    else:
        seconds += _num_steps(size) * _seconds_of_step(likelihood, size, each["step"])
    num_bytes = 84 * size.num_weights + 48 * axes + (92 * blocks if blocks <= MAX_BLOCK_NUMBERS else 0)
    return Cost(seconds, size.row_bytes + FIXED_BYTES + num_bytes + _output_bytes(size))


def _full_rank(likelihood: Likelihood, size: FitSize) -> Cost:
    each, w = CONSTANTS["SVI"], size.num_weights
    step = _seconds_of_step(likelihood, size, each["step, full rank"]) + each["step W^3"] * w**3
    return Cost(
        each["fit"] + _num_steps(size) * step, size.row_bytes + FIXED_BYTES + 180 * w**2 + _output_bytes(size)
    )


def _laplace(size: FitSize) -> Cost:
    each, p, k = CONSTANTS["Laplace"], size.num_columns, size.num_outputs
    seconds = each["fit"] + each["N W"] * size.num_rows * size.num_weights + each["P^3 + K^3"] * (p**3 + k**3)
    num_bytes = 1100 * size.num_weights + 60 * (p**2 + k**2) + _output_bytes(size)
    return Cost(seconds, size.row_bytes + FIXED_BYTES + num_bytes)


def _num_steps(size: FitSize) -> float:
    """Of SVI's default; it stops sooner where the ELBO has stopped rising."""
    return max(MOST_STEPS, FEWEST_PASSES * size.num_rows / BATCH)


def _seconds_of_step(likelihood: Likelihood, size: FitSize, fixed: float) -> float:
    each, batch = CONSTANTS["SVI"], min(BATCH, size.num_rows)
    is_slow = bool(likelihood.sites(())) and not likelihood.closed_expectation  # its noise is drawn, too
    by_draws = each["step, by draws"] if is_slow else 0.0
    return fixed + by_draws + each["step B W"] * batch * size.num_weights


def _output_bytes(size: FitSize) -> float:
    """Outputs of many rows at once, in the start and in what is reported, and of some at all points of an integration."""
    number = float(size.num_rows * size.num_outputs)
    return min(12 * number, 0.4 * GIB) + min(BYTES_OF_OUTPUT * number, MOST_OUTPUT_BYTES)


def available_bytes() -> float:
    """Memory that is free for this process: what the system calls available, within the limit of its control group."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = [float(pages)]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" is no limit
        found.append(float(limit - int((group / "memory.current").read_text())))
    return max(min(found), 0.0)
