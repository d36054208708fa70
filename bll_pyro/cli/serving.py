"""What ``bll serve`` serves: the model of a run, whose rows come as those of its training did, or a fit that was saved by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bll_pyro.cli.data.encoding import Encoding
from bll_pyro.cli.data.image_files import prepared
from bll_pyro.cli.data.images import ImageFolder
from bll_pyro.cli.data.tables import Table
from bll_pyro.cli.saved import load_model
from bll_pyro.cli.usage import UsageError
from bll_pyro.serve import Model, of_fit


def load_served(path: Path) -> Model:
    """The model in a folder, as a service takes it.

    Raises
    ------
    UsageError
        If there is none, or its inputs are texts.
    ValueError
        If a file of it is damaged.
    """
    saved = load_model(path)
    backbone = saved.fit.backbone
    if hasattr(backbone, "tokenizer"):
        raise UsageError(
            f"{path}: expected a model of numbers or images, got one of texts, which cannot be served yet; serve its head, "
            "fit.head, for features"
        )
    more: dict[str, Any] = {}
    record = saved.record
    if record is not None and record.classes is not None:
        more["classes"] = list(record.classes)
    if record is not None and isinstance(record.source, ImageFolder):
        transform, size = getattr(backbone, "transform", None), record.source.size
        more["prepare"] = partial(_row, size=size, transform=transform)
        if transform is None and size is not None:
            more["input_shape"] = (3, size, size)
    if record is not None and isinstance(record.source, Table) and record.encoding is not None:
        encoding = record.encoding
        more |= {"columns": encoding.names, "encode": partial(_encoded, encoding)}
    return of_fit(saved.fit, **more)


def _row(image: Any, size: int | None, transform: Any) -> np.ndarray:
    row: np.ndarray = prepared(image, size, transform).numpy()
    return row


def _encoded(encoding: Encoding, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """Columns as they come, from JSON or Arrow, as features."""
    import pandas as pd

    frame = pd.DataFrame({name: list(values) for name, values in columns.items()})
    features: np.ndarray = encoding.features(frame, Counter()).to_numpy(np.float32)
    return features


def named(models: Sequence[str]) -> dict[str, Path]:
    """Folders by the name of their model: ``NAME=FOLDER``, or the name of the folder.

    Raises
    ------
    UsageError
        If two have one name, a name is no word, or a folder does not exist.
    """
    found: dict[str, Path] = {}
    for given in models:
        name, sign, folder = given.partition("=")
        path = Path(folder if sign else given).expanduser()
        if not path.exists():
            raise UsageError(
                f"expected the folder of a run or of a saved fit, got {path}, which does not exist"
            )
        if not sign:
            name = path.resolve().stem
            name = path.resolve().parent.name if name == "model" else name
        name = name if sign else "".join(letter if letter.isalnum() else "_" for letter in name)
        if not name.replace("-", "_").isidentifier():
            raise UsageError(
                f"expected a name of letters, digits, - and _, got {name!r}; name it: NAME={path}"
            )
        if name in found:
            raise UsageError(
                f"expected models of different names, got two of the name {name!r}; name them: NAME=FOLDER"
            )
        found[name] = path
    return found
