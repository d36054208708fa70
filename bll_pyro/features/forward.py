"""Forward: running a backbone on a batch, with checks of what goes in and what comes out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def compute_features(backbone: nn.Module | None, inputs: Any) -> Float[Tensor, "N D"]:
    """Return the checked features ``[N, D]`` of a batch.

    `inputs` are moved to the backbone's device, and floating-point inputs to the dtype of its parameters. Without a
    backbone the inputs are the features. Train mode and gradients are left to the caller.

    Raises
    ------
    ValueError
        If the backbone cannot run on the inputs, or its output is not ``[N, D]``.
    TypeError
        If it does not return a tensor.
    """
    if backbone is None:
        if (
            isinstance(inputs, Tensor)
            and inputs.ndim == 2
            and inputs.is_floating_point()
            and inputs.shape[1] > 0
        ):
            return inputs
        raise _wrong_features(inputs, None, "the inputs (there is no backbone)")
    reference = next(
        (p for p in [*backbone.parameters(), *backbone.buffers()] if p.is_floating_point()), None
    )
    num_rows: int | None
    if isinstance(inputs, Tensor) and reference is not None:
        dtype = reference.dtype if inputs.is_floating_point() else inputs.dtype
        inputs, num_rows = inputs.to(reference.device, dtype), len(inputs)
    else:
        inputs, num_rows = placed(inputs, reference), _num_rows(inputs)
    try:
        output = backbone(inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        # timm asserts the size of images, and embeddings index by tokens
        if isinstance(error, TypeError) and isinstance(inputs, Tensor):
            raise
        if num_rows == 1 and backbone.training:
            raise ValueError(
                f"backbone {type(backbone).__name__}: expected a batch that it can be trained on, got one row: {error}; BatchNorm "
                "needs two: SVI(batch_size=2) or more, or a DataLoader with larger batches"
            ) from error
        if isinstance(error, ValueError):  # the network's own message
            raise
        remedy = "the backbone's forward gets them as one argument"
        if isinstance(inputs, Tensor):
            remedy = "images need floats of shape [N, C, H, W] in the size of the network, as transform= makes them"
        raise ValueError(
            f"backbone {type(backbone).__name__}: expected inputs that it can run on, got {_form(inputs)}: {error}; {remedy}"
        ) from error
    is_matrix = isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point()
    if is_matrix and num_rows in (None, len(output)) and output.shape[1] > 0:
        return output
    raise _wrong_features(output, num_rows, f"the output of backbone {type(backbone).__name__}")


def feature_width(backbone: nn.Module | None, example_inputs: Any) -> int:
    """Return D from a dry run in eval mode, which changes neither modes, BatchNorm buffers nor gradients.

    Raises the errors of :func:`compute_features`.
    """
    if backbone is None:
        return compute_features(None, example_inputs).shape[1]
    with frozen(backbone):
        return compute_features(backbone, example_inputs).shape[1]


def _wrong_features(output: Any, num_rows: int | None, what: str) -> TypeError | ValueError:
    """The error for an output that is not ``[N, D]``."""
    if not isinstance(output, Tensor):
        return TypeError(
            f"{what}: expected one tensor of features [N, D], got {type(output).__name__}; wrap the backbone in a "
            "module that returns the pooled features alone"
        )
    if output.ndim == 4:
        remedy = "pool the map: global_pool='avg' and num_classes=0 in timm, or .mean((2, 3))"
    elif output.ndim == 3:
        remedy = "pool the tokens: global_pool='avg' or 'token' and num_classes=0 in timm, or .mean(1)"
    elif not output.is_floating_point():
        remedy = "convert to floats"
    else:
        remedy = "return one row of features for each input"
    rows = "N" if num_rows is None else str(num_rows)
    return ValueError(
        f"{what}: expected floats of shape [{rows}, D], got {output.dtype} of shape {list(output.shape)}; {remedy}"
    )


def placed(inputs: Any, reference: Tensor | None) -> Any:
    """Return `inputs` on the device of `reference`, its floating-point parts in the dtype of `reference`."""
    if reference is None:
        return inputs
    if isinstance(inputs, Tensor):
        return inputs.to(reference.device, reference.dtype if inputs.is_floating_point() else inputs.dtype)
    if isinstance(inputs, Mapping):
        return {key: placed(value, reference) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        parts = [placed(value, reference) for value in inputs]
        return type(inputs)(*parts) if hasattr(inputs, "_fields") else type(inputs)(parts)
    return inputs


def _num_rows(inputs: Any) -> int | None:
    while not isinstance(inputs, Tensor):
        if not isinstance(inputs, (Mapping, tuple, list)) or not inputs:
            return None
        inputs = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0]
    return len(inputs)


def _form(inputs: Any) -> str:
    if isinstance(inputs, Mapping):
        return f"a dictionary of {list(inputs)}"
    if isinstance(inputs, Tensor):
        return f"{inputs.dtype} of shape {list(inputs.shape)}"
    return type(inputs).__name__


_MODES_LOCK = threading.RLock()
_MODES: dict[
    int, tuple[bool, int]
] = {}  # of each module that is frozen now: its own mode, and how many blocks it is in


@contextmanager
def frozen(backbone: nn.Module) -> Iterator[nn.Module]:
    """Run the block with `backbone` in eval mode and without gradients, and restore the mode of each submodule afterwards.

    Parameters and buffers do not change: BatchNorm layers use their running statistics and don't update them. Several threads
    may run the same network: the last one that leaves restores the modes.
    """
    entered: list[nn.Module] = []
    try:
        with _MODES_LOCK:
            for part in backbone.modules():
                mode, users = _MODES.get(id(part), (part.training, 0))
                entered.append(part)
                _MODES[id(part)] = mode, users + 1
            for part in entered:  # when all are noted: a compiled module shares its mode with the one inside
                part.training = False  # not by eval(), which a submodule may override
        with torch.no_grad():
            yield backbone
    finally:
        with _MODES_LOCK:
            for part in entered:
                mode, users = _MODES.pop(id(part), (part.training, 1))
                if users > 1:
                    _MODES[id(part)] = mode, users - 1
                else:
                    part.training = mode


def trainable_parameters(backbone: nn.Module) -> list[Tensor]:
    """Return the parameters that joint training updates: those with `requires_grad`, which `unfreeze` of a Backbone sets."""
    return [parameter for parameter in backbone.parameters() if parameter.requires_grad]


def set_training(backbone: nn.Module) -> None:
    """Put the trainable submodules of `backbone` into train mode and the frozen ones into eval mode.

    A submodule is frozen if it has parameters and none of them is trainable, so BatchNorm layers of frozen submodules
    keep their running statistics. A submodule without parameters (dropout, pooling) gets the mode of its parent.
    Submodules that the backbone's own ``train()`` leaves in eval mode stay in eval mode.
    """
    backbone.train()
    _freeze(backbone, inherited=bool(trainable_parameters(backbone)))


def _freeze(part: nn.Module, inherited: bool) -> None:
    parameters = list(part.parameters())
    is_trainable = any(parameter.requires_grad for parameter in parameters) if parameters else inherited
    if not is_trainable:
        part.training = False
    for child in part.children():
        _freeze(child, is_trainable)
