"""The model of a run for a service, with rows that come as those of its training did, or a fit that was saved by itself."""

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
from bll_pyro.serve import ServedModel, of_fit, open_model
from bll_pyro.serve.models import holds_graph


def load_served(path: Path) -> ServedModel:
    """The model at a path, as a service takes it.

    Raises
    ------
    UsageError
        If there is none, or its inputs are texts.
    ValueError
        If a file of it is damaged.
    """
    if path.is_file() or holds_graph(path):
        return open_model(path)
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
