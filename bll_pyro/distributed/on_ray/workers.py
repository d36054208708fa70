"""How a pass over rows on Ray is divided: the declaration of its workers."""

from __future__ import annotations

from dataclasses import dataclass

from bll_pyro.checks import count


@dataclass(frozen=True)
class Workers:
    """Actors of Ray Data that hold the model.

    Parameters
    ----------
    num_actors
        How many; None takes one for each CPU of the cluster.
    num_cpus, num_gpus
        What an actor takes of its machine. Tasks that read rows need a whole CPU each, which must remain beside the actors. With
        ``num_gpus`` the model is on the actor's GPU.
    batch_size
        Rows at a time through the model.
    rows_per_part
        Rows of a file, which an actor has in memory at once; what a worker that dies loses at most.
    timeout
        Most seconds that a batch may take. After them its worker is ended, the batch is left out, and the others go on. None
        waits for ever.
    retries
        How often a batch that ends its worker by itself (a crash, no memory) is tried again before it is left out. Workers that die
        otherwise are replaced, and their rows are computed again, without a limit.
    """

    num_actors: int | None = None
    num_cpus: float = 0.5
    num_gpus: float = 0.0
    batch_size: int = 256
    rows_per_part: int = 1024
    timeout: float | None = 600.0
    retries: int = 3

    def __post_init__(self) -> None:
        count(self.batch_size, "batch_size", "Workers")
        count(self.rows_per_part, "rows_per_part", "Workers")
        count(self.retries, "retries", "Workers", least=0)
        if self.num_actors is not None:
            count(self.num_actors, "num_actors", "Workers")
        if self.num_cpus < 0 or self.num_gpus < 0:
            raise ValueError(
                f"Workers: expected num_cpus and num_gpus of 0 or more, got {self.num_cpus} and {self.num_gpus}"
            )
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"Workers(timeout=...): expected seconds above 0, or None, got {self.timeout}")

    @property
    def device(self) -> str:
        """Where the model computes."""
        return "cuda" if self.num_gpus else "cpu"
