"""Ray Data on eight logical machines of one Ray, of which one goes in mid-run: the same store, the same fit.

Each machine is a raylet with its agents, so that the whole takes minutes of a small machine: it runs with ``BLL_WHOLE=1``.
"""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_cases as cases
import torch

import bll_pyro as bll
from bll_pyro.ray_environment import prepare

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.skipif("BLL_WHOLE" not in os.environ, reason="eight raylets; set BLL_WHOLE=1"),
]
ROOT = Path(__file__).resolve().parents[2]
NODES = 8
MEMORY = {"object_store_memory": 80 * 2**20}
LAYER = bll.LastLayer(bll.likelihoods.Gaussian())


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs, and seven machines of one CPU each."""
    before = dict(os.environ)
    paths = [str(ROOT), str(ROOT / "tests"), before.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    prepare()
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **MEMORY})
    try:
        for _ in range(NODES - 1):
            made.add_node(wait=False, num_cpus=1, **MEMORY)
        made.wait_for_nodes()
        ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)


def test_a_machine_that_goes_in_mid_run(cluster, tmp_path):
    from ray._private.state import actors

    folder, removed = tmp_path / "store", []
    files = cases.write_files(tmp_path / "rows", cases.columns())

    def remove() -> None:
        """A machine on which an actor is at work."""
        end = time.monotonic() + 300
        while len(list(folder.glob("*.part.json"))) < 4 and time.monotonic() < end:
            time.sleep(0.05)
        at = {actor["Address"]["NodeID"] for actor in actors().values() if actor["State"] == "ALIVE"}
        node = next(node for node in cluster.worker_nodes if node.node_id in at)
        removed.append(node.node_id)
        cluster.remove_node(node)

    watcher = threading.Thread(target=remove)
    watcher.start()
    workers = bll.distributed.Workers(num_actors=3, rows_per_part=25, batch_size=25)
    report = bll.distributed.extract(files, cases.Slow(0.3), folder, targets="targets", workers=workers)
    watcher.join()
    import ray

    assert len(removed) == 1 and sum(node["Alive"] for node in ray.nodes()) == NODES - 1
    assert (report.num_rows, report.num_done, report.left_out) == (cases.N, cases.N, ())
    rows, writer = cases.columns(), bll.Features.writer(tmp_path / "alone")
    x, y = (torch.from_numpy(rows[name]) for name in ("inputs", "targets"))
    with torch.no_grad():
        features = torch.cat([cases.Network()(part) for part in x.split(25)])
    writer.write("one", features, y, row_ids=rows["row_id"])
    alone, store = bll.Features.commit(tmp_path / "alone"), bll.Features.open(folder)
    assert store.sha256 == alone.sha256
    fits = [bll.fit(LAYER, each, inference=bll.Exact()) for each in (store, alone)]
    assert fits[0].fingerprint == fits[1].fingerprint
