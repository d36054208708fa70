"""From arrays to a tree: names and coordinates of axes, the selection of outputs and features, groups and attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    import xarray as xr

    from bll_pyro.posterior import Posterior

SAMPLE_DIMS = ("chain", "draw")

_ORDER = (
    "posterior",
    "posterior_predictive",
    "class_probs",
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

Names = Sequence[Any]
Parts = dict[tuple[str, str], list[np.ndarray]]
"""Arrays of each chunk of draws ``[chain, c, ...]``, by group and name."""


def join_chunks(parts: Parts) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of all draws ``[chain, draw, ...]``, by group and by name."""
    result: dict[str, dict[str, np.ndarray]] = {}
    for (group, name), chunks in parts.items():
        result.setdefault(group, {})[name] = np.concatenate(chunks, 1)
    return result


@dataclass(frozen=True)
class Axis:
    """One named axis.

    Parameters
    ----------
    labels
        Coordinate of every entry.
    kept_labels
        Coordinate of the entries that are kept.
    chosen
        Their positions; None keeps all.
    """

    labels: np.ndarray
    kept_labels: np.ndarray
    chosen: np.ndarray | None = None

    @classmethod
    def of(cls, what: str, size: int, names: Names | None, selection: Names | None) -> Axis:
        """Axis of ``size`` entries with given names, of which some are selected, by position or by name."""
        for given in (names, selection):
            if given is not None and (isinstance(given, str) or not np.ndim(given)):
                raise ValueError(
                    f"{what}s: expected a list of names or positions, got {given!r}; put it into a list"
                )
        labels = np.arange(size) if names is None else np.asarray(names)
        if labels.shape != (size,) or len(set(labels.tolist())) != size:
            raise ValueError(
                f"{what} names: expected {size} different names, got {len(labels)} ({len(set(labels.tolist()))} different); "
                "give one for each, in order"
            )
        if selection is None:
            return cls(labels, labels)
        places = {label: place for place, label in enumerate(labels.tolist())}
        chosen = [_position(what, one, places, size) for one in selection]
        if not chosen:
            raise ValueError(f"{what}s: expected at least one to keep, got none; None keeps all")
        return cls(labels, labels[chosen], np.array(chosen))


def _position(what: str, one: Any, places: Mapping[Any, int], size: int) -> int:
    if one in places:
        return places[one]
    if isinstance(one, (int, np.integer)) and not isinstance(one, bool) and -size <= one < size:
        return int(one) % size
    known = list(places)
    shown = known if size <= 12 else [*known[:10], "..."]
    raise ValueError(f"{what}s: expected positions below {size} or names among {shown}, got {one!r}")


@dataclass(frozen=True)
class Layout:
    """Axes of a layer with K outputs, D features, N rows and targets of a given shape.

    ============================ ======================================================
    array                        dims
    ============================ ======================================================
    ``weight`` and its like      ``output, feature``
    ``bias``, a number for each  ``output``
    ``noise_scale``              none, or one for each target: as the targets
    one for each pair of them    ``pair``
    targets                      ``obs``, or ``obs, output``; ``obs, target`` where a
                                 target has more than one output
    anything else                ``{name}_dim_0``, ...
    ============================ ======================================================
    """

    axes: Mapping[str, Axis]
    num_targets: int | None
    target_dims: tuple[str, ...] = ()
    noise_names: tuple[str, ...] = ()
    pair_names: tuple[str, ...] = ()

    def event_dims(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Names of the axes of one value of a site."""
        sizes = {dim: len(axis.labels) for dim, axis in self.axes.items()}
        if name in self.pair_names:
            return ["pair"]
        if name in self.noise_names:
            if self.num_targets is not None and shape == (self.num_targets,):
                return list(self.target_dims)
        elif len(shape) == 2 and shape == (sizes["output"], sizes["feature"]):
            return ["output", "feature"]
        elif len(shape) == 1:
            for dim in ("output", "feature"):
                if shape[0] == sizes[dim]:
                    return [dim]
        return [f"{name}_dim_{place}" for place in range(len(shape))]

    def keep_sites(self, parts: Parts, group: str, draws: Mapping[str, Tensor]) -> None:
        """Add the entries of draws ``{site: [chain, c, *event]}`` that are kept to the chunks of their group."""
        for name, value in draws.items():
            result = value.detach().cpu()
            for place, dim in enumerate(self.event_dims(name, value.shape[2:])):
                chosen = self.axes[dim].chosen if dim in self.axes else None
                if chosen is not None:
                    result = result.index_select(2 + place, torch.as_tensor(chosen))
            parts[group, name].append(result.numpy())

    def of_sites(self, arrays: Mapping[str, np.ndarray], draws: Mapping[str, Tensor]) -> xr.Dataset:
        """Dataset of the entries that are kept, ``[chain, draw, *event]``; some whole ``draws`` show the sites' shapes."""
        dims = {name: (*SAMPLE_DIMS, *self.event_dims(name, draws[name].shape[2:])) for name in arrays}
        return self.dataset({name: (dims[name], array) for name, array in arrays.items()}, selected=True)

    def of_draws(self, arrays: Mapping[str, np.ndarray]) -> xr.Dataset:
        """Dataset of one value of each draw ``[chain, draw]``, or of each draw and row ``[chain, draw, obs, ...]``."""
        last = {"f": ("output",), "class_probs": ("class",)}
        dims = {name: (*SAMPLE_DIMS, "obs", *last.get(name, self.target_dims)) for name in arrays}
        # a value of the whole row, such as the log density of targets that depend on each other, has no last axis
        return self.dataset({name: (dims[name][: array.ndim], array) for name, array in arrays.items()})

    def dataset(
        self, variables: Mapping[str, tuple[Sequence[str], np.ndarray]], selected: bool = False
    ) -> xr.Dataset:
        """Dataset with a coordinate for every axis; of the entries that are kept, or of all."""
        import xarray as xr

        coords: dict[str, np.ndarray] = {}
        for dims, array in variables.values():
            for dim, size in zip(dims, array.shape, strict=True):
                axis = self.axes.get(dim)
                labels = None if axis is None else (axis.kept_labels if selected else axis.labels)
                coords[dim] = np.arange(size) if labels is None else labels
        return xr.Dataset(dict(variables), coords=coords)


def make_layout(
    posterior: Posterior,
    class_names: Names | None = None,
    output_names: Names | None = None,
    feature_names: Names | None = None,
    outputs: Names | None = None,
    features: Names | None = None,
) -> Layout:
    """Axes of a layer, with the names given; outputs have the names of the classes where there is one for each."""
    likelihood, target_shape, axes = posterior.layer.likelihood, posterior.target_shape, {}
    if likelihood.is_discrete:
        num_classes: int = likelihood.num_classes  # type: ignore[attr-defined]
        if class_names is None and likelihood.coding is not None:
            class_names = likelihood.coding.labels
        axes["class"] = Axis.of("class", num_classes, class_names, None)
        if output_names is None and num_classes == posterior.num_outputs:
            output_names = class_names
    elif class_names is not None:
        raise ValueError(
            f"class_names: expected a fit of classes, got {type(likelihood).__name__}; use output_names"
        )
    axes["output"] = Axis.of("output", posterior.num_outputs, output_names, outputs)
    axes["feature"] = Axis.of("feature", posterior.frame.num_features, feature_names, features)
    num_targets = target_shape[0] if target_shape else None
    target_dims: tuple[str, ...] = ()
    if num_targets is not None:
        target_dims = ("output",) if num_targets == posterior.num_outputs else ("target",)
    if likelihood.pair_sites and num_targets is not None:
        names = axes["output"].labels.tolist()
        pairs = [f"{names[column]}-{names[row]}" for row in range(num_targets) for column in range(row)]
        axes["pair"] = Axis.of("pair", len(pairs), pairs, None)
    return Layout(axes, num_targets, target_dims, posterior.global_sites.noise_names, likelihood.pair_sites)


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
