"""Tests with several Ray nodes on this machine: nodes are added and lost, and the store is the same."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import Cluster

from jobs.runners import ray_data
from jobs.runners.stage import Stage
from tests.conftest import content, flags
from tests.support.paths import PYTHONPATH
from tests.support.processes import kill_all, start, wait_for_commits

pytestmark = pytest.mark.slow

SLOW = {"unit_size": 2, "batch_size": 2, "model": "python:factories:slow"}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of a head without processors and two nodes with one each, at RAY_ADDRESS."""
    monkeypatch.setenv(
        "PYTHONPATH", f"{PYTHONPATH}{os.pathsep}{Path(__file__).parent}"
    )  # the nodes import the tests' models from here
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        made.add_node(num_cpus=1)
        made.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", made.address)
        yield made
    finally:
        made.shutdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # about Ray's own defaults
def test_idle_processes_are_kept(cluster: Cluster) -> None:
    """By default, Ray ends idle processes beyond one a core after a second; each start costs seconds of processor
    time."""
    stages = [Stage("told", told_process, cpus=0.5)]
    ray_data.start()
    try:
        before = set(ray_data.run_stages(range(4), stages))
        time.sleep(10)
        after = set(ray_data.run_stages(range(4), stages))
        gc.collect()  # frees records that Ray Data still holds
        time.sleep(5)
        told = get_cluster_status(cluster.address)
    finally:
        ray_data.stop()
    assert len(before) == 4
    assert after == before
    busy = {one.node_id for one in told.active_nodes}
    assert busy <= {cluster.head_node.node_id}, "an autoscaler would never give them back"


def told_process() -> Callable[[int], int]:
    return slow_process


def slow_process(item: int) -> int:
    del item
    time.sleep(5)  # so that each process gets one item
    return os.getpid()


def test_embedded_ray_listens_on_loopback_alone(tree: Path, tmp_path: Path) -> None:
    process = start("explain", *flags(images=tree, out=tmp_path / "store", workers=1, **{**SLOW, "runner": "ray"}))
    try:
        wait_for_commits(process, tmp_path / "store", 1)
        driver = psutil.Process(process.pid)
        listening = {
            (one.name(), connection.laddr.ip)
            for one in [driver, *driver.children(recursive=True)]
            for connection in one.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN or not connection.raddr
        }
    finally:
        kill_all(process)
    assert {name for name, _ in listening} >= {"gcs_server", "raylet"}, "it was looked at too late"
    outside = {one for one in listening if one[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")}
    assert not outside


@pytest.mark.parametrize(
    ("losses", "replaced"),
    [((3,), True), ((3,), False), ((2, 5, 8, 11, 14), True)],
    ids=["replaced", "not replaced", "again and again"],
)
def test_nodes_are_lost_in_the_middle(
    tree: Path, tmp_path: Path, cluster: Cluster, undisturbed, losses: tuple[int, ...], replaced: bool
) -> None:
    """A node is lost after each number of commits in ``losses``. If it is not replaced, its replica waits until that
    of the other node has ended. Repeated losses are those of a spot market."""
    out = tmp_path / "store"
    process = start("explain", *flags(images=tree, out=out, device="cpu", workers=2, **{**SLOW, "runner": "ray"}))
    try:
        for commits in losses:
            wait_for_commits(process, out, commits)
            assert process.poll() is None, "it ended before"
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            if replaced:
                cluster.add_node(num_cpus=1)
        told, _ = process.communicate(timeout=280)
    finally:
        if process.poll() is None:
            kill_all(process)
    assert process.returncode == 3, told
    assert content(out) == undisturbed(**SLOW)
