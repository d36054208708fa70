"""Fit what is not stored yet, and store its scores."""

import time
import warnings
from collections.abc import Iterable, Iterator

from benchmarks.defaults.data import NUM_SEEN_SEEDS
from benchmarks.defaults.methods import Method
from benchmarks.defaults.splits import DataSet, Split, shifted
from benchmarks.defaults.store import Store


def chosen(sets: Iterable[DataSet], num_seeds: int) -> Iterator[tuple[DataSet, int, int]]:
    """Data set, size and seed of every split; up to ``NUM_SEEN_SEEDS`` seeds none of the sets that are kept aside."""
    for data in sets:
        if num_seeds > NUM_SEEN_SEEDS or not data.is_kept_aside:
            for size in data.sizes:
                for seed in range(min(num_seeds, data.num_seeds)):
                    yield data, size, seed


def measure(store: Store, data: DataSet, made: Split, size: int, seed: int, method: Method) -> None:
    """Fit one method on one split, and score it on the test rows as they are and under every shift."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations that ran out, and the competitors' own deprecations
        if method.before is not None:
            method.before(data, made)
        wall, cpu = time.perf_counter(), time.process_time()
        predict = method.fit(data, made, seed)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        for shift in ("none", *data.shifts):
            scores = predict(shifted(made, shift, seed)).scores(made.test_targets)
            store.add(
                {
                    "set": data.name,
                    "size": size,
                    "seed": seed,
                    "method": method.name,
                    "shift": shift,
                    "split": made.hash,
                    "made_with": method.made_with,
                    **scores,
                    "wall": wall,
                    "cpu": cpu,
                }
            )


def fill(store: Store, data: DataSet, methods: list[Method], num_seeds: int, *, again: bool) -> None:
    """Measure what is missing; ``again``: also what another version of the method made."""
    for _, size, seed in chosen([data], num_seeds):
        made = data.make(size, seed)
        for method in methods:
            if method.fits(data, made):
                version = method.made_with if again else None
                keys = [(data.name, size, seed, method.name, shift) for shift in ("none", *data.shifts)]
                if not all(store.has(key, made.hash, version) for key in keys):
                    measure(store, data, made, size, seed, method)
