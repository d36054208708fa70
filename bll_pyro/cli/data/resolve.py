"""From what stands on a command line to a declaration of data: a path, a name, or ``module:function``."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from bll_pyro.cli.data.arrays import SUFFIXES as ARRAYS
from bll_pyro.cli.data.arrays import Arrays
from bll_pyro.cli.data.base import DataSource
from bll_pyro.cli.data.builtin import CLASSES, VALUES, BuiltIn
from bll_pyro.cli.data.images import ImageFolder
from bll_pyro.cli.data.others import FeatureStore, Function
from bll_pyro.cli.data.table_files import CSV, PARQUET
from bll_pyro.cli.data.tables import Table
from bll_pyro.cli.usage import UsageError, nearest
from bll_pyro.files import user_path
from bll_pyro.shards.manifest import FORMAT, MANIFEST

DATA_SUFFIXES = (*CSV, *PARQUET, *ARRAYS)


def resolve(given: str, like: DataSource | None = None) -> DataSource:
    """The data that a text means: by what there is at a path, else a set of scikit-learn or a function.

    Parameters
    ----------
    given
        A folder of images, a store of features, a table, a file of arrays, the name of a :class:`BuiltIn`, ``module:function``.
    like
        Data whose other settings (target column, names of arrays, size of images) are taken, if they are of the same kind.

    Raises
    ------
    UsageError
        If it is none of these.
    """
    path = user_path(given)
    if (
        path.is_dir()
        and not _is_store(path)
        and (stores := [one for one in sorted(path.iterdir()) if _is_store(one)])
    ):
        if len(stores) > 1:
            raise UsageError(
                f"expected one store of features, got {len(stores)} in {given}; name one: "
                f"{', '.join(one.name for one in stores[:5])}"
            )
        return FeatureStore(
            str(Path(given) / stores[0].name)
        )  # what bll.extract(store=...) makes holds one for each data
    if path.exists():
        kind = _kind_of(path)
        return replace(like, path=given) if type(like) is kind else kind(given)  # type: ignore[call-arg,type-var,arg-type,return-value]
    if given in CLASSES + VALUES:
        return BuiltIn(given)
    if re.fullmatch(r"[\w.]+:[\w.]+", given):
        return Function(given)
    if re.search(r"[/\\.]", given):
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, beside) if beside else ""
        remedy = (
            f"; {close}"
            if close.startswith("did")
            else f"; there is no folder {path.parent}" * (not path.parent.is_dir())
        )
        raise UsageError(f"expected data, got {given}, which does not exist{remedy}")
    raise UsageError(
        f"expected data, got {given!r}, which does not exist; expected the path of a folder or file, module:function, or one of "
        f"{', '.join(CLASSES + VALUES)}"
    )


def _kind_of(path: Path) -> type[Any]:
    """The declaration for what there is at a path."""
    if path.is_dir():
        return FeatureStore if _is_store(path) else ImageFolder
    suffix = path.suffix.lower()
    if suffix in CSV + PARQUET:
        return Table
    if suffix in ARRAYS:
        return Arrays
    raise UsageError(
        f"expected a folder, a table ({', '.join(CSV + PARQUET)}) or arrays ({', '.join(ARRAYS)}), got {path}; "
        "write it in one of these"
    )


def _is_store(folder: Path) -> bool:
    try:
        body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(body, dict) and body.get("format") == FORMAT
