"""Whether the ELBO of a fit has stopped rising."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NUM_WINDOWS = 15  # number of windows in a whole schedule
MIN_WINDOW = 50  # fewest steps in a window
LAST_LOOK = 0.6  # share of the schedule after which the step size is too small for the test
TOLERANCE = 0.01  # rise of the ELBO, in nats, that counts as none


@dataclass
class Plateau:
    """Tests whether the ELBO has stopped rising, once per window of steps (one synchronisation with the device each).

    With ``m_1, m_2`` the means of the ELBO over two successive windows of w steps, and ``v`` the variance of one estimate
    from successive differences (von Neumann 1941), which a trend does not inflate, it has stopped where

        ``m_2 - m_1 <= max(sqrt(2 v / w), 0.01 nats)``.

    The test runs only while the step size is large: as the step size falls to zero, the ELBO stops rising at any point.

    Parameters
    ----------
    num_steps
        Number of steps in the whole schedule.
    step
        Number of steps after which the ELBO was found to have stopped rising; None before.
    rise, noise
        Rise between the windows of the last test, and its standard error, in nats.
    """

    num_steps: int
    step: int | None = None
    rise: float = float("nan")
    noise: float = float("nan")
    window: int = field(init=False)  # number of steps in a window

    def __post_init__(self) -> None:
        self.window = max(MIN_WINDOW, self.num_steps // NUM_WINDOWS)

    @property
    def can_tell(self) -> bool:
        """Whether two windows fit into the part of the schedule with a large step size."""
        return 2 * self.window <= LAST_LOOK * self.num_steps

    def look(self, history: Sequence[Tensor]) -> bool:
        """Test the ELBO of all steps so far; True once it has stopped rising."""
        done, width = len(history), 2 * self.window
        due = done % self.window == 0 and width <= done <= LAST_LOOK * self.num_steps
        if self.step is None and due:
            values = torch.stack(list(history[-width:])).double()
            means = values.view(2, -1).mean(-1)
            variance = values.diff().square().mean() / 2
            found = torch.stack([means[1] - means[0], (2 * variance / self.window).sqrt()])
            self.rise, self.noise = found.tolist()
            if self.rise <= max(self.noise, TOLERANCE):
                self.step = done
        return self.step is not None

    def verdict(self) -> str:
        """What is to be said of the fit; empty if the ELBO has stopped rising."""
        if self.step is not None:
            return ""
        if not self.can_tell:
            return f"{self.num_steps} steps are too few to tell whether the ELBO has stopped rising"
        return (
            f"the ELBO was still rising, by {self.rise:.3g} nats in {self.window} steps (standard error {self.noise:.2g}), when "
            f"the step size began to fall; use more than these {self.num_steps} steps: SVI(num_epochs=...)"
        )
