"""``Site``: what one run of a program shows of a site; and arrays over its full plates, joined from blocks of rows."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_factor
from torch import Tensor
from torch.distributions import biject_to

from bll_pyro.datatree.programs.substitute import is_delta, is_deterministic

Kind = Literal["latent", "observed", "deterministic", "factor", "enumerated"]


@dataclass(frozen=True)
class Plate:
    """A vectorised plate around a site: its axis, counted from the right of the batch shape, and its sizes."""

    name: str
    axis: int
    size: int
    """Rows in one run."""
    full_size: int
    """Rows in all."""


@dataclass(frozen=True)
class Site:
    """A sample site, as one run shows it.

    Shapes are those of the full plates. A value has ``event_dim`` axes right of its plates; a log-density has none.
    """

    name: str
    kind: Kind
    plates: tuple[Plate, ...]
    event_dim: int
    value_shape: tuple[int, ...]
    batch_shape: tuple[int, ...]
    is_point: bool
    """Whether its distribution is a point mass."""
    num_free: int
    """Real numbers that its value needs in unconstrained space; 0 for discrete sites."""
    weighted: bool
    """Whether ``poutine.scale`` puts a factor on its log-density; subsampling is not counted."""

    def in_any(self, plates: Sequence[str] | Mapping[str, Any]) -> bool:
        """Whether one of the named plates is around it."""
        return any(plate.name in plates for plate in self.plates)


def read_site(node: Mapping[str, Any], kind: Kind) -> Site:
    """Describe a node of a Pyro trace."""
    fn, value = node["fn"], torch.as_tensor(node["value"])
    frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized]
    event_dim = _event_dim(node, frames) if kind == "deterministic" else fn.event_dim
    if kind == "deterministic":
        batch = value.shape[: value.dim() - event_dim]
    else:
        batch = _density_shape(node, value)
        _check_plates(node, value, batch, frames)
    shape = tuple(batch) + tuple(value.shape[value.dim() - event_dim :])
    plates = tuple(
        Plate(frame.name, frame.dim, batch[frame.dim], _full_size(frame, batch[frame.dim]))
        for frame in sorted(frames, key=lambda frame: frame.dim)
        if -frame.dim <= len(batch) and (frame.size in (-1, batch[frame.dim]))
    )
    full_value, full_batch = list(shape), list(batch)
    for plate in plates:
        full_value[plate.axis - event_dim] = full_batch[plate.axis] = plate.full_size
    return Site(
        name=node["name"],
        kind=kind,
        plates=plates,
        event_dim=event_dim,
        value_shape=tuple(full_value),
        batch_shape=tuple(full_batch),
        is_point=is_delta(fn),
        num_free=_num_free(fn, full_value),
        weighted=_is_weighted(node),
    )


def kind_of(
    node: Mapping[str, Any], supplied: Collection[str] | None, predicted: Collection[str] = ()
) -> Kind:
    """Tell what a site is, where ``supplied`` has draws (None: the program makes its own).

    Sites in ``predicted`` count as observed also in a run that has no data for them.
    """
    if site_is_factor(node):
        return "factor"
    if is_deterministic(node):
        return "deterministic"
    if node["is_observed"] or node["name"] in predicted:
        return "observed"
    if supplied is None or node["name"] in supplied:
        return "latent"
    if is_delta(node["fn"]):
        return "deterministic"
    if getattr(node["fn"], "has_enumerate_support", False):
        return "enumerated"
    raise ValueError(
        f"the draws lack the latent site {node['name']!r}; got draws of {sorted(supplied)}. Add its draws, or, if it "
        "is an observation, pass the data in args or kwargs."
    )


def site_log_prob(node: Mapping[str, Any]) -> Tensor:
    """Log-density of a node by row: with its mask and its ``poutine.scale``, without the factor of subsampling."""
    fn = node["fn"]
    value = _unchecked(fn).log_prob(node["value"], *node["args"], **node["kwargs"])
    result = scale_and_mask(value, _weight(node) if _is_weighted(node) else 1.0, node["mask"])
    return result.expand(torch.broadcast_shapes(result.shape, fn.batch_shape))


def _unchecked(distribution: Any) -> Any:
    """Copy a distribution without its checks of values: one that the caller has expanded keeps them for good.

    Draws at the edge of a support are legal.
    """
    copied = copy.copy(distribution)
    copied._validate_args = False
    if "base_dist" in vars(copied):
        copied.base_dist = _unchecked(copied.base_dist)
    return copied


def mask_of(node: Mapping[str, Any], batch_shape: tuple[int, ...]) -> Tensor | None:
    """Mask over the rows, from ``poutine.mask``, ``obs_mask`` or ``Distribution.mask``; None if there is none."""
    masks = [mask for mask in (node["mask"], getattr(node["fn"], "_mask", None)) if mask is not None]
    if all(mask is True for mask in masks):
        return None
    result = torch.ones(batch_shape, dtype=torch.bool)
    for mask in masks:
        result = result & torch.as_tensor(mask).cpu().bool().expand(batch_shape)
    return result


def _density_shape(node: Mapping[str, Any], value: Tensor) -> torch.Size:
    """Shape of a node's log-density: distribution, value, mask and scale broadcast against each other."""
    fn = node["fn"]
    outer = [node["scale"], node["mask"], getattr(fn, "_mask", None)]
    shapes = [fn.batch_shape, value.shape[: max(0, value.dim() - fn.event_dim)]]
    shapes += [part.shape for part in outer if torch.is_tensor(part)]
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(
            f"site {node['name']!r}: expected a value of the shape {list(fn.batch_shape + fn.event_shape)} of its "
            f"distribution, got {list(value.shape)}; pass data with one entry for each row of its plates"
        ) from None


def _check_plates(node: Mapping[str, Any], value: Tensor, batch: torch.Size, frames: Sequence[Any]) -> None:
    """Refuse axes of a log-density that no plate declares, and events of another size than the distribution's.

    Such axes usually come from shapes that broadcast against each other, ``[N]`` against ``[N, 1]``: the density would be
    that of N times N rows. Pyro checks it in ``Trace_ELBO`` and not in MCMC.
    """
    fn = node["fn"]
    sizes = {frame.dim: frame.size for frame in frames}
    found = {axis - len(batch): size for axis, size in enumerate(batch)}
    wrong = [axis for axis, size in found.items() if size != 1 and sizes.get(axis, 1) not in (-1, size)]
    outer = fn.reinterpreted_batch_ndims if isinstance(fn, torch.distributions.Independent) else 0
    event = value.shape[value.dim() - fn.event_dim :][:outer] if value.dim() >= fn.event_dim else ()
    if not wrong and tuple(event) == tuple(fn.event_shape[:outer]):
        return
    declared = {frame.name: frame.size for frame in frames}
    raise ValueError(
        f"site {node['name']!r}: expected a log-density with the axes of its plates, {declared or 'none'}, got the shape "
        f"{list(batch)} from a distribution of shape {list(fn.batch_shape)} + {list(fn.event_shape)} and a value of shape "
        f"{list(value.shape)}. Bring distribution, data, mask and scale to one shape; enclose axes of independent rows in a "
        "pyro.plate, and declare those of one row with .to_event."
    )


def _event_dim(node: Mapping[str, Any], frames: Sequence[Any]) -> int:
    """Axes right of the plates in a deterministic value: the fewest for which every plate finds its size.

    ``pyro.deterministic`` without ``event_dim`` calls every axis an event axis, also those that are rows of a plate.
    """
    value, declared = node["value"], node["fn"].event_dim
    if not frames:
        return int(value.dim())
    candidates = range(value.dim() + 1) if declared == value.dim() else [declared]
    for event_dim in candidates:
        axes = [frame.dim - event_dim for frame in frames]
        if all(-axis <= value.dim() and value.shape[axis] == frame.size for axis, frame in zip(axes, frames)):
            return event_dim
    return int(declared)


def _full_size(frame: Any, size: int) -> int:
    """Rows of a plate in all; a plate without a size takes that of its sites."""
    return size if frame.size == -1 or not frame.full_size else int(frame.full_size)


def _weight(node: Mapping[str, Any]) -> Any:
    """Factor on the log-density that is not the subsampling of a plate."""
    scale = node["scale"]
    for frame in node["cond_indep_stack"]:
        if frame.full_size and frame.size > 0:
            scale = scale * frame.size / frame.full_size
    return scale


def _is_weighted(node: Mapping[str, Any]) -> bool:
    """Whether that factor differs from 1, in any row, by more than rounding."""
    return bool((torch.as_tensor(_weight(node), dtype=torch.float64) - 1).abs().max() > 1e-6)


def _num_free(fn: Any, shape: Sequence[int]) -> int:
    """Numbers in unconstrained space, or 0 where the support is not continuous."""
    if is_delta(fn):
        return 0
    try:
        transform = biject_to(fn.support)
    except NotImplementedError:
        return 0
    return math.prod(transform.inverse_shape(torch.Size(shape)))


def blocks_of(subsampled: Mapping[str, tuple[int, int]]) -> list[dict[str, Tensor]]:
    """Blocks of rows that cover every subsampled plate; the last of a plate overlaps the one before where it must."""
    choices = []
    for name, (num_rows, size) in subsampled.items():
        starts = [*range(0, size - num_rows, num_rows), size - num_rows]
        choices.append([(name, torch.arange(start, start + num_rows)) for start in starts])
    return [dict(choice) for choice in itertools.product(*choices)]


def join(
    full: NDArray[Any] | None, part: NDArray[Any], site: Site, what: str, rows: Mapping[str, Tensor]
) -> NDArray[Any]:
    """Put one block's part of a value, log-density or mask ``[draw, ...]`` into the array over the full plates."""
    if not site.in_any(rows):
        if full is not None and not np.allclose(full, part, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"site {site.name!r} lies outside the subsampled plates {sorted(rows)} but its {what} changes with "
                "the rows that they choose. Move it inside the plate (for pyro.deterministic also give event_dim)."
            )
        return part if full is None else full
    event_dim = site.event_dim if what == "value" else 0
    shape = site.value_shape if what == "value" else site.batch_shape
    if full is None:
        full = np.empty((len(part), *shape), dtype=part.dtype)
    index: list[NDArray[Any]] = [np.arange(size) for size in full.shape]
    for plate in site.plates:
        if plate.name in rows:
            index[full.ndim + plate.axis - event_dim] = rows[plate.name].numpy()
    full[np.ix_(*index)] = part
    return full
