"""Write down what every fit of ``cases.py`` gives, or compare it with what was written down.

    python tests/format1/record.py write FOLDER      # at the version that is the reference
    python tests/format1/record.py compare FOLDER    # bit for bit, after a change that is to change no number

``FOLDER`` gets ``recorded.npz``, and the fits of ``SAVED`` as folders. The reference of format 1 is this folder itself.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES, SAVED, Case

import bll_pyro as bll

FIELDS = ("probs", "mean", "scale", "total", "aleatoric", "epistemic")


def folder_name(case: str) -> str:
    """Name of the folder of a saved case."""
    return case.replace(",", "").replace(" ", "-").lower()


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a part of a fit, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


def posterior_hash(fit: bll.Fit) -> str:
    """sha256 over all tensors of the posterior, whatever their names."""
    parts = [
        f"{t.dtype}{tuple(t.shape)}".encode() + t.detach().cpu().contiguous().numpy().tobytes()
        for t in tensors(fit.posterior)
    ]
    digests = sorted(hashlib.sha256(part).hexdigest() for part in parts)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def results(fit: bll.Fit, case: Case) -> dict[str, np.ndarray]:
    """Predictions, draws, trace and log densities of a fit."""
    prediction = fit.predict(case.inputs)
    found = {name: getattr(prediction, name) for name in FIELDS if hasattr(prediction, name)}
    found["log_prob"] = prediction.log_prob(case.targets)
    if prediction.ood is not None:
        found["p_value"] = torch.as_tensor(prediction.ood.p_value)
    for name, value in fit.posterior.sample(5, seed=3).items():
        found[f"draws of {name}"] = value
    if fit.trace.elbo is not None:
        found["trace"] = fit.trace.elbo
    for name in ("elbo", "log_evidence"):
        try:
            found[name] = torch.tensor(getattr(fit, name), dtype=torch.float64)
        except AttributeError:
            continue
    found["converged"] = torch.tensor(fit.trace.converged)
    return {name: value.detach().cpu().numpy() for name, value in found.items()}


def run(names: list[str]) -> tuple[dict[str, np.ndarray], dict[str, bll.Fit]]:
    """All results by ``case/name``, and the fits."""
    torch.set_num_threads(1)
    record: dict[str, np.ndarray] = {}
    made: dict[str, bll.Fit] = {}
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made[name] = CASES[name].fit()
        record[f"{name}/hash"] = np.array(posterior_hash(made[name]))
        record |= {f"{name}/{key}": value for key, value in results(made[name], CASES[name]).items()}
    return record, made


def write(folder: Path) -> None:
    """Write the reference."""
    record, made = run(list(CASES))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "recorded.npz", **record)
    for name in SAVED:
        made[name].save(folder / "fits" / folder_name(name))


def differences(record: dict[str, np.ndarray], reference: Any) -> dict[str, str]:
    """What differs in any bit, and by how much."""
    wrong = {}
    for key, value in record.items():
        expected = reference[key]
        if value.dtype == expected.dtype and value.tobytes() == expected.tobytes():
            continue
        if value.dtype.kind == "U" or value.shape != expected.shape:
            wrong[key] = "differs"
        else:
            distance = np.abs(value.astype(float) - expected.astype(float)).max()
            wrong[key] = f"differs by {distance:.2g}"
    return wrong


def main() -> int:
    """Run from the command line."""
    what, folder, *names = sys.argv[1:]
    if what == "write":
        write(Path(folder))
        return 0
    with np.load(Path(folder) / "recorded.npz") as reference:
        record, _ = run(names or list(CASES))
        wrong = differences(record, reference)
        missing = [] if names else sorted(set(reference.files) - set(record))
    for key, text in wrong.items():
        print(f"{key}: {text}")
    print(
        f"{len(record)} results of {len(names or CASES)} fits, {len(wrong)} differ, {len(missing)} missing {missing}"
    )
    return int(bool(wrong or missing))


if __name__ == "__main__":
    sys.exit(main())
