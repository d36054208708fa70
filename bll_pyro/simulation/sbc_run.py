"""``sbc``: simulation-based calibration of an inference on a declared layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from bll_pyro.checks import count
from bll_pyro.features.data import Source, read
from bll_pyro.frame import as_floats
from bll_pyro.inference import Inference
from bll_pyro.inference.nuts.nuts import NUTS
from bll_pyro.inference.standardization import make_frame
from bll_pyro.layer import LastLayer
from bll_pyro.observation import call, stage
from bll_pyro.scope import own_modes
from bll_pyro.simulation.one import Ranked, Task, simulate
from bll_pyro.simulation.ranks import ranks_tree

if TYPE_CHECKING:
    import xarray as xr


@call("sbc")
@own_modes()
def sbc(
    layer: LastLayer,
    inference: Inference,
    features: Any,
    num_simulations: int = 100,
    *,
    num_draws: int = 100,
    num_targets: int | None = None,
    seed: int = 0,
    num_processes: int | None = None,
) -> xr.DataTree:
    """Check an inference on data simulated from the model itself (Talts, Betancourt, Simpson, Vehtari and Gelman 2018).

    Each simulation draws weights, noise and hyper-parameters from the prior, targets for the given features from the
    likelihood, fits, and ranks the truth among L draws of the posterior. If the inference is right the ranks are uniform on
    ``0 .. L``: a U shape means that posteriors are too narrow, a hump that they are too wide, a slope that they are biased. The
    joint density ``log p(y, weights, ...)`` is ranked too: it finds errors that no single weight shows (Modrak et al. 2023).

    Features are standardised once where the layer says so. Targets are not, since the truth would then depend on them: the
    check is of the model on the scale on which its weights live.

    Parameters
    ----------
    layer
        The declaration. Every scale has to be given, or have a prior: what is learned from the data has no distribution
        from which a truth could be drawn.
    inference
        Any inference. Chains of :class:`bll_pyro.NUTS` are thinned evenly to ``num_draws``, which should be no more than
        their effective sample size, since ranks among correlated draws are not uniform.
    features
        Features ``[N, D]`` (targets that come along are not used).
    num_simulations
        Number of simulations.
    num_draws
        Number of draws L of each posterior.
    num_targets
        Simulate this many targets a row, as a vector; None simulates one number (or label) a row.
    seed
        The same seed gives the same ranks, however many processes there are.
    num_processes
        Simulations at a time, each in a process of its own; None takes the number of cores, 1 stays in this process.

    Returns
    -------
    DataTree
        ``prior_sbc``: PIT values ``(rank + u) / (L + 1)`` with u uniform, by site with the dims ``simulation`` and those of
        the site, as ``az.plot_ecdf_pit`` takes them. ``ranks`` and ``prior`` (the truths) likewise. ``uniformity``: p-value of
        each number's PIT values by ArviZ's test of uniformity. Attributes: ``p_value``, the smallest of them times
        their number (Bonferroni) and so a test of all together, ``num_draws``, ``num_warned`` fits that warned.

    Raises
    ------
    ValueError
        When a scale of the layer is learned, or numbers are out of range.
    """
    _check(layer, inference, num_simulations, num_draws, num_targets, num_processes)
    source = read(features, need_targets=False, what="features")
    values = _features(source)
    target_shape = () if num_targets is None else (num_targets,)
    inside, values = in_own_frame(layer, values, source.stored is None)
    shape = (layer.likelihood.num_outputs(target_shape), values.shape[1])
    layer.prior.check(shape)
    learned = sorted(layer.prior.learned_start(shape))
    if learned:
        raise ValueError(
            f"sbc: expected a prior to draw the truth from, got {layer.prior!r}, whose {', '.join(learned)} is learned from "
            "the data; give it a number (scale=1.0), or a prior of its own: bll.priors.HierarchicalNormal()"
        )
    inference.check(inside, shape[0], shape[1] + int(layer.bias))
    if isinstance(inference, NUTS):
        inference = replace(inference, num_processes=1)  # simulations run side by side, chains do not
    task = Task(inside, inference, values, target_shape, num_draws, seed)
    results: list[Ranked] = []
    with stage("simulations", num_simulations) as done:
        for result in _run(task, num_simulations, num_processes):
            results.append(result)
            done.advance()
    return ranks_tree(results, layer, inference, seed)


def in_own_frame(
    layer: LastLayer, features: Float[Tensor, "N D"], is_table: bool
) -> tuple[LastLayer, Float[Tensor, "N D"]]:
    """The layer and the features on the scale on which the weights live; the simulated targets are on theirs."""
    if not layer.standardize:
        return layer, features
    frame = make_frame(layer, features, features.new_zeros(2, 1), False, features.dtype, is_table=is_table)
    return replace(layer.in_frame(frame), standardize=False), frame.standardized(features)


def _run(task: Task, num_simulations: int, num_processes: int | None) -> Iterator[Ranked]:
    import joblib

    wanted = min(num_processes or joblib.cpu_count(), num_simulations)
    if wanted == 1:
        for number in range(num_simulations):
            yield simulate(task, number)
        return
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        pool = joblib.Parallel(n_jobs=wanted, return_as="generator", mmap_mode="c")
        results = pool(joblib.delayed(simulate)(task, number) for number in range(num_simulations))
    yield from results


def _features(source: Source) -> Tensor:
    unused = "targets are simulated for rows of weight and exposure 1: pass the features alone"
    source.columns.refused("sbc", unused, unused)
    values = torch.cat([batch for batch, _ in source.batches(8192)])
    if values.dim() != 2 or len(values) < 2:
        raise ValueError(
            f"sbc(features=...): expected features of shape [N, D] with N > 1, got {list(values.shape)}"
        )
    values = as_floats(values)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            "sbc(features=...): expected finite features, got NaN or infinite ones; repair these rows"
        )
    return values


def _check(
    layer: Any,
    inference: Any,
    num_simulations: int,
    num_draws: int,
    num_targets: int | None,
    num_processes: int | None,
) -> None:
    if not isinstance(layer, LastLayer):
        raise TypeError(f"sbc: expected bll.LastLayer(likelihood=...), got {type(layer).__name__}")
    if not isinstance(inference, Inference):
        raise TypeError(f"sbc: expected an inference such as bll.SVI(), got {type(inference).__name__}")
    if inference.trains_backbone:
        raise ValueError("sbc: expected an inference on features, got one that also trains a backbone")
    if layer.prior.frame is not None:
        raise ValueError(
            f"sbc: expected a declared prior, got {type(layer.prior).__name__}, which is in the coordinates of other data"
        )
    for name, value, least in (
        ("num_simulations", num_simulations, 10),
        ("num_draws", num_draws, 10),
        ("num_targets", num_targets, 1),
        ("num_processes", num_processes, 1),
    ):
        if value is None and name in ("num_targets", "num_processes"):
            continue
        count(value, name, "sbc", least)
    if num_targets is not None and layer.likelihood.is_discrete:
        raise ValueError(
            f"sbc(num_targets=...): expected None for the labels of {type(layer.likelihood).__name__}"
        )
