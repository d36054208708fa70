"""A split: what every method is given, and what judges it. Written to a file, so that all processes read the same rows."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, VALUES, NETWORK = "classes", "values", "network"
"""Kinds of tasks: a last layer for classes, a last layer for values, and a network with its last layer for values."""

PARTS = ("test", "kept", "near", "far")
"""Rows that are predicted: test rows, known rows kept aside for thresholds, and two sets of unknown rows."""


@dataclass(frozen=True, eq=False)
class Split:
    """Training rows, and the rows that judge.

    Attributes
    ----------
    kind : str
        Out of ``CLASSES``, ``VALUES``, ``NETWORK``.
    features : ndarray
        Training rows ``[N, D]``, float32: features of a network, or for ``NETWORK`` its inputs.
    targets : ndarray
        int64 classes ``[N]``, or float32 values.
    parts : dict
        Rows ``[M, D]`` by name out of ``PARTS``; only classes have others than test rows.
    test_targets : ndarray
        Targets of the test rows.
    num_classes : int
        0 for values.
    source : ndarray
        Which rows of the stored data these are, in the order training, then the parts: for the hash.
    """

    kind: str
    features: np.ndarray
    targets: np.ndarray
    parts: dict[str, np.ndarray]
    test_targets: np.ndarray
    num_classes: int
    source: np.ndarray

    @property
    def hash(self) -> str:
        """Which rows train and which judge, in which order, with their targets.

        Features follow from the rows and the task's recipe, up to rounding that differs between machines; a task with
        another recipe gets another name.
        """
        made = hashlib.sha256(self.kind.encode())
        made.update(np.ascontiguousarray(self.source, np.int64).tobytes())
        for targets in (self.targets, self.test_targets):
            made.update(np.ascontiguousarray(targets, np.float64).tobytes())
        shapes = (self.features.shape, *(self.parts[name].shape for name in sorted(self.parts)))
        made.update(repr(shapes).encode())
        return made.hexdigest()[:12]

    def write(self, path: Path) -> None:
        """Write to a file of arrays."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {f"part_{name}": rows for name, rows in self.parts.items()}
        arrays |= {"kind": np.array(self.kind), "num_classes": np.array(self.num_classes)}
        arrays |= {"features": self.features, "targets": self.targets}
        np.savez(path, test_targets=self.test_targets, source=self.source, **arrays)

    @classmethod
    def read(cls, path: Path) -> "Split":
        """Read what `write` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            parts = {name: stored[f"part_{name}"] for name in PARTS if f"part_{name}" in stored.files}
            return cls(
                str(stored["kind"]), stored["features"], stored["targets"], parts, stored["test_targets"],
                int(stored["num_classes"]), stored["source"],
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scaled:
    """Rows and values in units of the training rows, for the methods that do not scale by themselves.

    Columns are centred. Features of a network share a unit, so they share a scale; columns of a table have one each.
    """

    center: np.ndarray
    scale: np.ndarray
    target_center: float
    target_scale: float

    @classmethod
    def of(cls, split: Split) -> "Scaled":
        """Centres and scales of the training rows."""
        spread = split.features.std(0, dtype=np.float64)
        if split.kind != NETWORK:
            spread = np.full_like(spread, np.sqrt(np.square(spread).mean()))
        center, scale = 0.0, 1.0
        if split.kind != CLASSES:
            center, scale = float(split.targets.mean(dtype=np.float64)), float(split.targets.std())
        return cls(split.features.mean(0, dtype=np.float64), np.maximum(spread, 1e-12), center, scale)

    def rows(self, features: np.ndarray) -> np.ndarray:
        """Features ``[N, D]`` in these units, float32."""
        return ((features - self.center) / self.scale).astype(np.float32)

    def values(self, targets: np.ndarray) -> np.ndarray:
        """Values in these units, float32."""
        return ((targets - self.target_center) / self.target_scale).astype(np.float32)
