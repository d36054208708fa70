"""Options of the benchmarks, from the command line."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """The options of a run.

    Attributes
    ----------
    small : bool
        Tiny sizes, as a test that everything runs; the figures mean nothing.
    num_runs : int
        Interleaved repetitions; medians and quartiles are over these.
    num_threads : int
        Threads that torch may use, the same for every method.
    methods : tuple of str
        Keep only methods whose name contains one of these (and the reference); empty keeps all.
    results : Path
        Folder for the result files.
    again : str or None
        Id of a row of the suite that is measured again.
    """

    small: bool = False
    num_runs: int = 5
    num_threads: int = 1
    methods: tuple[str, ...] = ()
    results: Path = Path("benchmarks/results")
    again: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_runs", "num_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected {name} >= 1, got {getattr(self, name)}.")

    def keeps(self, name: str) -> bool:
        """Whether a method of this name is selected."""
        return not self.methods or any(part.lower() in name.lower() for part in self.methods)
