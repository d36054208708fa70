"""``Substitute``: the Pyro handler that runs a program on given values, on given rows, or without its observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor


def is_deterministic(message: Mapping[str, Any]) -> bool:
    """Whether a site's value follows from other sites: ``pyro.deterministic``, or what a reparameterisation leaves.

    Pyro writes both as an observed Delta.
    """
    if message["infer"].get("_deterministic", False):
        return True
    return bool(message["is_observed"]) and is_delta(message["fn"])


def is_delta(distribution: Any) -> bool:
    """Whether a distribution is a point mass, under any expansion, mask or reinterpretation."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return type(distribution).__name__ == "Delta"


class Substitute(Messenger):
    """Give the sites of one run their values, and the plates of the run their rows.

    A plate that subsamples takes the rows it is told. Its sites get those rows of their values, so that runs over
    all blocks of rows together are one run on the full data, without a change to the program.

    Parameters
    ----------
    values
        Values by site, each over the *full* plates. A site with a value is not sampled; other latent sites are.
    rows
        Row numbers by subsampled plate. A plate that is not named takes its first rows.
    release
        Ignore the observations: observed sites are sampled, unless ``values`` has them.
    """

    def __init__(
        self, values: Mapping[str, Tensor], rows: Mapping[str, Tensor] | None = None, release: bool = False
    ) -> None:
        super().__init__()
        self.values = values
        self.rows = dict(rows or {})
        self.release = release
        self.enumerating = False
        """Whether discrete sites are enumerated, on axes left of the plates, which a supplied value lacks."""
        self.subsampled: dict[str, tuple[int, int]] = {}
        """Rows in a run, and rows in all, of every plate that subsamples."""
        self.sampled: set[str] = set()
        """Latent sites that drew their own value."""

    def _pyro_sample(self, message: Any) -> None:
        """Fill in one site; Pyro calls this after the program's own handlers."""
        if site_is_subsample(message):
            self._choose_rows(message)
        elif site_is_factor(message) or is_deterministic(message):
            return
        elif message["is_observed"]:
            if self.release:
                self._release(message)
                self._fill(message)
        else:
            self._fill(message)

    def _fill(self, message: Any) -> None:
        """Give a site its value, cut to the rows of the run."""
        name, fn = message["name"], message["fn"]
        if name not in self.values:
            self.sampled.add(name)
            return
        value = self.values[name]
        for frame in message["cond_indep_stack"]:
            if frame.vectorized and frame.name in self.subsampled:
                axis = frame.dim - fn.event_dim
                if value.dim() >= -axis:
                    value = value.index_select(axis, self.rows[frame.name].to(value.device))
        expected = fn.batch_shape + fn.event_shape
        if value.shape != expected and not self.enumerating:
            raise ValueError(
                f"a draw of site {name!r} has shape {tuple(value.shape)}, but the model gives this site the shape "
                f"{tuple(expected)}. Expected draws [chain, draw, {', '.join(map(str, expected))}]; for draws "
                "without a chain axis say sample_dims=('draw',)."
            )
        message["value"], message["done"] = value, True

    def _release(self, message: Any) -> None:
        """Turn an observed site into one that is sampled, with as many rows as were observed."""
        fn, observed = message["fn"], torch.as_tensor(message["value"])
        observed_batch = observed.shape[: observed.dim() - fn.event_dim]
        batch_shape = torch.broadcast_shapes(fn.batch_shape, observed_batch)
        if batch_shape != fn.batch_shape:  # rows that no plate declares: one distribution, many observations
            message["fn"] = fn.expand(batch_shape)
        message["value"], message["is_observed"], message["done"] = None, False, False

    def _choose_rows(self, message: Any) -> None:
        """Give a plate its rows."""
        name, size, num_rows = message["name"], message["fn"].size, message["fn"].subsample_size
        given = message["value"]
        if given is not None:
            if len(given) < size:
                raise ValueError(
                    f"plate {name!r} is given {len(given)} of its {size} rows by the arguments of the program; "
                    "expected all rows, since a conversion is about the whole data. Pass args (and kwargs) with "
                    "the full data and no subsample."
                )
        elif num_rows is not None and num_rows < size:
            self.subsampled[name] = (num_rows, size)
            rows = self.rows.setdefault(name, torch.arange(num_rows))
            message["value"], message["done"] = rows, True
