"""From arrays by site to the groups of an ArviZ DataTree: names of dimensions, coordinates, rows under a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bll_pyro.datatree.layout import SAMPLE_DIMS
from bll_pyro.datatree.programs.sites import Site

if TYPE_CHECKING:
    import xarray as xr

Coords = Mapping[str, Sequence[Any] | NDArray[Any]]
Dims = Mapping[str, Sequence[str | None]]


@dataclass
class Groups:
    """Builds the datasets of a tree.

    Axes of a site are named, from left to right: ``chain`` and ``draw``; the plates by their own names; every other
    axis ``{site}_dim_{i}``; unless ``dims`` names them. An axis of length 1 that only fills the place of a missing
    plate is dropped. A site with a mask keeps its unmasked rows, along one dimension ``{site}_row``, with the places of
    the rows in the plates as coordinates ``{site}_{plate}``.

    Parameters
    ----------
    sites, masks
        From the survey of the model.
    coords
        Values of dimensions; others are counted from 0.
    dims
        Names of the axes of a site, without ``chain`` and ``draw``; None in the list leaves the name above.
    """

    sites: Mapping[str, Site]
    masks: Mapping[str, NDArray[np.bool_]]
    coords: Coords = field(default_factory=dict)
    dims: Dims = field(default_factory=dict)
    used: set[str] = field(default_factory=set, init=False)
    """Dimensions that occurred, to find names that never do."""
    arrays: set[str] = field(default_factory=set, init=False)
    """Variables that are not sites."""

    def of_sites(
        self, arrays: Mapping[str, NDArray[Any]], what: str, sample_shape: tuple[int, ...] = ()
    ) -> xr.Dataset:
        """Return a dataset of values or log-densities of sites, ``[draw, ...]`` or, without sample shape, ``[...]``."""
        import xarray as xr

        variables: dict[str, Any] = {}
        rows: dict[str, Any] = {}
        for name, array in arrays.items():
            site = self.sites[name]
            if name in self.masks and not self.masks[name].any():
                continue  # nothing of it is in the model: obs_mask makes such a site where no data are missing
            lead = SAMPLE_DIMS if sample_shape else ()
            values = array.reshape(*sample_shape, *array.shape[1:]) if sample_shape else array
            names, values = self._name_axes(site, what, values, len(lead))
            if name in self.masks:
                num_rows = len(site.batch_shape) - _num_fillers(site)
                values, extra = self._unmasked(site, names[:num_rows], values, len(lead))
                names = [f"{name}_row", *names[num_rows:]]
                rows.update(extra)
            variables[name] = ([*lead, *names], values)
        dataset = self._dataset(xr.Dataset, variables)
        return dataset.assign_coords(rows)

    def of_arrays(self, arrays: Mapping[str, Any]) -> xr.Dataset:
        """Return a dataset of arrays that are not sites."""
        import xarray as xr

        variables = {}
        self.arrays |= set(arrays)
        for name, array in arrays.items():
            values = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
            defaults = [f"{name}_dim_{i}" for i in range(values.ndim)]
            variables[name] = (self._given(name, defaults, values.ndim), values)
        return self._dataset(xr.Dataset, variables)

    def check_all_used(self) -> None:
        """Refuse names that occur nowhere, which are likely misspelt."""
        unknown = sorted(set(self.coords) - self.used)
        if unknown:
            raise ValueError(
                f"coords names the dimensions {unknown}, but the tree has only {sorted(self.used)}."
            )
        variables = {*self.sites, *self.arrays}
        if unknown := sorted(set(self.dims) - variables):
            raise ValueError(f"dims names the variables {unknown}, but there are only {sorted(variables)}.")

    def _name_axes(
        self, site: Site, what: str, values: NDArray[Any], num_lead: int
    ) -> tuple[list[str], NDArray[Any]]:
        """Name the axes of a site's array behind the leading ones, and drop those that only fill a place."""
        num_batch = len(site.batch_shape)
        by_axis = {plate.axis: plate.name for plate in site.plates}
        fillers = set(_fillers(site))
        drop = tuple(num_lead + num_batch + axis for axis in fillers)
        names: list[str | None] = [by_axis.get(axis) for axis in range(-num_batch, 0) if axis not in fillers]
        num_events = values.ndim - num_lead - num_batch
        unnamed = iter(range(values.ndim))
        defaults = [name or f"{site.name}_dim_{next(unnamed)}" for name in [*names, *[None] * num_events]]
        whole = len(names) + len(site.value_shape) - num_batch  # a log-density has the first of these axes
        given = self._given(site.name, [*defaults, *[""] * (whole - len(defaults))], whole)
        return given[: len(defaults)], values.squeeze(drop)

    def _given(self, name: str, defaults: Sequence[str], ndim: int) -> list[str]:
        """Return the names that the caller gives to the axes of a variable, filled up with the default ones."""
        given = self.dims.get(name)
        if given is None:
            return list(defaults)
        if isinstance(given, str) or len(given) != ndim:
            raise ValueError(
                f"dims[{name!r}] is {given!r}, but {name!r} has {ndim} axes besides chain and draw"
                f"{' (by default ' + str(list(defaults)) + ')' if ndim else ''}. Give a list of {ndim} names; None "
                "keeps the default name."
            )
        return [one or default for one, default in zip(given, defaults)]

    def _unmasked(
        self, site: Site, names: Sequence[str], values: NDArray[Any], num_lead: int
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Take the unmasked rows of a site, along one axis; return also the coordinates that say where they were."""
        mask = self.masks[site.name].squeeze(tuple(_fillers(site)))
        places = np.nonzero(mask)
        flat = values.reshape(*values.shape[:num_lead], mask.size, *values.shape[num_lead + mask.ndim :])
        index = (slice(None),) * num_lead + (np.flatnonzero(mask),)
        rows = {
            f"{site.name}_{name}": (f"{site.name}_row", self._coordinate(name, size)[place])
            for name, size, place in zip(names, mask.shape, places)
        }
        return flat[index], rows

    def _coordinate(self, dim: str, size: int) -> NDArray[Any]:
        """Return the values of a dimension."""
        self.used.add(dim)
        if dim not in self.coords:
            return np.arange(size)
        values = np.asarray(self.coords[dim])
        if values.shape != (size,):
            raise ValueError(
                f"coords[{dim!r}] has shape {values.shape}, but the dimension has {size} entries."
            )
        return values

    def _dataset(self, make: Any, variables: Mapping[str, tuple[Sequence[str], NDArray[Any]]]) -> xr.Dataset:
        """Make a dataset, with a coordinate for every dimension."""
        sizes: dict[str, int] = {}
        for name, (dims, values) in variables.items():
            if len(set(dims)) < len(dims):
                raise ValueError(
                    f"{name!r} would have the dimensions {list(dims)}; rename some of them by dims."
                )
            for dim, size in zip(dims, values.shape):
                if sizes.setdefault(dim, size) != size or dim in variables:
                    other = f"a dimension of {sizes[dim]} entries" if dim not in variables else "a variable"
                    raise ValueError(
                        f"dimension {dim!r} of {name!r} ({size} entries) is also {other}. Name the axes of {name!r} "
                        f"yourself: dims={{{name!r}: [...]}}."
                    )
        coords = {dim: self._coordinate(dim, size) for dim, size in sizes.items()}
        clean = {
            name.replace("/", "."): variable for name, variable in variables.items()
        }  # "/" parts groups of a tree
        return make(clean, coords=coords)


def _fillers(site: Site) -> list[int]:
    """Batch axes of length 1 that hold the place of a plate which is not there, counted from the right."""
    leftmost = min((plate.axis for plate in site.plates), default=0)
    return [
        axis
        for axis in range(-len(site.batch_shape), 0)
        if axis > leftmost
        and site.batch_shape[axis] == 1
        and all(plate.axis != axis for plate in site.plates)
    ]


def _num_fillers(site: Site) -> int:
    return len(_fillers(site))
