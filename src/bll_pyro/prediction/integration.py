"""Integration over the outputs: expectations under q(f) in chunks of flat memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bll_pyro.gaussian import Outputs

CHUNK_NUMBERS = 2_000_000  # draws x rows x outputs held at once


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

    def chunks(self, outputs: Outputs) -> Iterator[slice]:
        """Rows whose draws are held at once."""
        size = max(1, CHUNK_NUMBERS // (self.num_points * outputs.num_outputs))
        for start in range(0, outputs.num_rows, size):
            yield slice(start, start + size)
