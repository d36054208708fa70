"""Ray Data on a Ray of two CPUs: rows as on one machine; killed workers and drivers, batches that hang, a machine that goes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray_cases as cases
import service_cases
import torch
from last_bits import hang_on_memory

import bll_pyro as bll
from bll_pyro.inference.exact.statistics import SufficientStatistics
from bll_pyro.ray_environment import prepare

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own
ROOT = Path(__file__).resolve().parents[2]
WHOLE = "BLL_WHOLE" in os.environ
SMALL = bll.distributed.Workers(num_actors=1, rows_per_part=50, batch_size=25)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One Ray for all tests; its workers find this folder."""
    before = dict(os.environ)
    paths = [str(ROOT), str(ROOT / "tests"), before.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    prepare()
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        yield ray
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return cases.write_files(tmp_path_factory.mktemp("rows"), cases.columns())


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> bll.Features:
    """The store that one process makes, in parts of as many rows."""
    rows, folder = cases.columns(), tmp_path_factory.mktemp("truth") / "store"
    writer, x, y = bll.Features.writer(folder), *(torch.from_numpy(rows[n]) for n in ("inputs", "targets"))
    with torch.no_grad():
        features = torch.cat([cases.Network()(part) for part in x.split(25)])
    for start in range(0, cases.N, 50):
        part = slice(start, start + 50)
        writer.write(f"p{start}", features[part], y[part], row_ids=rows["row_id"][part])
    return bll.Features.commit(folder, num_rows=cases.N)


def extracted(files: Any, network: Any, store: Path, **options: Any) -> bll.distributed.RowsReport:
    return bll.distributed.extract(files, network, store, targets="targets", **{"workers": SMALL, **options})


def stamps(folder: Path) -> dict[str, int]:
    """The shards that are there, and when they were written."""
    done = {path.name.removesuffix(".part.json") for path in folder.glob("*.part.json")}
    return {name: (folder / f"{name}.safetensors").stat().st_mtime_ns for name in done}


def same_rows(store: bll.Features, truth: bll.Features) -> None:
    """The truth's rows, and bit for bit where the processor allows that."""
    torch.testing.assert_close(store[:], truth[:], rtol=1e-5, atol=1e-5)
    assert store.sha256 == truth.sha256 or hang_on_memory(
        cases.Network(), torch.from_numpy(cases.columns()["inputs"][:25])
    )


def test_rows_are_those_of_one_machine_and_nothing_is_left_in_ray(ray, files, truth, tmp_path):
    network = cases.Network()
    report = extracted(files, network, tmp_path / "store")
    assert (report.num_rows, report.num_done, report.num_skipped, report.left_out) == (
        cases.N,
        cases.N,
        0,
        (),
    )
    store = bll.Features.open(tmp_path / "store")
    store.verify()
    assert store.row_ids == range(1000, 1000 + cases.N)
    same_rows(store, truth)
    again = extracted(files, network, tmp_path / "store")
    assert (again.num_done, again.num_skipped) == (0, cases.N)
    with pytest.raises(ValueError, match="of another backbone, other columns or another type"):
        bll.distributed.extract(files, network, tmp_path / "store", workers=SMALL)
    # a data set in memory, text ids, float16, no targets
    rows = cases.columns()
    given = {"key": np.array([f"row {each}" for each in rows["row_id"]]), "x": rows["inputs"]}
    dataset = ray.data.from_arrow(cases.table(given))
    options = dataset.context.execution_options.preserve_order
    bll.distributed.extract(
        dataset, network, tmp_path / "texts", inputs="x", row_id="key", dtype=torch.float16, workers=SMALL
    )
    texts = bll.Features.open(tmp_path / "texts")
    assert (texts.num_rows, texts.dtype, texts.targets) == (cases.N, torch.float16, None)
    by_id = dict(zip(texts.row_ids, texts[:], strict=True))
    torch.testing.assert_close(
        torch.stack([by_id[key] for key in given["key"]]), truth[:].half(), rtol=1e-3, atol=1e-3
    )
    # nothing is left in the user's Ray
    assert dataset.context.execution_options.preserve_order == options
    until(lambda: ray.available_resources().get("CPU") == 2.0)


def test_rows_that_ray_reads_as_one_block_are_shared_by_all_actors(ray, files, tmp_path):
    assert ray.data.read_parquet(files).materialize().num_blocks() == 1
    workers = bll.distributed.Workers(num_actors=2, rows_per_part=50, batch_size=50)
    extracted(files, cases.SaysItsProcess(0.2), tmp_path / "store", workers=workers)
    _, counts = bll.Features.open(tmp_path / "store")[:][:, -1].unique(return_counts=True)
    assert len(counts) == 2
    assert counts.min() >= 3 * 50  # of 12 parts


@pytest.mark.parametrize("tries", [10 if WHOLE else 1])
def test_a_worker_that_is_killed_leads_to_the_same_store(ray, files, truth, tmp_path, tries):
    for number in range(tries):
        at = (37 + 61 * number) % cases.N
        report = extracted(files, cases.EndsOnce(tmp_path, (at,)), tmp_path / f"store-{number}")
        assert (tmp_path / f"killed-{at}").exists()  # it was killed
        assert (report.num_rows, report.left_out) == (cases.N, ())
        same_rows(bll.Features.open(tmp_path / f"store-{number}"), truth)
        (tmp_path / f"killed-{at}").unlink()


def test_a_driver_that_is_killed_goes_on(ray, files, truth, tmp_path):
    folder = tmp_path / "store"
    driver = subprocess.Popen(
        [sys.executable, "-c", cases.DRIVER, ray.get_runtime_context().gcs_address, str(folder), *files],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: len(stamps(folder)) >= 3 or driver.poll() is not None)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    until(lambda: ray.available_resources().get("CPU") == 2.0)  # its workers end with it
    before = stamps(folder)
    assert 3 <= len(before) < cases.N / 50
    with pytest.raises(ValueError, match="expected parts of the key"):  # another backbone is not mixed in
        extracted(files, cases.Network(), folder)
    workers = bll.distributed.Workers(num_actors=1, rows_per_part=50, batch_size=50)
    report = extracted(files, cases.Slow(0.3), folder, workers=workers)
    assert report.num_skipped == 50 * len(before) and report.num_rows == cases.N
    after = {name: (folder / f"{name}.safetensors").stat().st_mtime_ns for name in before}
    assert after == before  # no shard twice
    store = bll.Features.open(folder)
    assert store.row_ids == range(1000, 1000 + cases.N)  # none missing
    torch.testing.assert_close(store[:], truth[:], rtol=1e-5, atol=1e-5)


def test_batches_that_hang_or_kill_are_left_out_and_the_job_goes_on(ray, files, truth, tmp_path):
    workers = bll.distributed.Workers(num_actors=1, rows_per_part=50, batch_size=5, timeout=3.0, retries=0)
    report = extracted(files, cases.Hangs(211, 433), tmp_path / "store", workers=workers)
    expected = (*range(1210, 1215), *range(1430, 1435))
    assert report.left_out == expected and report.num_rows == cases.N - 10
    said = json.loads((tmp_path / "store" / "_left-out.json").read_text())
    assert tuple(said["row_ids"]) == expected
    store = bll.Features.open(tmp_path / "store")
    kept = [k for k in range(cases.N) if 1000 + k not in expected]
    assert store.row_ids.tolist() == [1000 + k for k in kept]
    torch.testing.assert_close(store[:], truth[torch.tensor(kept)], rtol=1e-5, atol=1e-5)


def test_a_full_disk_stops_and_what_is_there_stays_usable(ray, files, truth, tmp_path):
    mark = tmp_path / "full"
    mark.touch()
    transform = partial(cases.on_full_disk, str(mark))
    with pytest.raises(OSError, match=r"expected room for .* make room"):
        extracted(files, cases.Network(), tmp_path / "store", transform=transform)
    mark.unlink()
    assert not (tmp_path / "store" / "manifest.json").exists()
    report = extracted(files, cases.Network(), tmp_path / "store", transform=transform)
    assert report.num_rows == cases.N
    same_rows(bll.Features.open(tmp_path / "store"), truth)


def test_predictions_are_those_of_one_machine(ray, tmp_path):
    fit, x = service_cases.fit(), service_cases.rows(200)
    ids = np.arange(200)[::-1].copy()
    dataset = ray.data.from_arrow(cases.table({"row_id": ids, "inputs": x}))
    expected = fit.predict(x).to_pandas().assign(row_id=ids).sort_values("row_id", ignore_index=True)
    fit.save(tmp_path / "model.bll", graph=True)
    for name, model in (("fit", fit), ("graph", str(tmp_path / "model.bll"))):
        report = bll.distributed.predict(model, dataset, tmp_path / name, workers=SMALL)
        assert (report.num_rows, report.num_done) == (200, 200)
        found = pd.read_parquet(tmp_path / name).sort_values("row_id", ignore_index=True)
        assert list(found.columns) == ["row_id", *expected.columns.drop("row_id")]
        pd.testing.assert_frame_equal(found, expected[found.columns], check_dtype=False, rtol=1e-4, atol=1e-5)
    again = bll.distributed.predict(fit, dataset, tmp_path / "fit", workers=SMALL)
    assert (again.num_done, again.num_skipped) == (0, 200)
    with pytest.raises(
        ValueError, match=r"expected predictions of this call, got some of another \(interval"
    ):
        bll.distributed.predict(fit, dataset, tmp_path / "fit", interval=0.5, workers=SMALL)


def test_the_page_runs(ray, tmp_path, monkeypatch):
    """The code of the how-to, in one go."""
    page = (ROOT / "docs" / "how-to" / "cluster.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "cluster.md", "exec"), names)
    expected = names["fit"].predict(names["inputs"]).to_pandas()
    pd.testing.assert_frame_equal(
        names["found"].reset_index(drop=True), expected, check_dtype=False, rtol=1e-4, atol=1e-4
    )
    assert names["fit"].num_rows == len(names["found"]) == 400
    # the sums and the fit of them are those of one process
    with torch.no_grad():
        x = torch.cat([names["backbone"](part) for part in torch.from_numpy(names["inputs"]).split(100)])
    alone = SufficientStatistics.of(x, torch.from_numpy(names["prices"])[:, None])
    for name in ("feature_mean", "target_mean", "gram", "cross", "square"):
        torch.testing.assert_close(getattr(names["sums"], name), getattr(alone, name), rtol=1e-10, atol=1e-10)
    of_store = bll.fit(names["layer"], names["store"], inference=bll.Exact())
    assert names["fit"].log_evidence == pytest.approx(of_store.log_evidence, rel=1e-6)


def until(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
