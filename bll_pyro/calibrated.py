"""What was calibrated on a fit belongs to it: a detector, conformal sets, conformal intervals. And a file for it."""

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


@dataclass(frozen=True, eq=False)
class Calibrated(Declaration):
    """A declaration and, once calibrated, the figures found on held-out rows, and the fingerprint of the fit.

    Parameters
    ----------
    fingerprint
        Of the fit that it was calibrated on; None before. Its figures mean nothing for another fit, so that one is refused.
    """

    fingerprint: str | None = field(default=None, kw_only=True, repr=False)
    fit: Any = field(default=None, init=False, repr=False)  # the fit in use; it is not part of what is saved

    @property
    def is_calibrated(self) -> bool:
        """Whether held-out rows have been seen."""
        return self.fingerprint is not None

    def bound(self, fit: Any) -> Self:
        """The same for use with a fit, which has to be the one of the calibration (or a loaded copy of it)."""
        self.check_calibrated()
        if fit.fingerprint != self.fingerprint:
            raise ValueError(
                f"{self._name}: expected the fit that it was calibrated on, got one with another posterior or recalibration; "
                "calibrate it anew on held-out rows: .calibrate(fit, ...)"
            )
        copy = replace(self)
        object.__setattr__(copy, "fit", fit)
        return copy

    def check_calibrated(self) -> None:
        """Raise ValueError where there was no calibration."""
        if not self.is_calibrated:
            raise ValueError(
                f"{self._name}: expected to be calibrated first, got a bare declaration; call "
                ".calibrate(fit, ...) with held-out rows and use what it returns"
            )

    def check_bound(self) -> Any:
        """The fit in use; ValueError where there is none."""
        self.check_calibrated()
        if self.fit is None:
            raise ValueError(f"{self._name}: expected a fit to work with, got none; call .bound(fit) first")
        return self.fit

    def save(self, path: str | Path) -> None:
        """Write into one safetensors file, in place of an earlier one; the fit is not in it."""
        self.check_calibrated()
        target = Path(path)
        tensors: dict[str, Tensor] = {}
        plain = to_plain(self, tensors)
        tensors = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        note = {"declaration": json.dumps(plain), "sha256": content_hash(plain, tensors)}
        tensorfile.write_tensors(temporary, tensors, note)
        os.replace(temporary, target)

    @classmethod
    def load(cls, path: str | Path, fit: Any = None) -> Self:
        """Read what :meth:`save` wrote, for use with ``fit`` where one is given.

        Raises
        ------
        ValueError
            When the file is missing, cut or altered, holds something else, or belongs to another fit.
        """
        tensors, note = tensorfile.read_tensors(Path(path))
        plain = json.loads(note.get("declaration", "null"))
        if plain is None or note.get("sha256") != content_hash(plain, tensors):
            raise ValueError(
                f"load: expected a {cls.__name__} as it was saved, got other contents in {path}; save it again"
            )
        made = from_plain(plain, tensors)
        if not isinstance(made, cls):
            raise ValueError(f"load: expected a {cls.__name__}, got a {type(made).__name__} in {path}")
        return made if fit is None else made.bound(fit)

    @property
    def _name(self) -> str:
        return f"{self.family}.{type(self).__name__}"


def content_hash(plain: Any, tensors: dict[str, Tensor]) -> str:
    """sha256 over plain data and tensors: the same for the same content, after saving and loading too."""
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().numpy().tobytes())
    return digest.hexdigest()
