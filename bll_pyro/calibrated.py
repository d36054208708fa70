"""The base of what is calibrated on one fit and valid for it only: detectors, conformal sets and intervals."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from bll_pyro import tensorfile
from bll_pyro.declaration import Declaration, from_plain, to_plain
from bll_pyro.files import LOCK, only_writer, scratch_folder, user_path


@dataclass(frozen=True, eq=False)
class Calibrated(Declaration):
    """A declaration that, once calibrated, holds results from held-out rows and the fingerprint of the fit.

    Parameters
    ----------
    fingerprint
        Fingerprint of the fit that it was calibrated on; None before. It is refused for use with another fit.
    """

    fingerprint: str | None = field(default=None, kw_only=True, repr=False)
    fit: Any = field(default=None, init=False, repr=False)  # the fit in use; it is not part of what is saved

    @property
    def is_calibrated(self) -> bool:
        """Whether it has been calibrated on held-out rows."""
        return self.fingerprint is not None

    def bound(self, fit: Any) -> Self:
        """The same for use with a fit; ValueError unless it is the fit of the calibration or a loaded copy of it."""
        self.check_calibrated()
        if fit.fingerprint != self.fingerprint:
            raise ValueError(
                f"{self._name}: expected the fit that it was calibrated on, got one with another posterior or recalibration; "
                "calibrate again on held-out rows: .calibrate(fit, ...)"
            )
        copy = replace(self)
        object.__setattr__(copy, "fit", fit)
        return copy

    def check_calibrated(self) -> None:
        """Raise a ValueError if it has not been calibrated."""
        if not self.is_calibrated:
            raise ValueError(
                f"{self._name}: expected a calibrated declaration, got one that has not been calibrated; call "
                ".calibrate(fit, ...) with held-out rows and use what it returns"
            )

    def check_bound(self) -> Any:
        """The fit in use; ValueError if there is none."""
        self.check_calibrated()
        if self.fit is None:
            raise ValueError(f"{self._name}: expected a fit to use, got none; call .bound(fit) first")
        return self.fit

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, which replaces an earlier one; it does not contain the fit.

        An earlier file is whole until the new one is, and a save that fails leaves nothing behind.
        """
        self.check_calibrated()
        tensors: dict[str, Tensor] = {}
        plain = to_plain(self, tensors)
        write_plain(path, plain, tensors, self._name)

    @classmethod
    def load(cls, path: str | Path, fit: Any = None) -> Self:
        """Read what :meth:`save` wrote, for use with ``fit`` if one is given.

        Raises
        ------
        ValueError
            If the file is missing, truncated or altered, holds another class, or belongs to another fit.
        """
        plain, tensors = read_plain(path, cls.__name__)
        made = from_plain(plain, tensors)
        if not isinstance(made, cls):
            raise ValueError(f"load: expected a {cls.__name__}, got a {type(made).__name__} in {path}")
        return made if fit is None else made.bound(fit)

    @property
    def _name(self) -> str:
        return f"{self.family}.{type(self).__name__}"


def write_plain(path: str | Path, plain: Any, tensors: dict[str, Tensor], owner: str) -> None:
    """Write plain data and tensors as one safetensors file, in place of an earlier one, which is whole until then."""
    target = user_path(path)
    if target.is_dir():
        raise ValueError(f"{owner}.save: expected a file, got the folder {target}; add a file name")
    tensors = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    note = {"declaration": json.dumps(plain), "sha256": content_hash(plain, tensors)}
    with only_writer(target.parent, f".{target.name}{LOCK}"), scratch_folder(target.parent) as scratch:
        tensorfile.write_tensors(scratch / target.name, tensors, note)
        os.replace(scratch / target.name, target)


def read_plain(path: str | Path, what: str) -> tuple[Any, dict[str, Tensor]]:
    """What :func:`write_plain` wrote; ValueError if the file is missing, truncated or altered."""
    tensors, note = tensorfile.read_tensors(user_path(path))
    plain = json.loads(note.get("declaration", "null"))
    if plain is None or note.get("sha256") != content_hash(plain, tensors):
        raise ValueError(
            f"load: expected a {what} as it was saved, got other contents in {path}; save it again"
        )
    return plain, tensors


def content_hash(plain: Any, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of plain data and tensors; saving and loading does not change it."""
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().numpy().tobytes())
    return digest.hexdigest()
