"""The demo: one small network with four heads, evaluated on known and unknown digits."""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo"]


def demo(out: str | Path = "runs/demo", seed: int = 0, quick: bool = False) -> None:
    """Train a small network on handwritten digits, with a softmax head and with a Bayesian last layer, and compare.

    Scikit-learn's digits 0 to 7 are known; 8 and 9 are not used in training, and serve as out-of-distribution inputs.
    Takes one to two minutes on two cores, and needs no network connection.

    The folder of results contains metrics.json (all figures), model/ (the jointly trained fit, for bll.load), posterior.nc
    (its posterior and the training digits, for ArviZ) and four pictures.

    Parameters
    ----------
    out
        Folder of the results. One of an earlier run is replaced when the new one is complete.
    seed
        Seed of the split of the digits, the random weights and the training.
    quick
        Use few rows and few epochs, as a test that everything runs; the figures mean little then.

    Raises
    ------
    ValueError
        Before any work, if `out` is neither a new folder nor one of an earlier run, or `seed` is negative.

    Examples
    --------
    bll demo
    bll demo --quick -o runs/quick
    """
    from bll_pyro.demo.job import run

    run(Path(out), seed, quick)
