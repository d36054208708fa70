"""When the ELBO has stopped rising beyond its noise: the rest of the schedule is run through faster, or a verdict is kept.

On paper: with ``m_1, m_2`` the means of the ELBO over two successive windows of w steps, and ``v`` the variance of one
estimate, taken from successive differences (von Neumann 1941: a trend does not enter it),

    ``m_2 - m_1 <= max(sqrt(2 v / w), 0.01 nats)``  means that it has stopped.

Looked at while the step size is still large: once it falls towards zero any ELBO stops, wherever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NUM_WINDOWS = 15  # in a whole schedule
MIN_WINDOW = 50  # steps
LAST_LOOK = 0.6  # share of the schedule after which the step size is too small to tell
TOLERANCE = 0.01  # nats: a smaller rise is none, however small the noise
PACE = 4  # how many times faster the rest of the schedule is run through


@dataclass
class Plateau:
    """Watches the ELBO estimates of the steps, a window at a time (one synchronisation with the device each).

    Parameters
    ----------
    num_steps
        Steps of the whole schedule.
    step
        Step at which the ELBO was seen to have stopped rising; None as long as it has not.
    rise, noise
        Of the last look: rise between the windows and its standard error, nats.
    """

    num_steps: int
    step: int | None = None
    rise: float = field(default=float("nan"))
    noise: float = field(default=float("nan"))

    @property
    def window(self) -> int:
        """Steps of a window."""
        return max(MIN_WINDOW, self.num_steps // NUM_WINDOWS)

    @property
    def can_tell(self) -> bool:
        """Whether the schedule holds two windows before the step size has fallen."""
        return 2 * self.window <= LAST_LOOK * self.num_steps

    def look(self, history: Sequence[Tensor]) -> bool:
        """Look at the ELBO of all steps so far; True once it has stopped rising."""
        done, width = len(history), 2 * self.window
        due = done % self.window == 0 and width <= done <= LAST_LOOK * self.num_steps
        if self.step is None and due and self._has_stopped(history[-width:]):
            self.step = done
        return self.step is not None

    def verdict(self) -> str:
        """What is to be said of the fit; empty where the ELBO has stopped rising."""
        if self.step is not None:
            return ""
        if not self.can_tell:
            return f"{self.num_steps} steps are too few to tell whether the ELBO has stopped rising"
        return (
            f"the ELBO was still rising, by {self.rise:.3g} nats in {self.window} steps (noise {self.noise:.2g}), when "
            f"the step size began to fall; give SVI(num_epochs=...) more than the {self.num_steps} steps it had"
        )

    def _has_stopped(self, recent: Sequence[Tensor]) -> bool:
        values = torch.stack(list(recent)).double()
        means = values.view(2, -1).mean(-1)
        variance = values.diff().square().mean() / 2
        self.rise, self.noise = torch.stack(
            [means[1] - means[0], (2 * variance / self.window).sqrt()]
        ).tolist()
        return self.rise <= max(self.noise, TOLERANCE)
