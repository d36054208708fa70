"""The training budget that all methods share which train by gradient steps, and a smaller one for tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Steps of the optimiser, rows a step, learning rates, draws and members.

    Attributes
    ----------
    num_steps : int
        Steps of a last layer.
    num_network_steps : int
        Steps of a network with its last layer.
    batch_size, network_batch_size : int
        Rows a step.
    learning_rate : float
        Of Adam, unless a competitor's own documentation asks for another.
    num_draws : int
        Draws of the weights, or of the dropout, for a prediction.
    num_members : int
        Members of an ensemble.
    """

    num_steps: int = 1000
    num_network_steps: int = 600
    batch_size: int = 512
    network_batch_size: int = 100
    learning_rate: float = 1e-2
    num_draws: int = 50
    num_members: int = 5

    def num_epochs(self, num_rows: int, *, is_network: bool = False) -> int:
        """Passes over the rows that come to the steps, one at least."""
        steps, batch = (
            (self.num_network_steps, self.network_batch_size)
            if is_network
            else (self.num_steps, self.batch_size)
        )
        return max(1, round(steps / -(-num_rows // batch)))


FULL = Budget()
SHORT = Budget(num_steps=10, num_network_steps=5, num_draws=4, num_members=2)
