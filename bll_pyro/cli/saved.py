"""``SavedModel``: a saved fit, with the run that it is of, and the rows that a command line names for it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import bll_pyro as bll
from bll_pyro.archive import MANIFEST
from bll_pyro.cli import run_folder
from bll_pyro.cli.backbones import Timm, Transformers, make_backbone
from bll_pyro.cli.building import Builder
from bll_pyro.cli.data.base import DataSource, Opened, Rows
from bll_pyro.cli.data.encoding import Encoding, NumberColumn
from bll_pyro.cli.data.images import ImageFolder
from bll_pyro.cli.data.record import DataRecord, encoded, for_backbone
from bll_pyro.cli.data.resolve import resolve
from bll_pyro.cli.data.tables import Table, streamed
from bll_pyro.cli.experiment import Experiment, read_draft
from bll_pyro.cli.importing import importable
from bll_pyro.cli.members import FieldKind
from bll_pyro.cli.overrides import overridden
from bll_pyro.cli.usage import UsageError, nearest
from bll_pyro.cli.yaml_file import Document
from bll_pyro.declaration import written
from bll_pyro.features.random_fourier import RandomFeatures
from bll_pyro.files import user_path

OWN = re.compile(r"run:(\w+)")  # a part of the run's own rows
RowIds = Sequence[str | int] | np.ndarray
Blocks = Iterator[tuple[RowIds, Any]]


@dataclass(frozen=True)
class SavedModel:
    """A fit that was saved.

    Parameters
    ----------
    fit
        The fit.
    experiment, record, parts
        Of its run: what was fitted, how its data were read, and the row numbers of training, calibration and test; None and none
        where the fit was saved by itself.
    unknown
        Rows with a category that the training rows did not have, by column, of all that was streamed.
    """

    fit: bll.Fit
    experiment: Experiment | None = None
    record: DataRecord | None = None
    parts: Mapping[str, Rows] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)

    def source(self, given: str, overrides: Mapping[str, str], skip_bad: bool = False) -> DataSource:
        """The data that a text means, read as those of the run were; ``data.`` options change how."""
        like = None if self.record is None else self.record.source
        source = changed(resolve(given, like), overrides)
        if skip_bad and not isinstance(source, ImageFolder):
            raise UsageError(f"--skip-bad: expected a folder of images, got {source}")
        return replace(source, skip_bad=True) if skip_bad and isinstance(source, ImageFolder) else source

    def stream(self, source: DataSource, num_rows: int) -> tuple[int, Blocks]:
        """The number of rows, and their names and inputs, at most so many at a time; targets are not needed."""
        if isinstance(source, Table):
            file = source.file(encoding := self.encoding(source))
            index = source.index if source.index in file.columns else None  # only needed for names
            blocks = streamed(replace(source, index=index), encoding, num_rows, self.unknown)
            return file.num_rows(), blocks
        opened = self.ready(source.open())
        return len(opened), opened.blocks(num_rows)

    def rows(
        self, given: str, overrides: Mapping[str, str], *, skip_bad: bool = False, need_targets: bool = True
    ) -> tuple[Opened, Rows]:
        """Rows as the fit takes them: all of some data, or a part of the run's own, ``run:test``."""
        opened, rows = self.raw_rows(given, overrides, skip_bad=skip_bad, need_targets=need_targets)
        return self.ready(opened), rows

    def raw_rows(
        self, given: str, overrides: Mapping[str, str], *, skip_bad: bool = False, need_targets: bool = True
    ) -> tuple[Opened, Rows]:
        """The same rows as they are in the file, a table with its own columns."""
        if own := OWN.fullmatch(given):
            rows = self.part(own[1])
            return self.whole, rows
        source = self.source(given, overrides, skip_bad)
        if not need_targets and isinstance(source, Table):
            source = replace(source, target=None, features=self.encoding(source).names)
        opened = source.open()
        if isinstance(source, Table) and self.record is None:
            opened = encoded(opened, self.encoding(source))
        if opened.targets is None and need_targets:
            raise UsageError(f"{given}: expected rows with targets, got inputs alone; {_remedy(source)}")
        return opened, np.arange(len(opened))

    @cached_property
    def whole(self) -> Opened:
        """All rows of the run as they are in its files, read once; UsageError if these were moved or changed."""
        assert self.record is not None
        opened = self.record.source.open()
        self.record.check_same(opened)
        return opened

    def part(self, part: str) -> Rows:
        """The row numbers of a part of the run; UsageError if there is no run or no such part."""
        if self.record is None:
            raise UsageError(
                f"run:{part}: expected the folder of a run, got a fit that was saved by itself; name data in its place"
            )
        if part not in self.parts or not len(self.parts[part]):
            there = {name for name, rows in self.parts.items() if len(rows)}
            raise UsageError(
                f"run:{part}: expected a part of the run, got none of this name; {nearest(part, there)}"
            )
        return self.parts[part]

    def ready(self, opened: Opened) -> Opened:
        """Rows as the fit takes them."""
        if self.record is None:
            return for_backbone(opened, self.fit.backbone)
        return self.record.ready(opened, self.fit.backbone)

    def encoding(self, table: Table) -> Encoding:
        """Of the columns of a table: as in the run; of a fit by itself all columns of numbers, those of its training by name."""
        if self.record is not None and self.record.encoding is not None:
            return self.record.encoding
        names = self.fit.feature_names or table.features
        if names is None:
            beside = (*table.targets, table.index)
            names = tuple(name for name in table.file().columns if name not in beside)
        return Encoding(tuple(NumberColumn(name) for name in names))


def load_model(path: str | Path) -> SavedModel:
    """The model in the folder of a run, or of a fit that was saved by itself, also as one file.

    Raises
    ------
    UsageError
        If there is none.
    ValueError
        If a file of it is damaged, or was written by a newer version.
    """
    folder = user_path(path)
    if not folder.exists():
        raise UsageError(
            f"expected the folder of a run or of a saved fit, got {folder}, which does not exist"
        )
    if folder.is_file():
        return SavedModel(bll.load(folder))
    if folder.name == run_folder.MODEL and (folder.parent / run_folder.RECORD).is_file():
        folder = folder.parent
    if not (folder / run_folder.RECORD).is_file():
        if not (folder / MANIFEST).is_file():
            raise UsageError(
                f"expected the folder of a run or of a saved fit, got {folder}, which is neither"
            )
        return SavedModel(bll.load(folder))
    run_folder.check_version(folder)
    code = folder / run_folder.CODE
    with importable(code) if code.is_dir() else nullcontext():
        experiment = read_draft(folder / run_folder.EXPERIMENT).check()
        declared = experiment.backbone
        network: nn.Module | None = None
        if not isinstance(
            declared, Timm | Transformers | RandomFeatures
        ):  # rebuilt from the files of the fit
            made = make_backbone(declared, experiment.seed)
            network = made if isinstance(made, nn.Module) else None
        fit = bll.load(folder / run_folder.MODEL, backbone=network)
        record = DataRecord.read(folder)
    return SavedModel(fit, experiment, record, run_folder.read_parts(folder))


def changed(source: DataSource, overrides: Mapping[str, str]) -> DataSource:
    """A declaration with other values: ``{"data.target": "price"}``."""
    if not overrides:
        return source
    if others := [name for name in overrides if not name.startswith("data.")]:
        raise UsageError(
            f"--{others[0]}: expected options of the data, such as --data.target, got one of the experiment"
        )
    document = overridden(Document({"data": written(source)}, "the command line"), overrides)
    builder = Builder(document)
    made = builder.value(document.plain["data"], FieldKind(classes=(DataSource,)), ("data",))
    builder.raise_problems()
    assert isinstance(made, DataSource)
    return made


def _remedy(source: DataSource) -> str:
    if isinstance(source, Table):
        return "name their column by --data.target"
    if isinstance(source, ImageFolder):
        return "put the images of each class into a folder of its name"
    return "put targets beside them"
