"""A cluster of several Ray nodes that loses one of them."""

from __future__ import annotations

import threading
import time

import pytest

from DeepCache.batch import RayEngine

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def slowly(row):
    time.sleep(0.2)


@pytest.fixture
def cluster(monkeypatch):
    # Otherwise Ray requires a token, which only some of its processes have.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    memory = 80 * 2**20
    head = {"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False}
    nodes = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    yield nodes, [nodes.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
    nodes.shutdown()


def test_every_row_is_generated_once_if_a_machine_is_lost(cluster, job):
    nodes, (lost, _) = cluster
    names = [f"row {number}" for number in range(40)]
    job.ask(*({"prompt": name} for name in names))
    losing = threading.Thread(target=nodes.remove_node, args=(lost,), kwargs={"allow_graceful": False})

    def lose(now):
        if now.drawn >= 10 and not losing.ident:
            losing.start()

    summary = job.run(engine=RayEngine(2, address=nodes.address), before=slowly, on_progress=lose)
    losing.join()
    assert (summary.done, summary.left) == (40, 0)
    assert {*job.generated} == {*names}
    job.check(done=40)
