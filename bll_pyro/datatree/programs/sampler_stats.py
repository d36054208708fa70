"""The statistics that Pyro's MCMC keeps of its chains; with ``RecordingNUTS``, of every draw."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bll_pyro.inference.nuts.recording import RecordingNUTS as RecordingNUTS

_DTYPES = {"n_steps": np.int64, "tree_depth": np.int64, "reached_max_treedepth": np.bool_}


def sampler_stats(mcmc: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the statistics ``[chain, draw]`` that a run of MCMC kept; as attributes, what it knows of whole chains.

    Every HMC and NUTS run has ``diverging`` and the share of accepted transitions in each chain; a run with
    :class:`RecordingNUTS` has the statistics of every draw.
    """
    chains = [
        chain or {} for chain in mcmc._diagnostics
    ]  # mcmc.diagnostics() adds R-hat and ESS, which ArviZ does
    shape = (len(chains), mcmc.num_samples)
    stats: dict[str, NDArray[Any]] = {}
    attrs: dict[str, Any] = {}
    if all("divergences" in chain for chain in chains):
        stats["diverging"] = np.zeros(shape, dtype=bool)
        for row, chain in zip(stats["diverging"], chains):
            row[np.asarray(chain["divergences"], dtype=int)] = True
    if all("acceptance rate" in chain for chain in chains):
        attrs["accepted_transitions"] = [float(chain["acceptance rate"]) for chain in chains]
    records = [chain.get("statistics") or {} for chain in chains]
    for name in records[0]:
        if all(len(record.get(name, ())) == shape[1] for record in records):
            stats[name] = np.asarray(
                [record[name] for record in records], dtype=_DTYPES.get(name, np.float64)
            )
    return stats, attrs
