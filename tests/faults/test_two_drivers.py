"""Tests with two drivers on one store, whose steps are interleaved."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.storage.object_store import put
from jobs.store import finalize as finalizing
from jobs.store.finalize import finalize
from jobs.store.layout import RUN_JSON, SHA256SUMS
from jobs.store.run_record import Run
from jobs.store.store_access import claim, open_run
from jobs.verify.verify_command import verify
from saliency_core.errors import InvalidRequestError
from tests.conftest import said
from tests.support.faults import s3
from tests.support.faults.fault_proxy import FaultProxy


@pytest.mark.parametrize("fault", [None, "lost", "reset"])
def test_two_runs_on_one_new_store(fault: str | None, finished: Path, proxy: FaultProxy) -> None:
    """The claim is a conditional put. If its response is lost, the retry must recognise the run's own claim."""
    run = Run.model_validate_json((finished / RUN_JSON).read_bytes())
    ours = run.model_copy(update={"config": run.config.model_copy(update={"out": f"s3://{s3.BUCKET}/new"})})
    theirs = ours.model_copy(update={"fingerprint": {**ours.fingerprint, "seed": 1}})
    proxy.script = lambda method, path, times: fault if method == "PUT" and not times else None
    claim(ours)
    claim(ours)
    with pytest.raises(InvalidRequestError, match="seed"):
        claim(theirs)


@pytest.mark.slow
def test_two_drivers_finalize_at_once(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each driver puts its own run.json. In any order of the puts, SHA256SUMS matches the last one."""
    for order in range(20):
        out = tmp_path / str(order)
        shutil.copytree(finished, out)
        store, run = open_run(str(out))
        barrier = threading.Barrier(2)

        def meeting(store, key, data, *, barrier=barrier, order=order):
            if key in (RUN_JSON, SHA256SUMS):
                with suppress(threading.BrokenBarrierError):  # the other driver has ended, or does not reach this put
                    barrier.wait(0.05)
            put(store, key, data)

        monkeypatch.setattr(finalizing, "put", meeting)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda n: finalize(store, run, session={"rows": n}), (1, 2)))  # noqa: B023
        assert said(verify, str(out))[0] == 0, order


def test_finalizer_overtaken_between_run_json_and_sums(finished: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "store"
    shutil.copytree(finished, out)
    store, run = open_run(str(out))
    overtaken = []

    def overtaking(store, key, data):
        if key == SHA256SUMS and not overtaken:
            overtaken.append(True)
            finalize(store, run, session={"rows": 2})  # the other driver finalizes completely
        put(store, key, data)

    monkeypatch.setattr(finalizing, "put", overtaking)
    finalize(store, run, session={"rows": 1})
    assert said(verify, str(out))[0] == 0
