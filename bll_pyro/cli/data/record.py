"""``DataRecord``: what a run keeps of its data, so that other data are read in the same way and changed ones are noticed."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from torch import nn

from bll_pyro.cli.data.base import DataSource, Opened, Rows
from bll_pyro.cli.data.encoding import Encoding
from bll_pyro.cli.data.image_files import ImageFiles
from bll_pyro.cli.data.tables import Table
from bll_pyro.cli.usage import UsageError
from bll_pyro.declaration import Declaration, from_plain, to_plain
from bll_pyro.features.random_fourier import RandomFeatures

FILE = "data.json"


@dataclass(frozen=True, eq=False)
class DataRecord(Declaration):
    """How the data of a run were read.

    Parameters
    ----------
    source
        Where they came from.
    num_rows
        Number of rows.
    fingerprint
        Hash of the contents; None where only Python knows them.
    classes
        Names of the classes, in the order of their numbers; None where targets are no classes.
    encoding
        Of the columns of a table, from the training rows; None for other data.
    """

    family: ClassVar[str] = "record"
    source: DataSource
    num_rows: int
    fingerprint: str | None = None
    classes: tuple[str, ...] | None = None
    encoding: Encoding | None = None

    @classmethod
    def of(cls, source: DataSource, opened: Opened, training: Rows) -> Self:
        """The record of open data, whose columns are learned from the training rows."""
        encoding = source.learned(opened, training) if isinstance(source, Table) else None
        fingerprint = None if opened.fingerprint is None else opened.fingerprint()
        return cls(source, len(opened), fingerprint, opened.classes, encoding)

    def ready(self, opened: Opened, backbone: nn.Module | RandomFeatures | None) -> Opened:
        """Rows as the fit takes them: columns as features, images as the backbone wants them, classes by their numbers.

        Raises
        ------
        UsageError
            If a column is missing, a class is not known, or images are of several sizes.
        """
        if self.encoding is not None:
            opened = encoded(opened, self.encoding)
        return self._with_known_classes(for_backbone(opened, backbone))

    def _with_known_classes(self, opened: Opened) -> Opened:
        known = self.classes
        if opened.classes is None or known is None or opened.classes == known or opened.targets is None:
            return opened
        if others := [name for name in opened.classes if name not in known]:
            raise UsageError(
                f"expected the classes {', '.join(known[:10])}{', ...' * (len(known) > 10)}, got "
                f"{', '.join(map(repr, others[:10]))}; leave out rows of other classes"
            )
        numbers = np.asarray([known.index(name) for name in opened.classes])
        return replace(opened, targets=numbers[opened.targets], classes=known)

    def check_same(self, opened: Opened) -> None:
        """Raise a UsageError if rows are not those of the run."""
        found = None if opened.fingerprint is None else opened.fingerprint()
        if len(opened) != self.num_rows or found != self.fingerprint:
            contents = f"{len(opened):,} rows" if len(opened) != self.num_rows else "other contents"
            raise UsageError(
                f"expected the {self.num_rows:,} rows of which the run was made, got {contents}: the data were changed since; "
                "restore them, or fit again"
            )

    def write(self, folder: Path) -> None:
        """Write it into the folder of a run, as JSON."""
        with (folder / FILE).open("w", encoding="utf-8") as file:
            json.dump(to_plain(self, {}), file, indent=1)

    @classmethod
    def read(cls, folder: Path) -> DataRecord:
        """The record in the folder of a run."""
        try:
            found = from_plain(json.loads((folder / FILE).read_text(encoding="utf-8")), {})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"expected a whole {FILE} in {folder}, got one that cannot be read: {error}; fit again"
            ) from error
        assert isinstance(found, DataRecord)
        return found


def encoded(opened: Opened, encoding: Encoding) -> Opened:
    """The rows of a table as features."""
    features = encoding.features(opened.inputs)
    return replace(opened, inputs=features, feature_names=tuple(features.columns))


def for_backbone(opened: Opened, backbone: nn.Module | RandomFeatures | None) -> Opened:
    """Images as a backbone wants them; other rows as they are."""
    if not isinstance(opened.inputs, ImageFiles):
        return opened
    network = None if isinstance(backbone, RandomFeatures) else backbone
    return replace(opened, inputs=opened.inputs.for_backbone(network))
