"""A store of features larger than the memory that a process may take: fits, predictions, and the rate of reading its files alone.

The store is made in a temporary folder and deleted, or in the folder of ``BLL_STORES``, where the next run finds it. Each case runs
in a process of its own, whose data segment (``RLIMIT_DATA``: heap, private writable mappings) may not exceed 2 GiB; the store is
read ahead, so that nothing of it is mapped. The files are dropped from the system's cache before each case. A second store of 10^7
narrow rows shows time against N.
"""

import json
import os
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import bll_pyro as bll
from benchmarks.forked import printed
from benchmarks.harness import growth_exponent
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target

GIB = 2**30
STORE_BYTES, NUM_FEATURES, LIMIT = 5 * GIB, 64, 2 * GIB
NUM_CLASSES = 4
LARGEST, NARROW = 10_000_000, 16
SIZES = [10_000, 100_000, 1_000_000, LARGEST]
SHARD_ROWS_BYTES = 2**28
CASES = (
    "reading",
    "Exact",
    "SVI, Diagonal, one epoch",
    "Laplace, Kronecker",
    "predictions of a million rows",
)
MARGIN = 0.1


def make(path: Path, num_bytes: int, num_features: int) -> bll.Features:
    """A store of Normal features with targets that are linear in them, written shard by shard."""
    if path.exists():
        return bll.Features.open(path)
    rows = max(num_bytes // (4 * num_features), 1)
    each = min(SHARD_ROWS_BYTES // (4 * num_features), rows)
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(num_features, generator=random)
    writer = bll.Features.writer(path)
    for k, start in enumerate(range(0, rows, each)):
        number = min(each, rows - start)
        x = torch.randn(number, num_features, generator=random)
        y = x @ weight + 0.5 * torch.randn(number, generator=random)
        writer.write(f"part-{k:05d}", x, y, row_ids=range(start, start + number))
    return bll.Features.commit(path, num_rows=rows)


def drop(path: Path) -> None:
    """Take the files out of the system's cache."""
    for file in path.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_alone(path: Path) -> float:
    """Seconds to read all shards from the first byte to the last, in pieces of 32 MiB into one buffer."""
    buffer = bytearray(2**25)
    began = time.perf_counter()
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - began


def work(case: str, path: Path) -> float:
    """Seconds of one case, in this process."""
    if case == "reading":
        return read_alone(path)
    gaussian = bll.LastLayer(bll.likelihoods.Gaussian())
    store = bll.Features.open(path, read="ahead")
    if case.startswith("predictions"):
        some = store.between(0, min(1_000_000, len(store)))
        fit = bll.fit(gaussian, store.between(0, min(100_000, len(store))), inference=bll.Exact())
        with TemporaryDirectory(dir=path.parent) as folder:
            began = time.perf_counter()
            bll.predict_store(fit, some, Path(folder) / "p")
            return time.perf_counter() - began
    warm = store.between(0, min(2_000, len(store)))
    inference: bll.Exact | bll.SVI | bll.Laplace = bll.Exact()
    layer = gaussian
    if case.startswith("SVI"):
        inference = bll.SVI(num_epochs=1, batch_size=4096)
    if case.startswith("Laplace"):
        classes = bll.likelihoods.Categorical(NUM_CLASSES)
        layer, inference = bll.LastLayer(classes, bll.priors.Normal(scale=1.0)), bll.Laplace()
        store, warm = (labelled(each) for each in (store, warm))
    bll.fit(layer, warm, inference=inference)  # imports, and threads
    began = time.perf_counter()
    bll.fit(layer, store, inference=inference)
    return time.perf_counter() - began


def labelled(store: bll.Features) -> bll.Features:
    """The same features with classes: quarters of the targets."""
    assert store.targets is not None
    scale = float(store.targets[:10_000].std())
    return store.with_targets(torch.bucketize(store.targets, torch.tensor([-0.7, 0.0, 0.7]) * scale))


def child(case: str, path: str, limit: int) -> None:
    """Run a case within the limit, and print what it took."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    seconds = work(case, Path(path))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak}))


def measured(case: str, path: Path, limit: int, is_small: bool) -> dict[str, Any]:
    """A case in a process of its own, with cold files."""
    drop(path)
    if is_small:
        (said,) = printed("benchmarks.store_size:child", [(case, str(path), limit)], [{}])
        return {"outcome": "done", **json.loads(said.splitlines()[-1])}
    program = "import sys; from benchmarks.store_size import child; child(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, case, str(path), str(limit)],
        capture_output=True,
        text=True,
        check=False,
        # pyarrow's own pool reserves a gibibyte of which it uses little, and the limit counts what is reserved
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )
    if done.returncode:
        return {"outcome": done.stderr.strip().splitlines()[-1][:120] if done.stderr else "killed"}
    return {"outcome": "done", **json.loads(done.stdout.splitlines()[-1])}


def run(options: Options) -> Report:
    """Make the stores, run all cases, and draw time against N."""
    report = Report("store_size", "A store of 5 GiB within 2 GiB of memory, and time against N")
    num_bytes = 4 * NUM_FEATURES * 3000 if options.small else STORE_BYTES
    sizes = [1000, 2000] if options.small else SIZES
    kept = None if options.small else os.environ.get("BLL_STORES")
    with TemporaryDirectory() if kept is None else nullcontext(kept) as folder:
        path, narrow = Path(folder) / "store", Path(folder) / "narrow"
        store = make(path, num_bytes, NUM_FEATURES)
        make(narrow, 4 * NARROW * sizes[-1], NARROW)
        report.tables.append(_larger(report, store, path, options))
        report.tables.append(_against_rows(report, narrow, sizes, options))
    report.notes += [
        f"RLIMIT_DATA counts heap and private writable mappings, here {LIMIT / GIB:.0f} GiB; peak is VmHWM, resident pages with "
        "those of the files of libraries. pyarrow takes its memory from the system (ARROW_DEFAULT_MEMORY_POOL), since its own pool "
        "reserves a GiB of addresses at once.",
        "Reading: all shards from first to last byte into one buffer of 32 MiB, with cold files (POSIX_FADV_DONTNEED), median of "
        "rounds in which both take turns.",
        f"Targets of Laplace are {NUM_CLASSES} classes and its prior scale is given; SVI takes batches of 4,096.",
    ]
    return report


def _larger(report: Report, store: bll.Features, path: Path, options: Options) -> Table:
    num_bytes = sum(file.stat().st_size for file in path.iterdir())
    columns = {
        "case": "case",
        "seconds": "s",
        "rate": "rows/s",
        "share": "of reading",
        "peak_gib": "peak, GiB",
    }
    table = Table(
        f"{num_bytes / GIB:.2f} GiB, {store.num_rows:,} rows, D = {store.num_features}, float32",
        {**columns, "outcome": "outcome"},
    )
    rounds = 1 if options.small else min(options.num_runs, 3)
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for number in range(rounds):
        for case in CASES if number == 0 else CASES[:2]:
            found[case].append(measured(case, path, 0 if case == "reading" else LIMIT, options.small))
    alone = sorted(each["seconds"] for each in found["reading"])[rounds // 2]
    for case, outcomes in found.items():
        seconds = sorted(each.get("seconds", float("inf")) for each in outcomes)[len(outcomes) // 2]
        rows = min(1_000_000, store.num_rows) if case.startswith("pred") else store.num_rows
        share = alone / seconds if case == "Exact" else None
        row = {"case": case, "seconds": seconds, "rate": rows / seconds, "share": share}
        table.rows.append(row | {name: outcomes[0].get(name) for name in ("peak_gib", "outcome")})
        if case == "Exact":
            report.targets.append(Target("Exact: rows a second over reading alone", share, 0.8, ">="))
    done = [row["outcome"] == "done" for row in table.rows]
    report.targets.append(Target("cases done within 2 GiB", float(sum(done)), float(len(done)), ">="))
    return table


def _against_rows(report: Report, path: Path, sizes: list[int], options: Options) -> Table:
    layer = bll.LastLayer(bll.likelihoods.Gaussian())
    inferences = {"Exact": bll.Exact(), "SVI, one epoch": bll.SVI(num_epochs=1, batch_size=4096)}
    store = bll.Features.open(path, read="ahead")
    table = Table(
        f"Seconds against N, D = {store.num_features}",
        {"work": "work", **{str(size): f"N = {size:,}" for size in sizes}, "exponent": "exponent"},
    )
    curves = {}
    for name, inference in inferences.items():
        seconds = []
        for size in sizes:
            part, best = store.between(0, size), float("inf")
            for _ in range(1 if options.small or size == sizes[-1] else 3):
                began = time.perf_counter()
                bll.fit(layer, part, inference=inference)
                best = min(best, time.perf_counter() - began)
            seconds.append(best)
        curves[name] = seconds
        exponent = growth_exponent(list(map(float, sizes[-2:])), seconds[-2:])
        table.rows.append(
            {"work": name, **dict(zip(map(str, sizes), seconds, strict=True)), "exponent": exponent}
        )
        report.targets.append(Target(f"{name}: exponent of N from 10^6 to 10^7", exponent, 1 + MARGIN))
    options.results.mkdir(parents=True, exist_ok=True)
    _draw(curves, sizes, options.results / "store_size.png")
    report.pictures.append("store_size.png")
    return table


def _draw(curves: dict[str, list[float]], sizes: list[int], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    for name, seconds in curves.items():
        axes.loglog(sizes, seconds, "o-", label=name)
    last = max(seconds[-1] for seconds in curves.values())
    axes.loglog(sizes, [last * size / sizes[-1] for size in sizes], "k:", label="proportional to N")
    axes.set(xlabel="rows N", ylabel="seconds")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
