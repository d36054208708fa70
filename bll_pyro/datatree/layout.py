"""Names of the axes of a last layer's sites, their coordinates, and the selection of outputs and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from bll_pyro.datatree.tree import SAMPLE_DIMS

if TYPE_CHECKING:
    import xarray as xr

    from bll_pyro.posterior import Posterior

Names = Sequence[Any]


@dataclass(frozen=True)
class Axis:
    """One named axis.

    Parameters
    ----------
    labels
        Coordinate of every entry.
    chosen
        Positions that are kept; None keeps all.
    """

    labels: np.ndarray
    chosen: np.ndarray | None = None

    @classmethod
    def of(cls, what: str, size: int, names: Names | None, selection: Names | None) -> Axis:
        """Axis of ``size`` entries with given names, of which some are selected, by position or by name."""
        labels = np.arange(size) if names is None else np.asarray(names)
        if labels.shape != (size,) or len(set(labels.tolist())) != size:
            raise ValueError(
                f"{what} names: expected {size} different names, got {len(labels)} ({len(set(labels.tolist()))} different); "
                "give one for each, in order"
            )
        if selection is None:
            return cls(labels)
        places = {label: place for place, label in enumerate(labels.tolist())}
        chosen = [_position(what, one, places, size) for one in selection]
        if not chosen:
            raise ValueError(f"{what}s: expected at least one to keep, got none; None keeps all")
        return cls(labels, np.array(chosen))

    @property
    def coordinate(self) -> np.ndarray:
        """Labels of the entries that are kept."""
        return self.labels if self.chosen is None else self.labels[self.chosen]


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
    noise_names: tuple[str, ...] = ()
    pair_names: tuple[str, ...] = ()

    @property
    def target_dims(self) -> tuple[str, ...]:
        """Dims of one row's target."""
        if self.num_targets is None:
            return ()
        return ("output",) if self.num_targets == len(self.axes["output"].labels) else ("target",)

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

    def select(self, name: str, value: Tensor) -> np.ndarray:
        """Entries of a site's draws ``[chain, draw, *event]`` that are kept."""
        result = value.detach().cpu()
        for place, dim in enumerate(self.event_dims(name, tuple(value.shape[2:]))):
            chosen = self.axes[dim].chosen if dim in self.axes else None
            if chosen is not None:
                result = result.index_select(2 + place, _index(chosen))
        return result.numpy()

    def of_sites(self, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> xr.Dataset:
        """Dataset of draws ``[chain, draw, *event]``, already selected; ``shapes`` are those of whole values."""
        dims = {name: [*SAMPLE_DIMS, *self.event_dims(name, shapes[name])] for name in arrays}
        return self.dataset({name: (dims[name], array) for name, array in arrays.items()}, selected=True)

    def dataset(
        self, variables: Mapping[str, tuple[Sequence[str], np.ndarray]], selected: bool = False
    ) -> xr.Dataset:
        """Dataset with a coordinate for every axis; of the entries that are kept, or of all."""
        import xarray as xr

        coords: dict[str, np.ndarray] = {}
        for dims, array in variables.values():
            for dim, size in zip(dims, array.shape, strict=True):
                axis = self.axes.get(dim)
                labels = None if axis is None else (axis.coordinate if selected else axis.labels)
                coords[dim] = np.arange(size) if labels is None else labels
        return xr.Dataset(dict(variables), coords=coords)


def make_layout(
    posterior: Posterior,
    target_shape: tuple[int, ...],
    class_names: Names | None = None,
    output_names: Names | None = None,
    feature_names: Names | None = None,
    outputs: Names | None = None,
    features: Names | None = None,
) -> Layout:
    """Axes of a layer, with the names given; outputs are called like the classes where there is one for each."""
    likelihood, axes = posterior.layer.likelihood, {}
    if likelihood.is_discrete:
        num_classes: int = likelihood.num_classes  # type: ignore[attr-defined]
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
    if likelihood.pair_sites and num_targets is not None:
        names = axes["output"].labels.tolist()
        pairs = [f"{names[column]}-{names[row]}" for row in range(num_targets) for column in range(row)]
        axes["pair"] = Axis.of("pair", len(pairs), pairs, None)
    return Layout(axes, num_targets, posterior.global_sites.noise_names, likelihood.pair_sites)


def _index(chosen: np.ndarray) -> Tensor:
    import torch

    return torch.as_tensor(chosen, dtype=torch.long)
