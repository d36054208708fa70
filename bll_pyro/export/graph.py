"""``Fit.export``: the graph of a fit in a file, for onnxruntime or for torch."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bll_pyro import tensorfile
from bll_pyro.export.describing import described
from bll_pyro.export.lowering import translations
from bll_pyro.export.module import QUANTILES, PredictiveModule, as_module
from bll_pyro.features.arrays import to_tensor
from bll_pyro.files import only_writer, scratch_folder, user_path
from bll_pyro.prediction import Integration
from bll_pyro.runtime import seal
from bll_pyro.runtime.loading import METADATA
from bll_pyro.scope import own_modes, without_validation

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit

TRACED_ROWS = 3  # torch.export takes a batch of 0 or 1 rows for a constant
OPSET = 20
MOST_BYTES = 2**31 - 2**20  # of a protobuf
NOTES = "bll_pyro.json"  # of a .pt2 file: what the metadata of an ONNX graph is
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@own_modes()
@without_validation()  # which tracing would switch off for good
def write_graph(
    fit: Fit,
    path: str | Path,
    *,
    inputs: Any = None,
    quantiles: Sequence[float] = QUANTILES,
    integration: Integration | None = None,
    dtype: str = "float32",
) -> None:
    """Write the prediction of a fit as one graph: backbone, posterior, recalibration and detector.

    It gives what :meth:`Fit.predict` gives, without draws at random, for batches of any size. Its outputs have names:
    :class:`PredictiveModule` lists them. An earlier file is replaced when the new one is complete.

    Parameters
    ----------
    fit
        Any fit.
    path
        ``.onnx``, for :func:`bll_pyro.runtime.load` or any other runtime of ONNX; or ``.pt2``, for ``torch.export.load``.
        Weights of more than 2 GB go into a second file beside it, ``NAME.onnx.data``, whose hash the first one has.
    inputs
        A few rows of inputs, for fits with a backbone: they tell the shape and type of a row.
    quantiles
        Probabilities of the quantiles of real values and counts; none with ``()``.
    integration
        Points of the average over the posterior, 256 by default; :class:`bll_pyro.Probit` for latency.
    dtype
        Of the backbone: ``"float32"``, ``"float16"`` or ``"bfloat16"``. The last layer stays in its own type, since
        uncertainties are small differences of large numbers.

    Raises
    ------
    ValueError, TypeError
        For another kind of file, or what cannot be exported, with what to do instead.
    """
    target = user_path(path)
    if target.suffix not in (".onnx", ".pt2"):
        raise ValueError(
            f"export: expected a name that ends in .onnx or .pt2, got {target.name}; .bll is fit.save(path, graph=True)"
        )
    if target.suffix == ".onnx" and dtype == "bfloat16":
        raise ValueError(
            "export(dtype='bfloat16'): expected float32 or float16 for .onnx, since onnxruntime has no bfloat16 on a CPU; or .pt2"
        )
    module, rows = _prepared(fit, inputs, quantiles, integration, dtype)
    with only_writer(target.parent, f".{target.name}.lock"), scratch_folder(target.parent) as scratch:
        made = scratch / target.name
        if target.suffix == ".pt2":
            traced, names = _traced(module, rows), _names(module, rows)
            notes = json.dumps(_described(fit, module, rows, names))
            torch.export.save(traced, made, extra_files={NOTES: notes})
        else:
            made.write_bytes(_onnx(fit, module, rows, scratch, target.name))
        for file in sorted(scratch.iterdir(), key=lambda one: one == made):  # external weights first
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            os.replace(file, target.with_name(file.name))


@own_modes()
@without_validation()
def graph_bytes(fit: Fit, *, inputs: Any = None) -> bytes:
    """The sealed ONNX graph of a fit, for a saved fit to hold; ValueError beyond 2 GB."""
    module, rows = _prepared(fit, inputs, QUANTILES, None, "float32")
    return _onnx(fit, module, rows, None, "")


def _prepared(
    fit: Fit, inputs: Any, quantiles: Sequence[float], integration: Integration | None, dtype: str
) -> tuple[PredictiveModule, Tensor]:
    """The module to be traced, and rows to trace it with."""
    if dtype not in DTYPES:
        raise ValueError(f"export(dtype=...): expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if DTYPES[dtype] != torch.float32 and fit.backbone is None:
        raise ValueError(
            f"export(dtype={dtype!r}): expected a fit with a backbone, which is what takes another type, got one without; leave "
            "dtype out"
        )
    module = as_module(fit, integration=integration, quantiles=tuple(quantiles))
    if DTYPES[dtype] != torch.float32:
        assert module.backbone is not None
        module.backbone = _Narrow(module.backbone, DTYPES[dtype])
    center = fit.posterior.frame.center
    if fit.backbone is None:
        return module, center.repeat(TRACED_ROWS, 1)
    if inputs is None:
        raise ValueError(
            "export: expected inputs=..., a few rows that the backbone takes, got none: only they tell the shape of an input; "
            "or export fit.head, which takes features"
        )
    given = to_tensor(inputs, "inputs")  # whose numbers go nowhere
    return module, given.new_zeros(TRACED_ROWS, *given.shape[1:])


class _Narrow(nn.Module):
    """A backbone in another type of numbers, between inputs and features of their own."""

    def __init__(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone, self.dtype = copy.deepcopy(backbone).to(dtype), dtype

    def forward(self, inputs: Tensor) -> Tensor:
        """Features in the type of the inputs."""
        found: Tensor = self.backbone(inputs.to(self.dtype)).to(inputs.dtype)
        return found


@torch.no_grad()
def _names(module: PredictiveModule, rows: Tensor) -> list[str]:
    return list(module(rows))


def _traced(module: PredictiveModule, rows: Tensor) -> torch.export.ExportedProgram:
    try:
        sizes = ({0: torch.export.Dim("batch", min=1)},)
        # strict traces byte code, of which it knows a part
        return torch.export.export(module, (rows,), dynamic_shapes=sizes, strict=False)
    except TypeError:  # of this library
        raise
    except Exception as error:  # torch raises what the code that it traces makes of it
        raise TypeError(
            f"export: expected a backbone, a likelihood and a score in torch operations alone, got one that torch.export cannot "
            f"trace ({str(error).strip().splitlines()[0]}); leave out quantiles=() or the detector, export fit.head, or serve the "
            "fit itself: bll.load(path).predict"
        ) from error


def _described(fit: Fit, module: PredictiveModule, rows: Tensor, names: list[str]) -> dict[str, Any]:
    dtype = str(rows.dtype).removeprefix("torch.")
    return described(fit, module.quantiles, list(rows.shape[1:]), dtype, names)


def _onnx(fit: Fit, module: PredictiveModule, rows: Tensor, folder: Path | None, name: str) -> bytes:
    """The sealed graph; weights of more than 2 GB go into ``folder``."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'export: expected onnx and onnxscript, which are not installed: pip install "bll-pyro[onnx]"'
        ) from error
    names, traced = _names(module, rows), _traced(module, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own exporter
        program = torch.onnx.export(
            traced, dynamo=True, verbose=False, optimize=False, input_names=["inputs"], output_names=names,
            opset_version=OPSET, custom_translation_table=translations(),
        )  # fmt: skip
    assert program is not None
    for node in program.model.graph:  # a name belongs to one value
        for value in node.outputs:
            if value.name in names and not value.is_graph_output():
                value.name = f"{value.name}_inside"
    metadata = _described(fit, module, rows, names)
    size = sum(tensor.numel() * tensor.element_size() for tensor in traced.state_dict.values())
    if size <= MOST_BYTES:
        return _sealed(program.model_proto, metadata)
    if folder is None:
        raise ValueError(
            f"save(graph=True): expected a graph of less than 2 GB, got {size:,} bytes; write it beside the fit: "
            'fit.export("model.onnx")'
        )
    outside = f"{name}.data"
    program.save(folder / name, external_data=True)
    digest = tensorfile.sha256(folder / outside)
    entry = {"file": outside, "bytes": (folder / outside).stat().st_size, "sha256": digest}
    return _sealed(onnx.load(folder / name, load_external_data=False), metadata | {"external": entry})


def _sealed(model: Any, metadata: dict[str, Any]) -> bytes:
    for key, value in ((METADATA, json.dumps(metadata)), (seal.KEY, seal.BLANK)):
        model.metadata_props.add(key=key, value=value)
    return seal.sealed_graph(model.SerializeToString(deterministic=True))
