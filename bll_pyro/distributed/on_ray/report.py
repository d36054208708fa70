"""What a pass over rows on Ray did."""

from __future__ import annotations

from dataclasses import dataclass

from bll_pyro.summary import Summary


@dataclass(frozen=True)
class RowsReport(Summary):
    """What became of the rows of a call.

    Parameters
    ----------
    path
        Where the results are.
    num_rows
        Rows in the result.
    num_done
        Rows that this call computed.
    num_skipped
        Rows that an earlier call had computed.
    left_out
        Ids of the rows that have no result, since their batch passed the time or ended its process again and again. They are in
        ``left-out.json`` in the folder too.
    """

    path: str
    num_rows: int
    num_done: int
    num_skipped: int
    left_out: tuple[int | str, ...]
