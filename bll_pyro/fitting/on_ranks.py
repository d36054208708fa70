"""A fit whose rows are shared by ranks: what it refuses, what the ranks have to agree on, and that all get the same result."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bll_pyro import packing
from bll_pyro.declaration import to_plain
from bll_pyro.features.data import read
from bll_pyro.features.identity import hash_of, network_identity, rows_identity
from bll_pyro.features.random_fourier import RandomFeatures
from bll_pyro.fitting.calibration import Automatic
from bll_pyro.inference import Inference
from bll_pyro.layer import LastLayer
from bll_pyro.ranks import Processes, agree

if TYPE_CHECKING:
    from bll_pyro.fitting.result import Fit

OTHER_LOOP = (
    "train the backbone by DistributedDataParallel with bll.ELBO(layer, ..., num_rows=N of all ranks) as its loss, and fit on its "
    "frozen features with ranks"
)


def _check_options(
    inference: Inference, declared: nn.Module | RandomFeatures | None, calibration: Any, checkpoint: Any
) -> nn.Module | None:
    """The backbone; ValueError for what a fit on ranks does not take."""
    if inference.trains_backbone:
        raise ValueError(f"fit(ranks=...): expected a frozen backbone, got one to train along; {OTHER_LOOP}")
    if isinstance(declared, RandomFeatures):
        raise ValueError(
            "fit(ranks=...): expected a backbone that every rank has, got random features that are found from the rows; find them "
            "in one process on some rows, and pass fit.backbone"
        )
    if isinstance(calibration, Real):
        raise ValueError(
            f"fit(ranks=..., calibration={calibration}): expected bll.AUTOMATIC, None or held-out rows, got a share of the rows; "
            "use bll.calibrate(fit, held_out) after the fit"
        )
    if checkpoint is not None:
        raise ValueError(
            "fit(ranks=..., checkpoint=...): expected no checkpoint, since ranks that stop do so at different steps, got a folder; "
            "keep the extracted features in a store of each rank: store=f'features-{ranks.rank}'"
        )
    return declared


def agree_on_call(
    ranks: Processes,
    layer: LastLayer,
    inference: Inference,
    declared: nn.Module | RandomFeatures | None,
    checkpoint: Any,
    validation_data: Any,
    calibration: Any,
    **numbers: Any,
) -> None:
    """Stop on all ranks unless they run the same code with the same declarations, backbone, held-out rows and numbers.

    ValueError for what a fit on ranks does not take.
    """
    if ranks.size == 1:
        return
    backbone = _check_options(inference, declared, calibration, checkpoint)
    same: dict[str, Any] = {
        "versions": {name: version(name) for name in ("bll-pyro", "torch", "pyro-ppl")},
        "code of bll_pyro": code_hash(),
        "layer": _plain(layer),
        "inference": _plain(inference),
        "backbone": network_identity(backbone, False),
        **numbers,
    }
    for name, data in {"validation_data": validation_data, "calibration": calibration}.items():
        is_data = data is not None and not isinstance(data, Automatic)
        same[name] = rows_identity(read(data, need_targets=True, what=name)) if is_data else repr(data)
    agree(ranks, same, {})


def same_on_all(ranks: Processes, made: Fit) -> Fit:
    """The fit with the posterior and recalibration of rank 0 on ranks where rounding came out differently."""
    if ranks.size == 1:
        return made
    own = made.fingerprint
    if all(each == own for each in ranks.gather(own)):
        return made
    tensors: dict[str, Tensor] = {}
    parts = {"posterior": made.posterior, "recalibration": made.recalibration, "trace": made.trace}
    plain = {name: packing.pack(value, tensors, name) for name, value in parts.items()}
    plain, tensors = ranks.gather((plain, tensors) if ranks.rank == 0 else None)[0]
    return replace(made, **{name: packing.unpack(value, tensors) for name, value in plain.items()})


def _plain(declaration: Any) -> Any:
    """A declaration as plain data; where it holds objects that cannot be written, as it prints."""
    tensors: dict[str, Tensor] = {}
    try:
        plain = to_plain(declaration, tensors, "declaration")
    except (TypeError, ValueError):
        return repr(declaration)
    return plain, {name: hash_of(value[None]) for name, value in tensors.items()}


@cache
def code_hash() -> str:
    """SHA-256 of the source files of this package."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
