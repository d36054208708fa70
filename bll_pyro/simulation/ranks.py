"""Ranks of many simulations as a DataTree, and whether they are uniform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from bll_pyro.declaration import to_plain
from bll_pyro.inference import Inference
from bll_pyro.layer import LastLayer
from bll_pyro.simulation.one import Ranked

if TYPE_CHECKING:
    import xarray as xr

DIMS = {"weight": ("output", "feature"), "bias": ("output",)}


def ranks_tree(results: list[Ranked], layer: LastLayer, inference: Inference, seed: int) -> xr.DataTree:
    """Put ranks, PIT values, truths and tests into one tree."""
    import xarray as xr

    random = np.random.default_rng(seed)
    num_draws = results[0].num_draws
    ranks = {name: np.stack([one.ranks[name] for one in results]) for name in results[0].ranks}
    truth = {name: np.stack([one.truth[name] for one in results]) for name in results[0].truth}
    pit = {name: (value + random.random(value.shape)) / (num_draws + 1) for name, value in ranks.items()}
    tests = {name: uniformity(value) for name, value in pit.items()}
    count = sum(value.size for value in tests.values())
    smallest = min(float(value.min()) for value in tests.values())
    messages = [one.message for one in results if one.message]
    attrs = {
        "p_value": min(1.0, count * smallest),
        "num_simulations": len(results),
        "num_draws": num_draws,
        "num_warned": len(messages),
        "first_warning": messages[0] if messages else "",
        "declaration": _yaml(layer),
        "inference": _yaml(inference),
        "seed": seed,
    }
    groups = {
        "prior_sbc": _dataset(pit, ("simulation",)),
        "ranks": _dataset(ranks, ("simulation",)),
        "prior": _dataset(truth, ("simulation",)),
        "uniformity": _dataset(tests, ()),
    }
    for name in ("prior_sbc", "ranks", "prior"):
        groups[name].attrs["sample_dims"] = ["simulation"]
    tree = xr.DataTree.from_dict(groups)
    tree.attrs.update(attrs)
    return tree


def uniformity(pit: np.ndarray) -> np.ndarray:
    """P-value of the PIT values ``[simulation, *event]`` of each number, ``[*event]``, by ArviZ's test."""
    from arviz_stats.base import array_stats

    flat = pit.reshape(len(pit), -1)
    values = [float(np.asarray(array_stats.uniformity_test(flat[:, i])[0])) for i in range(flat.shape[1])]
    return np.asarray(values).reshape(pit.shape[1:])


def _dataset(values: dict[str, np.ndarray], first: tuple[str, ...]) -> Any:
    import xarray as xr

    data = {}
    for name, value in values.items():
        event = value.ndim - len(first)
        dims = DIMS.get(name, ()) if len(DIMS.get(name, ())) == event else ()
        dims = dims or tuple(f"{name}_dim_{axis}" for axis in range(event))
        data[name] = ((*first, *dims), value)
    sizes = {dim: size for dims, value in data.values() for dim, size in zip(dims, value.shape)}
    return xr.Dataset(data, {dim: np.arange(size) for dim, size in sizes.items()})


def _yaml(declaration: Any) -> str:
    return yaml.safe_dump(to_plain(declaration, {}), sort_keys=False)
