"""Tests with two hosts that have their own addresses and disks, joined by ``ray start``, and a shared object store."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import flags, run_inline
from tests.support.faults import s3
from tests.support.faults.hosts import Host, why_not, wired

REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

SLOW = {"unit_size": 2, "batch_size": 2, "model": "python:factories:slow"}
SALIENCY = [sys.executable, "-m", "jobs"]


@pytest.fixture
def hosts(host_and_late: tuple[Host, Callable[[], Host]]) -> tuple[Host, Host]:
    """Two hosts that are both in the cluster from the beginning."""
    first, join_second = host_and_late
    return first, join_second()


@pytest.fixture
def host_and_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Host, Callable[[], Host]]]:
    """A host that runs Ray with one processor, at RAY_ADDRESS, and a function that makes a second host join it."""
    for check in ("health_check_period", "health_check_timeout", "health_check_initial_delay"):
        monkeypatch.setenv(f"RAY_{check}_ms", "1000")  # Ray detects a lost host sooner
    for ping in ("grpc_client_keepalive_time", "grpc_client_keepalive_timeout"):
        monkeypatch.setenv(f"RAY_{ping}_ms", "5000")
    # Set on both hosts: otherwise the head alone would require a token that another run left in the home directory.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    disks = (Path("/tmp/ray"), tmp_path / "disk")
    with ExitStack() as stack:
        outside = stack.enter_context(wired())
        stack.enter_context(s3.server(monkeypatch, outside))
        first, second = (stack.enter_context(Host(f"saliency{i}", f"10.77.0.{i}", disks)) for i in (1, 2))
        first.join(cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", f"{first.address}:6379")

        def join_second() -> Host:
            second.join(f"{first.address}:6379", cpus=1)
            return second

        yield first, join_second


@pytest.mark.parametrize("loss", [Host.kill, Host.cut_off], ids=["killed", "cut off"])
def test_host_is_lost_in_the_middle(tree: Path, hosts: tuple[Host, Host], loss) -> None:
    first, second = hosts
    keys = {**SLOW, "images": s3.upload(tree, "images")}
    process = first.start(
        *SALIENCY, "explain",
        *flags(out=f"s3://{s3.BUCKET}/lost", device="cpu", workers=2, **{**keys, "runner": "ray"}),
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while sum(key.startswith("index/") for key in s3.objects("lost")) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    loss(second)
    told, _ = process.communicate(timeout=400)
    assert process.returncode == 3, told
    assert run_inline(out=f"s3://{s3.BUCKET}/whole", **keys)[0] == 3
    lost, whole = (
        {key: data for key, data in s3.objects(name).items() if key not in ("run.json", "SHA256SUMS")}
        for name in ("lost", "whole")
    )
    assert lost == whole


def test_host_that_joins_later_with_a_disk_of_its_own_ends_the_run(tree: Path, tmp_path: Path, host_and_late) -> None:
    """The host was not in the cluster when --out was checked; other hosts cannot read what it would write."""
    first, join_second = host_and_late
    out = tmp_path / "disk/store"
    process = first.start(
        *SALIENCY, "explain",
        *flags(images=tree, out=out, device="cpu", workers=2, methods="smoothgrad(n=20)", **{**SLOW, "runner": "ray"}),
    )  # fmt: skip
    while first.start("test", "-e", out / "run.json").wait():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    join_second()
    told, _ = process.communicate(timeout=280)
    assert process.returncode == 1, told
    assert f"on node 10.77.0.2: {out} holds no run.json" in told and "all nodes must reach the same --out" in told, told


def test_disk_of_one_host_is_refused(tree: Path, tmp_path: Path, hosts: tuple[Host, Host]) -> None:
    first, _ = hosts
    out = tmp_path / "disk/store"
    process = first.start(*SALIENCY, "explain", *flags(images=tree, out=out, device="cpu", **{**SLOW, "runner": "ray"}))
    told, _ = process.communicate(timeout=200)
    assert process.returncode == 2, told
    assert f"--out {out} is not there" in told and "10.77.0.2" in told and "10.77.0.1 " not in told, told
    look = first.start("ls", "-A", out.parent)
    assert look.communicate()[0] == "", "something was left there"
