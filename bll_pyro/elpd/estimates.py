"""From log predictive densities of rows without themselves to an ELPD: of all rows, or of all from some."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def of_all(elpd: Float[np.ndarray, " N"], whole: Float[np.ndarray, " N"]) -> dict[str, Any]:
    """Fields of ArviZ's result, from the densities of rows without themselves and under the whole posterior."""
    return {
        "elpd": float(elpd.sum()),
        "se": float(math.sqrt(len(elpd)) * elpd.std()),
        "p": float((whole - elpd).sum()),
        "elpd_i": with_rows(elpd),
    }


def of_some(
    index: Int[np.ndarray, " n"], elpd: Float[np.ndarray, " n"], whole: Float[np.ndarray, " N"]
) -> dict[str, Any]:
    """The same from rows ``index``: the difference estimator of Magnusson, Vehtari, Jonasson and Andersen (2020), eq. 7 to 10."""
    num_all, num_chosen = len(whole), len(index)
    near = whole[index]
    difference = elpd - near
    total = whole.sum() + num_all * difference.mean()
    variance = num_all**2 * (1 - num_chosen / num_all) * difference.var(ddof=1) / num_chosen
    square = (whole**2).sum() + num_all * (elpd**2 - near**2).mean()
    return {
        "elpd": float(total),
        "se": math.sqrt(max(square - (total**2 - variance) / num_all, 0.0)),
        "p": float(-num_all * difference.mean()),
        "elpd_i": with_rows(spread_out(elpd, index, num_all)),
        "subsampling_se": math.sqrt(variance),
        "elpd_loo_approx": with_rows(whole),
    }


def spread_out(values: np.ndarray, index: np.ndarray, num_all: int) -> np.ndarray:
    """Values of the rows ``index``, NaN elsewhere ``[N]``."""
    full = np.full(num_all, np.nan)
    full[index] = values
    return full


def with_rows(values: np.ndarray) -> Any:
    """``[N]`` with the dimension ``obs``."""
    import xarray as xr

    return xr.DataArray(values, dims="obs", coords={"obs": np.arange(len(values))})
