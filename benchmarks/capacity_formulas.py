"""Formulas of what a large job takes, from constants that were measured on one core.

N rows, D features, K outputs (1: a real value), ``P = D + 1`` columns, ``W = K P`` weights.
"""

from dataclasses import dataclass

GIB = 2**30
PASSES = 6  # of SVI's default on many rows
BATCH_ROWS = 65_536  # a step of SVI over many processes
ITEM_BYTES = 2  # float16
ROW_BYTES = 16  # row id and target


@dataclass(frozen=True)
class Constants:
    """What one core, one disk and one connection of the machine did.

    Attributes
    ----------
    images
        Images of 224 x 224 a second through a ResNet-18.
    sums, step, laplace, predict
        Seconds: of the sums of ``Exact`` for each ``N P^2``, a pass of ``SVI`` for each ``N W``, a fit by ``Laplace`` for each
        ``N W``, and predictions with ``Probit()`` for each ``N W``.
    read, sha256, network
        Bytes a second: a store that is read from a cold disk, hashed, and a sum over two processes by gloo.
    line
        Bytes of a row of predictions in Parquet.
    """

    images: float
    sums: float
    step: float
    laplace: float
    predict: float
    read: float
    sha256: float
    network: float
    line: float


@dataclass(frozen=True)
class Work:
    """One part of a job: core seconds, bytes of memory a process, bytes that each process sends, bytes on disk."""

    name: str
    core_seconds: float
    memory: float
    network: float
    storage: float


def store_bytes(num_rows: int, num_features: int, item_bytes: int = ITEM_BYTES) -> int:
    """Bytes of the tensors of a store: features, targets and row ids."""
    return num_rows * (num_features * item_bytes + ROW_BYTES)


def works(c: Constants, num_rows: int, num_features: int, num_outputs: int) -> list[Work]:
    """The parts of a job with classes; those of real values take ``Exact``, whose cost does not depend on K."""
    n, p = num_rows, num_features + 1
    w = num_outputs * p
    stored = store_bytes(n, num_features)
    steps = PASSES * -(-n // BATCH_ROWS)
    return [
        Work("extract (ResNet-18), float16", n / c.images + stored / c.sha256, GIB, 0, stored),
        Work("read the store once", stored / c.read, 2**26, stored, 0),
        Work("Exact, real values", c.sums * n * p**2, 48 * p**2, 8 * p**2, 12 * p**2),
        Work(
            f"SVI, Diagonal, {PASSES} passes",
            PASSES * c.step * n * w,
            84 * w,
            8 * w * steps,
            8 * w + 4 * p**2,
        ),
        Work(
            "Laplace, Kronecker",
            c.laplace * n * w,
            1100 * w + 60 * (p**2 + num_outputs**2),
            8 * (p**2 + num_outputs**2),
            8 * w + 4 * (p**2 + num_outputs**2),
        ),
        Work("predict, Probit()", c.predict * n * w, 16 * w, 0, c.line * n),
    ]


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are two."""
    for unit, size in (("years", 31_557_600.0), ("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:.2g} s"


def bytes_in_words(number: float) -> str:
    """Bytes in the largest unit of which there is one."""
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number:.0f} B"
