"""Random Fourier features of a table: with them the last layer is a Gaussian process (Rahimi and Recht 2007).

For frequencies ``w_m ~ N(0, diag(1 / l^2))`` the features ``a cos(w_m'x) / sqrt(M), a sin(w_m'x) / sqrt(M)`` have the kernel
``a^2 exp(-sum_d (x_d - x'_d)^2 / (2 l_d^2))`` as their expected product. The frequencies are the Normal quantiles of a scrambled
Sobol sequence, with a smaller error than independent draws (Yang et al. 2014; Avron et al. 2016). The columns themselves stand
beside them, times b, so that a linear trend needs no random feature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bll_pyro.checks import count
from bll_pyro.declaration import Declaration
from bll_pyro.features.backbones import Backbone
from bll_pyro.features.length_scales import Kernel
from bll_pyro.gaussian.points import normal_points

NAME = "random Fourier features"
LENGTHS_SHOWN = 3


@dataclass(frozen=True, eq=False)
class RandomFeatures(Declaration):
    """What :func:`random_features` returns: a backbone that a fit finds from its training rows.

    Parameters
    ----------
    num_features
        Number of random features, cosines and sines.
    num_rows
        Most rows from which the length scales are found; of labels and yes-or-no answers a quarter of it. Time and memory grow with
        its third and second power.
    seed
        Of the frequencies, and of the rows that are taken.
    """

    num_features: int = 1024
    num_rows: int = 1024
    seed: int = 0
    family = "features"

    def __post_init__(self) -> None:
        count(self.num_features, "num_features", "random_features", least=2)
        count(self.num_rows, "num_rows", "random_features", least=2)
        count(self.seed, "seed", "random_features", least=0)

    def most_features(self, num_columns: int) -> int:
        """Number of features at most, of a table of so many columns: the random ones and the columns."""
        return 2 * (self.num_features // 2) + num_columns

    def features(
        self, kernel: Kernel, center: Float[Tensor, " D"], scale: Float[Tensor, " D"]
    ) -> RandomFourierBackbone:
        """The features of a kernel that was found in ``(x - center) / scale``."""
        number = 0 if kernel.lengths is None else self.num_features // 2
        made = FourierFeatures(len(center), number)
        made.center, made.scale = center.double(), scale.double()
        made.linear.fill_(kernel.linear)
        if kernel.lengths is not None:
            made.amplitude.fill_(kernel.amplitude / math.sqrt(number))
            made.lengths.copy_(kernel.lengths)
            made.frequencies = normal_points(number, len(center), self.seed).double() / kernel.lengths
        return RandomFourierBackbone(made)


def random_features(num_features: int = 1024, *, num_rows: int = 1024, seed: int = 0) -> RandomFeatures:
    """A backbone for tables: random Fourier features, whose length scales are found from the data by the evidence.

    With them the last layer is a Gaussian process with a squared exponential kernel beside a linear one, whose cost grows linearly
    in the number of rows. The fit finds a length for each column from its training rows, or one for all, or leaves the random
    features out where they do not raise the evidence: then the layer is linear. ``print(fit)`` says what was found.

    Parameters
    ----------
    num_features
        Number of random features, cosines and sines.
    num_rows
        Most rows from which the length scales are found; of labels and yes-or-no answers a quarter of it.
    seed
        Of the frequencies, and of the rows that are taken.

    Returns
    -------
    RandomFeatures
        A declaration, for ``bll.fit(..., backbone=...)`` and the estimators of ``bll.sklearn``; ``fit.backbone`` is the module that
        was found.

    Raises
    ------
    TypeError, ValueError
        If a number is none, or too small.
    """
    return RandomFeatures(num_features, num_rows, seed)


class FourierFeatures(nn.Module):
    """Rows ``[N, D]`` to features ``[N, 2 M + D]``: cosines, sines, and the columns; computed in float64.

    Parameters
    ----------
    num_columns
        D.
    num_frequencies
        M; 0 for the columns alone.
    """

    center: Tensor
    scale: Tensor
    lengths: Tensor
    frequencies: Tensor
    amplitude: Tensor
    linear: Tensor

    def __init__(self, num_columns: int, num_frequencies: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(num_columns, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(num_columns, dtype=torch.float64))
        self.register_buffer("lengths", torch.full((num_columns,), math.inf, dtype=torch.float64))
        self.register_buffer("frequencies", torch.zeros(num_frequencies, num_columns, dtype=torch.float64))
        self.register_buffer("amplitude", torch.zeros((), dtype=torch.float64))
        self.register_buffer("linear", torch.ones((), dtype=torch.float64))

    def forward(self, rows: Tensor) -> Tensor:
        """The features ``[N, 2 M + D]``, in the type of the rows."""
        num_columns = len(self.center)
        if rows.dim() != 2 or rows.shape[1] != num_columns:
            raise ValueError(
                f"random_features: expected rows of {num_columns} columns, as in the fit, [N, {num_columns}], got shape "
                f"{list(rows.shape)}; pass the same columns"
            )
        values = (rows.to(self.center) - self.center) / self.scale  # a constant column has an infinite scale
        parts = [values * self.linear]
        if len(self.frequencies):
            angles = values @ self.frequencies.mT
            parts = [angles.cos() * self.amplitude, angles.sin() * self.amplitude, *parts]
        return torch.cat(parts, 1).to(rows.dtype if rows.is_floating_point() else torch.get_default_dtype())


class RandomFourierBackbone(Backbone):
    """Random Fourier features that were found from the rows of a fit.

    Parameters
    ----------
    model
        The features, all of whose numbers are fixed.
    """

    model: FourierFeatures

    def __init__(self, model: FourierFeatures) -> None:
        super().__init__(model, name=NAME, unfreeze=False)

    def forward(self, rows: Tensor) -> Tensor:
        """The features ``[N, 2 M + D]`` of rows ``[N, D]``."""
        features: Tensor = self.model(rows)
        return features

    @property
    def length_scales(self) -> Float[Tensor, " D"] | None:
        """Lengths ``[D]`` in the units of the columns, over which the smooth part changes; None where the layer is linear.

        Infinite for columns that are constant in the training rows.
        """
        return self.model.lengths * self.model.scale if len(self.model.frequencies) else None

    @property
    def found(self) -> str:
        """What was found, in words."""
        lengths, num_columns = self.model.lengths, len(self.model.lengths)
        if not len(self.model.frequencies):
            return f"random features: none, the evidence is for the {num_columns} columns alone"
        number = f"random features: {2 * len(self.model.frequencies):,} and {num_columns} columns"
        if num_columns == 1 or bool((lengths == lengths[0]).all()):
            return f"{number}; one length scale, {float(lengths[0]):.2g} times each column's scale"
        order = lengths.argsort()[:LENGTHS_SHOWN].tolist()
        shown = ", ".join(f"{float(lengths[column]):.2g} of column {column}" for column in order)
        return f"{number}; length scales, the shortest first, over each column's scale: {shown}"

    @property
    def config(self) -> dict[str, Any]:
        return {
            "library": "bll_pyro",
            "name": NAME,
            "num_columns": len(self.model.center),
            "num_frequencies": len(self.model.frequencies),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Features with numbers of no meaning, for ``load_state_dict`` afterwards."""
        return cls(FourierFeatures(config["num_columns"], config["num_frequencies"]))
