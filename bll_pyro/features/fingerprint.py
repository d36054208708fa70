"""Fingerprints: SHA-256 of data and of modules, so that stored features are only reused for equal data and modules."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bll_pyro.features.arrays import rows_per_chunk

# attributes of timm and transformers for the origin of the weights, which change when a network is saved and loaded, and marks
# of torch.compile
_RECORDS = {
    "pretrained_cfg",
    "default_cfg",
    "pretrained_model_args",
    "_model_args",
    "_traits",
    "name_or_path",
    "_use_kernels",
    "_weight_conversions",
    "_is_hf_initialized",
    "_is_torch_compile",
    "_compile_kwargs",
}


class DataHash:
    """SHA-256 of contents, dtypes and shapes of rows in batches.

    The result does not depend on the batch size. With ``ordered=False`` it does not depend on the order of the rows
    either: the hashes of the rows are added modulo 2**256, so that a loader that shuffles has one fingerprint.
    """

    def __init__(self, *, ordered: bool = True) -> None:
        self._ordered = ordered
        self._streams: dict[str, Any] = {}
        self._formats: dict[str, bytes] = {}
        self._sum = 0
        self._num_rows = 0

    def update(self, inputs: Any, targets: Tensor | None) -> None:
        """Add a batch: a tensor, or tuples, lists and dictionaries of tensors, with one row per item."""
        leaves = dict(_leaves(inputs, "inputs"))
        if targets is not None:
            leaves["targets"] = targets
        num_rows = len(next(iter(leaves.values())))
        if self._ordered:
            for path, leaf in leaves.items():
                self._update_stream(path, leaf)
        else:
            headers = {path: path.encode() + _format(leaf) for path, leaf in leaves.items()}
            arrays = {path: _bytes(leaf).reshape(num_rows, -1) for path, leaf in leaves.items()}
            for row in range(num_rows):
                digest = hashlib.sha256()
                for path, header in headers.items():
                    digest.update(header)
                    digest.update(arrays[path][row].numpy())
                self._sum += int.from_bytes(digest.digest())
        self._num_rows += num_rows

    def _update_stream(self, path: str, leaf: Tensor) -> None:
        stream = self._streams.setdefault(path, hashlib.sha256())
        form = _format(leaf)
        if self._formats.get(path) != form:  # padded sequences may have another length in every batch
            self._formats[path] = form
            stream.update(form)
        step = rows_per_chunk(leaf)
        for start in range(0, len(leaf), step):
            stream.update(_bytes(leaf[start : start + step]).numpy())

    def hexdigest(self) -> str:
        """Return the fingerprint of all rows added so far."""
        total = hashlib.sha256(f"ordered={self._ordered} rows={self._num_rows}".encode())
        total.update((self._sum % 2**256).to_bytes(32))
        for path, stream in sorted(self._streams.items()):
            total.update(path.encode() + stream.digest())
        return total.hexdigest()


def plain_attributes(module: nn.Module) -> dict[str, str]:
    """Plain attributes of a module and its submodules, each as a text that changes with the value."""
    own = set(vars(nn.Module())) | _RECORDS
    return {
        f"{name}.{key}": text
        for name, part in module.named_modules(remove_duplicate=False)
        for key, value in sorted(vars(part).items())
        if key not in own and (text := _describe(value)) is not None
    }


def module_fingerprint(module: nn.Module, ignored: Collection[str] = ()) -> str:
    """SHA-256 of what determines a module's output: classes and their code, plain attributes, parameters, buffers.

    Weights alone are not enough: the same weights with another pooling or activation give other features. Functions
    outside the classes that ``forward`` calls are not included. ``ignored`` names plain attributes that a pass itself
    changes, such as a counter, and that do not determine the output.
    """
    digest = hashlib.sha256()
    for name, text in plain_attributes(module).items():
        if name not in ignored:
            digest.update(f"{name}={text}".encode())
    for name, part in module.named_modules(remove_duplicate=False):
        digest.update(f"{name}:{type(part).__module__}.{type(part).__qualname__}".encode())
        for base in type(part).__mro__:
            if not base.__module__.startswith("torch.") and base is not object:
                for key, member in sorted(vars(base).items()):
                    digest.update(key.encode() + _member_code(member))
        if isinstance(part, torch.jit.ScriptModule):
            digest.update(str(part.inlined_graph).encode())
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in tensors:
        rows = tensor.detach().reshape(1) if tensor.ndim == 0 else tensor.detach()
        digest.update(name.encode() + _format(rows) + str(len(rows)).encode())
        step = rows_per_chunk(rows)
        for start in range(0, len(rows), step):
            digest.update(_bytes(rows[start : start + step]).numpy())
    return digest.hexdigest()


def function_fingerprint(function: Any) -> str:
    """SHA-256 of what a function does, as far as its own code and arguments tell; of other callables by class and attributes."""
    return hashlib.sha256("\0".join(_parts_of(function)).encode()).hexdigest()


def _parts_of(function: Any) -> Iterator[str]:
    if isinstance(function, nn.Module):
        yield module_fingerprint(function)
    elif isinstance(function, functools.partial):
        yield from _parts_of(function.func)
        yield str(_describe(function.args)) + str(_describe(function.keywords))
    elif isinstance(function, (types.FunctionType, types.BuiltinFunctionType, type, types.MethodType)):
        yield str(_describe(function))
    else:
        yield (
            type(function).__qualname__
            + _member_code(inspect.getattr_static(type(function), "__call__", None)).hex()
        )
        yield str(_describe(getattr(function, "__dict__", {})))


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from _leaves(tree[key], f"{path}.{key}")
    elif isinstance(tree, (tuple, list)):
        for i, branch in enumerate(tree):
            yield from _leaves(branch, f"{path}.{i}")
    else:
        raise TypeError(
            f"{path}: expected tensors, or tuples, lists and dictionaries of tensors, got {type(tree).__name__}; only "
            "such batches can be fingerprinted, so convert the items to tensors or extract without a store"
        )


def _format(leaf: Tensor) -> bytes:
    return f"{leaf.dtype}{tuple(leaf.shape[1:])}".encode()


def _bytes(leaf: Tensor) -> Tensor:
    """Return the raw bytes of a tensor, on the CPU."""
    return leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _describe(value: Any) -> str | None:
    """A text that changes when a plain value changes; None for values that are hashed elsewhere or are not plain."""
    if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return repr([_describe(item) for item in value])
    if isinstance(value, dict):
        return repr(sorted((str(key), _describe(item)) for key, item in value.items()))
    if isinstance(value, types.FunctionType):
        return value.__qualname__ + _code(value.__code__).hex()
    if callable(value) and not isinstance(value, nn.Module):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return None


def _member_code(member: Any) -> bytes:
    if isinstance(member, property):
        return _member_code(member.fget)
    if isinstance(member, (staticmethod, classmethod)):
        return _member_code(member.__func__)
    function = inspect.unwrap(member) if isinstance(member, types.FunctionType) else member
    return _code(function.__code__) if isinstance(function, types.FunctionType) else b""


def _code(code: types.CodeType) -> bytes:
    """sha256 of what a function does; file names and line numbers are left out, so that moving it changes nothing."""
    digest = hashlib.sha256(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            digest.update(_code(constant))
        elif isinstance(constant, frozenset):  # its order differs between processes
            digest.update(repr(sorted(map(repr, constant))).encode())
        else:
            digest.update(repr(constant).encode())
    return digest.digest()
