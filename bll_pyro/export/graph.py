"""``Fit.export``: the graph of a fit in a file, for onnxruntime or for torch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bll_pyro.export.describing import described
from bll_pyro.export.lowering import translations
from bll_pyro.export.module import QUANTILES, PredictiveModule, as_module
from bll_pyro.features.arrays import to_tensor
from bll_pyro.files import user_path
from bll_pyro.prediction import Integration
from bll_pyro.runtime import seal
from bll_pyro.runtime.loading import METADATA
from bll_pyro.scope import own_modes

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit

TRACED_ROWS = 3  # torch.export takes a batch of 0 or 1 rows for a constant


@own_modes()
def graph_bytes(
    fit: Fit, *, inputs: Any = None, integration: Integration | None = None, quantiles: tuple[float, ...] = QUANTILES
) -> bytes:
    """The sealed ONNX graph of a fit."""
    module = as_module(fit, integration=integration, quantiles=tuple(quantiles))
    rows = _example(fit, inputs)
    names = _names(module, rows)
    traced = _traced(module, rows)
    metadata = described(fit, module.quantiles, list(rows.shape[1:]), str(rows.dtype).removeprefix("torch."), names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own exporter
        program = torch.onnx.export(
            traced, dynamo=True, verbose=False, optimize=False, input_names=["inputs"], output_names=names,
            opset_version=20, custom_translation_table=translations(),
        )  # fmt: skip
    for node in program.model.graph:  # a name belongs to one value
        for value in node.outputs:
            if value.name in names and not value.is_graph_output():
                value.name = f"{value.name}_inside"
    model = program.model_proto
    for key, value in ((METADATA, json.dumps(metadata)), (seal.KEY, seal.BLANK)):
        model.metadata_props.add(key=key, value=value)
    return seal.sealed_graph(model.SerializeToString(deterministic=True))


def _example(fit: Fit, inputs: Any) -> Tensor:
    """Rows to trace with."""
    center = fit.posterior.frame.center
    if fit.backbone is None:
        return center.repeat(TRACED_ROWS, 1)
    if inputs is None:
        raise ValueError(
            "export: expected inputs=..., a few rows that the backbone takes, got none: only they tell the shape of an input; "
            "or export fit.head, which takes features"
        )
    given = to_tensor(inputs, "inputs")
    return given[torch.arange(TRACED_ROWS) % len(given)]


@torch.no_grad()
def _names(module: PredictiveModule, rows: Tensor) -> list[str]:
    return list(module(rows))


def _traced(module: PredictiveModule, rows: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module, (rows,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
