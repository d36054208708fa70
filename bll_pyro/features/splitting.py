"""``split_last_layer``: a trained network as a backbone and its last ``Linear``; the network itself stays as it is.

The backbone is a network of its own, of the same classes, whose tensors lie in the memory of the given one (:func:`twin`). An
identity stands where the last layer was, so that its forward returns what went into that layer. Which layer that is, and that
nothing follows it, is found by following the forward: with ``torch.fx``, or on an example.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bll_pyro.features.forward import compute_features, frozen, placed
from bll_pyro.features.state import unwrapped
from bll_pyro.scope import isolated

# what does nothing to rows of outputs in evaluation
PASSING = (nn.Identity, nn.Dropout, nn.AlphaDropout, nn.Flatten)
PASSING_CALLS = {"dropout", "flatten", "squeeze", "contiguous"}
FOLLOWERS = {
    "a softmax": torch.nn.Softmax(-1),
    "a log-softmax": torch.nn.LogSoftmax(-1),
    "a sigmoid": torch.nn.Sigmoid(),
}
OWNER = "split_last_layer"
EXAMPLE = "pass example=, two rows as the network takes them: a tensor, a tuple, or a dictionary of arguments"
BY_HAND = (
    "write a module that returns what goes into its last Linear, and give that as backbone=... of bll.fit, with "
    "bll.LastLayer.from_linear(linear, likelihood)"
)


class Removed(nn.Identity):
    """Stands where the last layer of a network was."""


class OneTensor(nn.Module):
    """A network that takes a batch as one argument and returns one tensor.

    Parameters
    ----------
    network
        Any network. Of a record that it returns, as models of transformers do, ``logits`` are taken.
    by_name
        Whether batches are dictionaries of its arguments.
    """

    def __init__(self, network: nn.Module, by_name: bool) -> None:
        super().__init__()
        self.network, self.by_name = network, by_name

    def forward(self, inputs: Any) -> Any:
        """The network's output for a batch."""
        output = self.network(**inputs) if self.by_name else self.network(inputs)
        return getattr(output, "logits", output)


def split_last_layer(net: nn.Module, example: Any = None) -> tuple[nn.Module, nn.Linear]:
    """Split a network into a backbone and its last ``Linear``: ``head(backbone(x))`` is ``net(x)`` in evaluation mode.

    Nothing of the network changes: hooks, modes, forward and ``requires_grad`` stay, and neither part holds a module of it. Both
    share the memory of its weights, so that a network of any size is split without a copy, and weights that are trained in place
    are trained in all of them.

    Parameters
    ----------
    net
        A network whose forward ends with a ``Linear``: of torchvision, timm or transformers, a ``Sequential``, or any other.
        What does nothing in evaluation, such as dropout, may follow it. A compiled or parallel one is taken out of its wrapper.
    example
        A batch of a few rows, as the network takes them: a tensor, or a dictionary of arguments. The last layer is then the one
        that runs last on it, and the split is checked on it. Without an example the forward is followed by ``torch.fx``, which
        cannot follow forwards that depend on values, and while it does no other thread may run a network.

    Returns
    -------
    backbone
        From inputs to the features ``[N, D]`` that went into the last layer; in the modes of the network.
    head
        The last layer, from features to outputs ``[N, K]``.

    Raises
    ------
    TypeError
        If it is not a module, or one of TorchScript.
    ValueError
        If the last layer cannot be found or is not a ``Linear``, if something follows it, such as a softmax, if it runs more than
        once, or if there are several heads; with what to do.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"{OWNER}: expected a torch.nn.Module, got {type(net).__name__}")
    net = unwrapped(net)
    for name, part in net.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError(
                f"{OWNER}: expected a network of Python modules, got TorchScript in {name or 'the network'!r}; split the network "
                "that it was made of"
            )
        if any(is_lazy(tensor) for tensor in part.parameters(recurse=False)):
            raise ValueError(
                f"{OWNER}: expected weights, got a lazy module {name!r} without any; run the network on a batch first"
            )
    if example is None:
        path = _followed(net)
        backbone, head = _parts(net, path)
        return backbone, head
    by_name = _takes_by_name(net, example)
    path, output, last, is_record = _observed(net, example, by_name)
    backbone, head = _parts(net, path)
    if by_name or is_record:
        backbone = OneTensor(backbone, by_name)
    _check(net, backbone, head, path, example, output, last)
    return backbone, head


def twin(net: nn.Module, replaced: Mapping[nn.Module, nn.Module] | None = None) -> nn.Module:
    """A copy of a network with modules, parameters and buffers of its own, in the same memory; some modules replaced.

    To move, freeze or set the mode of one leaves the other as it is; to change numbers in place changes both.
    """
    memo: dict[int, Any] = {id(old): new for old, new in (replaced or {}).items()}
    for part in net.modules():
        for tensor in _tensors_of(part):
            alias = tensor.detach()
            memo[id(tensor)] = (
                nn.Parameter(alias, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else alias
            )
    try:
        made: nn.Module = copy.deepcopy(net, memo)
    except Exception as error:  # whatever the parts of a network raise
        raise ValueError(
            f"{OWNER}: expected a network whose modules can be copied, got {type(net).__name__}: {error}; {BY_HAND}"
        ) from error
    return made


def _tensors_of(part: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes."""
    for value in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
        if isinstance(value, Tensor):
            yield value


def _parts(net: nn.Module, path: str) -> tuple[nn.Module, nn.Linear]:
    """Twins of what is before the last layer, and of the last layer."""
    last = net.get_submodule(path)
    head = twin(last)
    assert isinstance(head, nn.Linear)
    return twin(net, {last: Removed()}), head


def _followed(net: nn.Module) -> str:
    """Path of the last layer, from the graph of the forward."""
    from torch import fx

    probe = twin(net).eval()
    kind = type(net).__name__
    if isinstance(probe, nn.Linear):
        return ""

    class Tracer(fx.Tracer):
        """Does not look into a Linear, of any class."""

        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, nn.Linear) or super().is_leaf_module(m, module_qualified_name)

    try:
        with isolated():  # threads take turns: the tracer replaces how modules are called
            graph = Tracer().trace(probe)
    except Exception as error:  # whatever a forward raises when it is given no numbers
        raise ValueError(
            f"{OWNER}: expected a forward that torch.fx can follow, got {kind}: {error}; {EXAMPLE}"
        ) from error
    modules = dict(probe.named_modules())
    node = next(node for node in graph.nodes if node.op == "output").args[0]
    while isinstance(node, fx.Node) and node.op != "placeholder":
        part = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(part, nn.Linear):
            times = sum(n.op == "call_module" and modules[str(n.target)] is part for n in graph.nodes)
            return str(node.target) if times == 1 else _refuse_repeated(kind, str(node.target), times)
        name = getattr(node.target, "__name__", str(node.target))
        if not (isinstance(part, PASSING) or (part is None and name in PASSING_CALLS)):
            what = name if part is None else f"{type(part).__name__} ({node.target!r})"
            return _refuse_end(kind, f"one that ends with {what}")
        node = node.all_input_nodes[0]
    return _refuse_end(kind, "several outputs, or none")


def _observed(net: nn.Module, example: Any, by_name: bool) -> tuple[str, Tensor, Tensor, bool]:
    """Path of the ``Linear`` that runs last on an example; the network's output, that layer's, and whether it was in a record."""
    probe, ran = OneTensor(twin(net), by_name), list[tuple[str, Tensor]]()
    records: list[bool] = []
    for name, part in probe.network.named_modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(lambda _, __, output, name=name: ran.append((name, output)))
    probe.network.register_forward_hook(lambda _, __, output: records.append(not isinstance(output, Tensor)))
    kind = type(net).__name__
    with isolated(0), frozen(probe):
        output = probe(placed(example, next(iter(net.parameters()), None)))
    if not isinstance(output, Tensor):
        _refuse_end(
            kind, f"an output that is a {type(output).__name__}: several heads, or a record without logits"
        )
    if not ran:
        _refuse_end(kind, "one in which no Linear runs")
    path, last = ran[-1]
    times = sum(name == path for name, _ in ran)
    if times > 1:
        _refuse_repeated(kind, path, times)
    return path, output, last, records[-1]


def _check(
    net: nn.Module,
    backbone: nn.Module,
    head: nn.Linear,
    path: str,
    example: Any,
    output: Tensor,
    last: Tensor,
) -> None:
    """Raise unless the parts give what the whole gives on the example."""
    reason: Exception | None = None
    try:
        with isolated(0), frozen(backbone):
            again = head(compute_features(backbone, example))
        if _agree(again, output):
            return
    except (ValueError, TypeError, RuntimeError) as error:
        reason = error
    follower = next((name for name, module in FOLLOWERS.items() if _agree(module(last), output)), None)
    what = f"one in which something follows {path!r}, or stands beside it"
    raise ValueError(
        _end(type(net).__name__, what if follower is None else f"one that ends with {follower} of {path!r}")
    ) from reason


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs are the same up to shape and rounding."""
    if one.numel() != other.numel():
        return False
    allowed = torch.finfo(other.dtype).eps ** 0.5 if other.is_floating_point() else 0.0
    size = float(other.abs().max()) if other.numel() else 0.0
    return torch.allclose(
        one.reshape(other.shape).to(other.dtype), other, rtol=0.0, atol=allowed * size, equal_nan=True
    )


def _takes_by_name(net: nn.Module, example: Any) -> bool:
    """Whether the keys of a batch are names of arguments."""
    return isinstance(example, Mapping) and set(example) <= set(inspect.signature(net.forward).parameters)


def _end(kind: str, got: str) -> str:
    return (
        f"{OWNER}: expected a network that ends with one torch.nn.Linear, got {kind}, {got}; let its forward return the outputs "
        f"of its last Linear (of a Sequential: net[:-1]), or {BY_HAND}"
    )


def _refuse_end(kind: str, got: str) -> NoReturn:
    raise ValueError(_end(kind, got))


def _refuse_repeated(kind: str, path: str, times: int) -> NoReturn:
    raise ValueError(
        f"{OWNER}: expected a last Linear that runs once, got {path!r} of {kind}, which runs {times} times, so that no "
        f"features of a row are what went into it; {BY_HAND}"
    )
