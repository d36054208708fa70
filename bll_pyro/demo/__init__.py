"""The main job: one small network, four heads, known and unknown digits, and everything that comes of it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo"]


def demo(out: str | Path = "runs/demo", seed: int = 0, quick: bool = False) -> None:
    """Train a small network on handwritten digits, with a softmax head and with a Bayesian last layer, and compare.

    Scikit-learn's digits 0 to 7 are known; 8 and 9 are kept away from training, and the heads are asked to notice.
    Takes one to two minutes on two cores, and needs no network connection.

    The folder of results holds metrics.json (all figures), model/ (the jointly trained fit, for bll.load), posterior.nc
    (its posterior and the training digits, for ArviZ) and four pictures.

    Parameters
    ----------
    out
        Folder of the results. One of an earlier run is replaced when the new one is complete.
    seed
        The split of the digits, the random weights and the training follow from it.
    quick
        Take few rows and few epochs, to see that everything runs. The figures mean little then.

    Raises
    ------
    ValueError
        Before any work, when `out` is something else than a new folder or one of an earlier run, or `seed` negative.
    """
    from bll_pyro.demo.job import run

    run(Path(out), seed, quick)
