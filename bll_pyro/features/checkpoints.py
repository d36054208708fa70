"""Files of a network's weights, and what is in them that a network does not have, or the other way round."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

NUM_NAMES = 4  # names of tensors in a message


def read_weights(file: Path, expected: str) -> dict[str, Tensor]:
    """The tensors of a file by name, without unpickling code; ``expected`` begins the message of the ValueError."""
    from timm.models import load_state_dict

    try:
        stored = dict(load_state_dict(str(file)))
    except Exception as error:  # a truncated or unrelated file, refused pickles
        raise ValueError(
            f"{expected}, but they could not be loaded ({' '.join(str(error).split())[:200]}); check that the file is complete and "
            "holds tensors only"
        ) from error
    tensors = {str(name): value for name, value in stored.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{expected}, got a file without tensors; check that it is the one that was meant")
    return tensors


def differences(
    stored: Mapping[str, Tensor], model: nn.Module, missing: Collection[str] | None = None
) -> str:
    """What a file lacks, has too much, and has in another shape, in words; the head of the file does not count.

    ``missing`` are names of the model that the file does not set, where that is known; else they are found by name.
    """
    own = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    lacking = [name for name in own if name not in stored] if missing is None else list(missing)
    extra = [name for name in stored if name not in model.state_dict() and not _of_the_head(name, model)]
    shapes = [
        f"{name} {list(stored[name].shape)} for {list(value.shape)}"
        for name, value in own.items()
        if name in stored and stored[name].shape != value.shape
    ]
    parts = {
        "the file lacks {} tensors": lacking,
        "it has {} that the network does not": extra,
        "{} differ in shape": shapes,
    }
    return ", ".join(
        f"{what.format(len(found))} ({_listed(found)})" for what, found in parts.items() if found
    )


def foreign_names(stored: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """Names of weights of layers that the parts of a network do not have, such as a third block of a part with two.

    None where a file has other names than the network, which timm translates, and none of parts that the network lacks as a
    whole, such as heads.
    """
    state = model.state_dict()
    if any(value.is_floating_point() and name not in stored for name, value in state.items()):
        return []
    known = {name for name, _ in model.named_modules()}
    found = []
    for name, value in stored.items():
        layer, _, kind = name.rpartition(".")
        part = model._modules.get(name.partition(".")[0])
        in_part = part is not None and any(True for _ in part.parameters())
        is_weight = layer not in known or kind in ("weight", "bias", "gamma")
        if name not in state and value.is_floating_point() and in_part and is_weight:
            found.append(name)
    return [name for name in found if not _of_the_head(name, model)]


def _of_the_head(name: str, model: nn.Module) -> bool:
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    # with what stands beside the classifier in a part of its own, such as a norm or a hidden layer
    return any(name.startswith(f"{head.rpartition('.')[0] or head}.") for head in heads)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:NUM_NAMES]) + ", ..." * (len(names) > NUM_NAMES)
