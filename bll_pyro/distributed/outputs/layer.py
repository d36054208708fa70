"""``OutputShards``: the weights of the classes of this rank, what all ranks know, and how both are saved."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bll_pyro import tensorfile
from bll_pyro.files import user_path
from bll_pyro.ranks import ALONE, Processes
from bll_pyro.summary import Summary

if TYPE_CHECKING:
    from bll_pyro.distributed.outputs.prediction import ShardedPrediction

BLOCK = (
    1024  # classes that are computed together, and draw from one generator: on any number of ranks the same
)
LEAST = -60.0  # of an output less the largest one
MANIFEST, FORMAT = "outputs.json", "bll_pyro.outputs 1"


@dataclass(frozen=True, eq=False)
class OutputShards(Summary):
    """A last layer over C classes, of which each rank has a part, with independent Gaussian weights or a point.

    Made by :func:`bll_pyro.distributed.fit_outputs` or :meth:`load`.

    Parameters
    ----------
    loc, scale
        Means and standard deviations ``[k, D + 1]`` of weight and bias of the k own classes; ``scale`` is None for a point.
    first, num_classes
        Number of the first own class, and C.
    center, feature_scale
        Constants of the features: centre ``[D]`` and one scale.
    prior_scale
        Standard deviation of the prior of the weights, given or learned.
    elbo
        ELBO of each step, nats (log joint density for a point).
    ranks
        Who has the other classes.
    """

    loc: Float[Tensor, "k P"]
    scale: Float[Tensor, "k P"] | None
    first: int
    num_classes: int
    center: Float[Tensor, " D"]
    feature_scale: float
    prior_scale: float
    elbo: Tensor
    ranks: Processes = field(default=ALONE, repr=False)

    def design(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N P"]:
        """Standardised features with a column of ones."""
        values = (features.to(self.center) - self.center) / self.feature_scale
        return torch.cat([values, values.new_ones(len(values), 1)], 1)

    def predict(self, inputs: Any, labels: Any = None, **options: Any) -> ShardedPrediction:
        """Classes and uncertainty of rows; see :func:`bll_pyro.distributed.outputs.prediction.predict_shards`."""
        from bll_pyro.distributed.outputs.prediction import predict_shards

        return predict_shards(self, inputs, labels, **options)

    def save(self, path: str | Path) -> None:
        """Write a folder: each rank its classes into one safetensors file, then rank 0 the manifest. All ranks call it.

        The folder is one that all ranks see. It is read on any number of ranks.
        """
        folder = user_path(path)
        with self.ranks.together():
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {"loc": self.loc, "center": self.center, "elbo": self.elbo}
            if self.scale is not None:
                tensors["scale"] = self.scale
            name, new = f"classes-{self.first}.safetensors", folder / f".classes-{self.first}.new"
            digest = tensorfile.write_tensors(new, {k: v.cpu().contiguous() for k, v in tensors.items()})
            os.replace(new, folder / name)
            files = self.ranks.gather((name, self.first, len(self.loc), digest))
            if self.ranks.rank == 0:
                numbers = ("num_classes", "feature_scale", "prior_scale")
                body = {"format": FORMAT, "files": files, **{k: getattr(self, k) for k in numbers}}
                (folder / f".{MANIFEST}.new").write_text(json.dumps(body), encoding="utf-8")
                os.replace(folder / f".{MANIFEST}.new", folder / MANIFEST)

    @classmethod
    def load(cls, path: str | Path, ranks: Processes = ALONE) -> OutputShards:
        """Read what :meth:`save` wrote, on any number of ranks; each reads the files of its classes, and checks their hashes.

        Raises
        ------
        ValueError
            If a file is missing, truncated or altered.
        """
        folder = user_path(path)
        with ranks.together():
            body = _manifest(folder)
            own = classes_of_rank(body["num_classes"], ranks)
            parts: dict[str, list[Tensor]] = {"loc": [], "scale": []}
            common: dict[str, Tensor] = {}
            for name, first, number, digest in body["files"]:
                start, end = max(own.start, first) - first, min(own.stop, first + number) - first
                if start < end:
                    found = _part(folder / name, slice(start, end), digest)
                    common = {k: found[k] for k in ("center", "elbo")}
                    for key, some in parts.items():
                        some += [found[key]] if key in found else []
            loc, scale = (torch.cat(some) if some else None for some in parts.values())
            assert loc is not None
            numbers = body["num_classes"], common["center"], body["feature_scale"], body["prior_scale"]
            return cls(loc, scale, own.start, *numbers, common["elbo"], ranks)


def classes_of_rank(num_classes: int, ranks: Processes) -> slice:
    """The classes of a rank: whole blocks, one rank after the other; ValueError if there are fewer blocks than ranks."""
    num_blocks = -(-num_classes // BLOCK)
    if num_blocks < ranks.size:
        raise ValueError(
            f"fit_outputs: expected at least {BLOCK * (ranks.size - 1) + 1} classes for {ranks.size} ranks, {BLOCK} each, got "
            f"{num_classes}; use bll.fit(..., ranks=ranks), which shares the rows"
        )
    start, end = (BLOCK * (num_blocks * (ranks.rank + at) // ranks.size) for at in (0, 1))
    return slice(start, min(end, num_classes))


def lowered_by(outputs: Float[Tensor, "*S b"], largest: Float[Tensor, "*S"]) -> Float[Tensor, "*S b"]:
    """Outputs less the largest ones, in place, and at least -60: what is smaller changes nothing, and denormal numbers are slow."""
    return outputs.sub_(largest[..., None]).clamp_min_(LEAST)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"OutputShards.load: expected a folder with a whole {MANIFEST}, got {error}; save it again"
        ) from error
    if body.get("format") != FORMAT:
        raise ValueError(
            f"OutputShards.load: expected format {FORMAT!r}, got {body.get('format')!r}; use the version that wrote it"
        )
    return body


def _part(file: Path, rows: slice, digest: str) -> dict[str, Tensor]:
    """Some rows of the weights in a file, and what it holds beside them."""
    try:
        if tensorfile.sha256(file) != digest:
            raise ValueError(
                f"OutputShards.load: expected {file} as it was saved, got other contents; save it again"
            )
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
            found = {name: opened.get_slice(name)[rows] for name in ("loc", "scale") if name in names}
            return found | {name: opened.get_tensor(name) for name in ("center", "elbo")}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"OutputShards.load: expected a complete file {file}, got {error}; save it again"
        ) from error
