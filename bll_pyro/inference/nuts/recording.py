"""``RecordingNUTS``: Pyro's NUTS with statistics of every draw."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from pyro.infer import NUTS


class RecordingNUTS(NUTS):
    """Pyro's NUTS, which also keeps the statistics of every draw for :func:`bll_pyro.from_pyro`.

    Pyro's kernel keeps only the divergences and one acceptance rate of each chain. This one adds the statistics to the
    chain's diagnostics, which also come back from chains in other processes. Sampling is unchanged, random numbers
    included. Arguments are those of :class:`pyro.infer.NUTS`.

    ========================= ==============================================================
    statistic                 meaning
    ========================= ==============================================================
    ``acceptance_rate``       mean Metropolis acceptance over the trajectory's points
    ``n_steps``               leapfrog steps
    ``tree_depth``            doublings of the trajectory
    ``reached_max_treedepth`` whether it stopped at the maximum depth, before its U-turn
    ``step_size``             step size
    ``energy``                ``-log p(z, y) + p'p / 2`` at the start, with fresh momentum
    ========================= ==============================================================

    Examples
    --------
    >>> from bll_pyro.datatree import RecordingNUTS
    >>> mcmc = MCMC(RecordingNUTS(model), num_samples=1000)  # doctest: +SKIP
    >>> mcmc.run(data)  # doctest: +SKIP
    >>> az.plot_energy(bll.from_pyro(mcmc=mcmc))  # doctest: +SKIP
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._records: defaultdict[str, list[float]] = defaultdict(list)
        self._num_steps = self._num_doublings = 0

    def _reset(self) -> None:
        """Clear the records; Pyro calls this at the start and at the end of a chain."""
        self._records = defaultdict(list)
        super()._reset()

    def _build_basetree(self, *args: Any, **kwargs: Any) -> Any:
        self._num_steps += 1
        return super()._build_basetree(*args, **kwargs)

    def _build_tree(
        self, z: Any, r: Any, z_grads: Any, slice_: Any, way: Any, depth: int, energy: Any
    ) -> Any:
        # the outermost call of each doubling has the largest depth
        self._num_doublings = max(self._num_doublings, depth + 1)
        self._energy = energy
        return super()._build_tree(z, r, z_grads, slice_, way, depth, energy)

    def sample(self, params: Any) -> Any:
        """Make one transition."""
        self._num_steps = self._num_doublings = 0
        num_before, mean_before = len(self._divergences), self._mean_accept_prob
        result = super().sample(params)
        n = self._t - self._warmup_steps
        if n > 0 and self._num_steps:  # after the warm-up, in a model with latent sites
            stopped = self._num_doublings >= self._max_tree_depth and len(self._divergences) == num_before
            # Pyro keeps the running mean of the acceptance only, and starts it anew after the warm-up
            mean_before = mean_before if n > 1 else 0.0
            acceptance = n * self._mean_accept_prob - (n - 1) * mean_before
            for name, value in {
                "acceptance_rate": min(
                    max(acceptance, 0.0), 1.0
                ),  # the difference may round to outside of [0, 1]
                "n_steps": self._num_steps,
                "tree_depth": self._num_doublings,
                "reached_max_treedepth": stopped,
                "step_size": float(self.step_size),
                "energy": float(self._energy),
            }.items():
                self._records[name].append(value)
        return result

    def diagnostics(self) -> dict[str, Any]:
        """Return Pyro's diagnostics of a chain, and the statistics of its draws."""
        return {**super().diagnostics(), "statistics": dict(self._records)}
