"""Integration over the outputs: expectations under q(f) in chunks of flat memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bll_pyro.checks import count
from bll_pyro.gaussian import Outputs
from bll_pyro.prediction.probit import Probit
from bll_pyro.scope import generator

# draws x rows x outputs held at once: the cache of a CPU, or enough work for a GPU
CHUNK_NUMBERS = {"cpu": 3 * 2**19, "cuda": 2**26}
FEW_ROWS = 16  # fewer rows at once are slow, since the operations run along them
MAX_NUMBERS = 2**27  # half a gigabyte
BLOCK_NUMBERS = 2**21  # rows x outputs of one block; several copies are made


@dataclass(frozen=True)
class QuasiMonteCarlo:
    """Average over a fixed set of quasi-random normals, shared by all rows (scrambled Sobol, Owen 1998).

    Parameters
    ----------
    num_points
        Number of points S; the error of a probability falls like 1/S. Powers of two balance best.
    seed
        Of the scrambling.
    """

    num_points: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_points", count(self.num_points, "num_points", "QuasiMonteCarlo"))
        generator(self.seed)  # raises for what is no seed
        object.__setattr__(self, "seed", int(self.seed))

    def blocks(self, outputs: Outputs) -> Iterator[slice]:
        """Rows whose outputs are worked on together, in one or more chunks of draws."""
        size = max(FEW_ROWS, BLOCK_NUMBERS // outputs.num_outputs)
        for start in range(0, max(1, outputs.num_rows), size):
            yield slice(start, start + size)

    def chunks(self, outputs: Outputs) -> Iterator[slice]:
        """Rows whose draws are held at once, about the same number in every chunk."""
        at_once = CHUNK_NUMBERS.get(outputs.mean.device.type, 2**24)
        of_row = self.num_points * outputs.num_outputs
        most = max(1, at_once // of_row, min(FEW_ROWS, MAX_NUMBERS // of_row))
        num_chunks = max(1, -(-outputs.num_rows // most))
        size = max(1, -(-outputs.num_rows // num_chunks))
        for start in range(0, outputs.num_rows, size):
            yield slice(start, start + size)


Integration = QuasiMonteCarlo | Probit
"""How expectations over the outputs are taken."""
