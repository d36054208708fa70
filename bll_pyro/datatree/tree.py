"""``make_tree``: groups in ArviZ's order, with attributes that tell how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray as xr

SAMPLE_DIMS = ("chain", "draw")

_ORDER = (
    "posterior",
    "posterior_predictive",
    "predictions",
    "log_likelihood",
    "log_prior",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
    "predictions_constant_data",
)


def make_tree(datasets: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> xr.DataTree:
    """Return the tree of these groups.

    The root has all attributes. A group has the versions of the libraries, and a group of draws also says how they
    were made, so that it can be used alone.
    """
    import xarray as xr

    made_by = {
        "creation_library": "bll_pyro",
        "creation_library_version": metadata.version("bll-pyro"),
        "creation_library_language": "Python",
        "inference_library": "pyro",
        "inference_library_version": metadata.version("pyro-ppl"),
        "torch_version": str(torch.__version__),
    }
    about_draws = {name: attrs[name] for name in ("inference", "independent_draws") if name in attrs}
    groups = {}
    for name in sorted(datasets, key=_ORDER.index):
        more: dict[str, Any] = {"sample_dims": list(SAMPLE_DIMS)} if "draw" in datasets[name].dims else {}
        if not name.startswith("prior"):
            more |= about_draws if more else {}
        groups[name] = datasets[name].assign_attrs(made_by, **more)
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {**made_by, **attrs}
    return tree


def of_draws(arrays: Mapping[str, NDArray[Any]]) -> xr.Dataset:
    """Return a dataset of one number for each draw."""
    import xarray as xr

    shape = next(iter(arrays.values())).shape
    coords = {dim: np.arange(size) for dim, size in zip(SAMPLE_DIMS, shape)}
    return xr.Dataset({name: (SAMPLE_DIMS, array) for name, array in arrays.items()}, coords=coords)
