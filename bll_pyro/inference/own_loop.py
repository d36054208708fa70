"""``OwnLoop``: the record of an inference that ran outside the library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bll_pyro.guides import Guide
from bll_pyro.inference.base import Inference, Trace
from bll_pyro.inference.rows import DesignRows
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.posterior import Posterior

NOTE = "trained by a loop outside the library: whether it has converged is for that loop to say"
CANNOT_RUN = (
    "OwnLoop: expected an inference that can be run, got the record of a loop outside the library; go on in that loop, or take "
    "another inference such as bll.SVI()"
)


@dataclass(frozen=True, eq=False)
class OwnLoop(Inference):
    """What a fit says of its inference where a loop of the user's was that: it can be written down, and not run again.

    Parameters
    ----------
    guide
        Variational family, where :class:`bll_pyro.ELBO` was trained.
    """

    guide: Guide | None = None

    def check(self, layer: LastLayer, num_outputs: int, num_columns: int) -> None:
        """Nothing: it does not run."""

    @property
    def trains_backbone(self) -> bool:
        """True: it may have, and constants of the features need not be those of the training rows."""
        return True

    def run(
        self,
        layer: LastLayer,
        rows: DesignRows,
        target_shape: TargetShape,
        *,
        seed: int,
        validation: DesignRows | None = None,
    ) -> tuple[Posterior, Trace]:
        """Raise a TypeError: the loop is the user's."""
        raise TypeError(CANNOT_RUN)

    def train_backbone(self, *_: Any, **__: Any) -> tuple[Posterior, Trace]:
        """Raise a TypeError, too."""
        raise TypeError(CANNOT_RUN)
