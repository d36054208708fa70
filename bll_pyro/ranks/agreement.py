"""What ranks have to agree on before they share rows, and what must differ between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bll_pyro.ranks.processes import Processes

MOST_SHOWN = 300  # characters of a value in a message


def agree(ranks: Processes, same: Mapping[str, Any], different: Mapping[str, Any]) -> None:
    """Stop on all ranks, with an error that names the ranks, unless they agree.

    Parameters
    ----------
    ranks
        Who is asked.
    same
        Values by name, plain data, that are equal on all ranks.
    different
        Values by name that no two ranks share, as those of rows that would count twice; None is not compared.

    Raises
    ------
    ValueError
        On all ranks, with the name of what differs or is there twice.
    """
    found = ranks.gather((dict(same), dict(different)))
    first = found[0][0]
    for rank, (values, _) in enumerate(found):
        for name in (*first, *(name for name in values if name not in first)):
            expected, got = first.get(name), values.get(name)
            if expected != got:
                raise ValueError(
                    f"ranks: expected the same {name} on all ranks, got {_shown(expected)} on rank 0 and {_shown(got)} on rank "
                    f"{rank}; start all ranks with the same program, and give them different rows only"
                )
    for name in different:
        seen: dict[Any, int] = {}
        for rank, (_, values) in enumerate(found):
            value = values[name]
            if value is not None and value in seen:
                raise ValueError(
                    f"ranks: expected {name} of its own on each rank, got the same on ranks {seen[value]} and {rank}: they "
                    "would count twice; give each rank a part, such as data[ranks.rank :: ranks.size] or "
                    "features.between(start, stop), and never those of a DistributedSampler, which repeats rows"
                )
            seen[value] = rank


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
