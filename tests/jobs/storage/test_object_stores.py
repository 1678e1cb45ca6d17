"""Tests whole jobs over the S3 protocol through a failing proxy: the store must equal a local run's store."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.explain.retry_command import retry
from jobs.inputs.rejected import RejectedImage
from jobs.inspect.status import print_status
from jobs.storage import object_store
from jobs.storage.object_store import list_keys, open_output, read_object
from jobs.storage.retrying import VARIABLE
from jobs.store.layout import RUN_JSON, SHA256SUMS
from jobs.store.store_reader import open_store
from jobs.util.job_errors import StoreUnreachable
from jobs.verify.verify_command import verify
from tests.conftest import SECRET, content, flags, run_inline, said
from tests.support.faults import s3
from tests.support.faults.fault_proxy import FAULTS, FaultProxy, seeded
from tests.support.input_files import write_tar
from tests.support.paths import MODELS

SECRETS = (SECRET, "Signature=", "X-Amz-Signature")


@pytest.fixture(scope="module")
def inputs(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of ``tree`` as a folder, tars and a Parquet file, in folders of these names."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "folder").symlink_to(tree, target_is_directory=True)
    members = [(str(path.relative_to(tree)), path.read_bytes()) for path in sorted(tree.rglob("*.*"))]
    for number in range(3):
        # Empty files stay in the tars, too, so that all kinds of inputs have the same rows.
        write_tar(root / "tars" / f"{number}.tar", members[number::3])
    (root / "parquet").mkdir()
    # Without bytes the path would be read, which differs on S3.
    images = [{"bytes": data, "path": name if data else None} for name, data in members]
    pq.write_table(pa.table({"image": images}), root / "parquet" / "all.parquet", row_group_size=5)
    return root


@pytest.fixture(scope="module")
def local(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """Runs the job locally for a kind of input. Returns the store's objects with the addresses that they have on S3."""
    stores: dict[str, dict[str, bytes]] = {}

    def run(kind: str) -> dict[str, bytes]:
        if kind not in stores:
            out = tmp_path_factory.mktemp(kind) / "store"
            assert run_inline(images=str(inputs / kind), out=str(out), **job(kind))[0] == 3
            stores[kind] = content(out)
        return stores[kind]

    return run


def job(kind: str) -> dict[str, object]:
    return {"unit_size": 8, "batch_size": 4, "targets": ("predicted", "label") if kind == "folder" else ("predicted",)}


def comparable(objects: dict[str, bytes]) -> dict[str, object]:
    """Maps and metadata unchanged; tables without the images' locations, which must differ, and hashes of them."""
    return {key: _table(data) if key.endswith(".parquet") else data for key, data in objects.items()}


def _table(data: bytes) -> list[dict[str, object]]:
    lines = pq.read_table(pa.BufferReader(data)).to_pylist()
    for line in lines:
        line.pop("etag", None)
        uri = line.pop("uri")
        line["error"] = line["error"] and line["error"].replace(uri, "URI")
    return lines


def remote(out: str) -> dict[str, bytes]:
    """Every object of a remote store except for those with durations."""
    store = open_output(out)
    return {key: read_object(store, key) for key in sorted(list_keys(store)) if key not in (RUN_JSON, SHA256SUMS)}


@pytest.mark.parametrize("kind", ["folder", "tars", "parquet"])
def test_job_on_s3_equals_the_local_one(kind: str, inputs: Path, local, proxy: FaultProxy) -> None:
    images, out = s3.upload(inputs / kind, kind), f"s3://{s3.BUCKET}/some/store"
    code, output = run_inline(images=images, out=out, **job(kind))
    assert code == 3
    assert comparable(remote(out)) == comparable(local(kind))
    assert said(verify, out)[0] == 0 and said(print_status, out)[0] == 3
    again, told_again = run_inline(images=images, out=out, **job(kind))
    assert again == 3
    texts = [output, told_again, read_object(open_output(out), RUN_JSON).decode()]
    assert not [secret for secret in SECRETS for text in texts if secret in text]


def test_commands_on_a_remote_store(inputs: Path, tree: Path, proxy: FaultProxy) -> None:
    images, out = s3.upload(inputs / "folder", "folder"), f"s3://{s3.BUCKET}/store"
    run_inline(images=images, out=out, **job("folder"))
    store = open_store(out)
    assert store.maps("predicted/gradient", [0, 20]).shape == (2, 16, 16)
    assert not isinstance(store.original(0), RejectedImage)
    broken = [row for row, state in enumerate(store.lines(columns=["status"])["status"].to_pylist()) if state != "ok"]
    assert len(broken) == 3
    for name in ("ant/broken.jpg", "cat/empty.png", "dog/torn.png"):
        s3.put(f"folder/{name}", (tree / "ant" / "000.png").read_bytes())
    assert said(retry, out, workers="auto", runner="inline")[0] == 0
    assert said(verify, out)[0] == 0 and said(print_status, out)[0] == 0


@pytest.mark.parametrize("fault", ["all", *(pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS)])
def test_requests_that_fail_change_nothing(fault: str, inputs: Path, local, proxy: FaultProxy) -> None:
    """One request in five fails."""
    kind = {"cut": "tars", "trickle": "parquet"}.get(fault, "folder")
    images, out = s3.upload(inputs / kind, kind), f"s3://{s3.BUCKET}/store"
    proxy.script = seeded(0.2, FAULTS if fault == "all" else [fault])
    assert run_inline(images=images, out=out, **job(kind))[0] == 3
    assert proxy.failed.total() > 10
    assert said(verify, out)[0] == 0
    proxy.script = None
    assert comparable(remote(out)) == comparable(local(kind))


@pytest.mark.parametrize(
    "method", [*(pytest.param(method, marks=pytest.mark.slow) for method in ("GET", "HEAD")), "PUT"]
)
def test_a_short_outage_changes_nothing(method: str, inputs: Path, local, proxy: FaultProxy) -> None:
    """The store fails at the tenth request of a kind, for three seconds."""
    images, out = s3.upload(inputs / "folder", "folder"), f"s3://{s3.BUCKET}/store"
    timer = cut_off(proxy, method, after=10, back=3.0)
    assert run_inline(images=images, out=out, **job("folder"))[0] == 3
    assert timer.is_set()
    assert comparable(remote(out)) == comparable(local("folder"))


@pytest.mark.slow
def test_an_outage_of_a_minute_changes_nothing(inputs: Path, local, proxy: FaultProxy, saliency) -> None:
    """The run uses Ray and the default pauses between retries."""
    images, out = s3.upload(inputs / "folder", "folder"), f"s3://{s3.BUCKET}/store"
    gone = cut_off(proxy, "PUT", after=10, back=60.0)
    result = saliency(
        "explain",
        *flags(images=images, out=out, **job("folder") | {"runner": "ray"}),
        timeout=400,
        SALIENCY_STORE_SECONDS="180",
    )
    assert result.returncode == 3 and gone.is_set(), result.stdout + result.stderr
    assert comparable(remote(out)) == comparable(local("folder"))


def cut_off(proxy: FaultProxy, method: str, *, after: int, back: float | None) -> threading.Event:
    """Makes the store fail from a request on, for ``back`` seconds or permanently. Returns an event for it."""
    gone, counts = threading.Event(), Counter[str]()

    def script(requested: str, path: str, times: int) -> str | None:
        counts[requested] += 1
        if counts[method] < after or gone.is_set():
            return None
        gone.set()
        proxy.down()
        if back is not None:
            threading.Timer(back, proxy.up).start()
        return "reset"

    proxy.script = script
    return gone


@pytest.mark.parametrize(
    "method", [*(pytest.param(method, marks=pytest.mark.slow) for method in ("GET", "HEAD")), "PUT"]
)
def test_a_lasting_outage_ends_the_run_and_the_same_command_resumes_it(
    method: str, inputs: Path, local, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = s3.upload(inputs / "folder", "folder"), f"s3://{s3.BUCKET}/store"
    monkeypatch.setenv(VARIABLE, "2")
    object_store._bucket.cache_clear()
    cut_off(proxy, method, after=10, back=None)
    with pytest.raises(StoreUnreachable, match=r"^s3://pictures/.*the store failed, and went on failing \(") as stopped:
        run_inline(images=images, out=out, **job("folder"))
    assert "http" not in str(stopped.value) and not [secret for secret in SECRETS if secret in str(stopped.value)]
    proxy.script = None
    proxy.up()
    assert run_inline(images=images, out=out, **job("folder"))[0] == 3
    assert comparable(remote(out)) == comparable(local("folder"))


@pytest.mark.slow
def test_the_output_of_the_program_during_an_outage(inputs: Path, proxy: FaultProxy, saliency) -> None:
    images, out = s3.upload(inputs / "folder", "folder"), f"s3://{s3.BUCKET}/store"
    command = ["explain", *flags(images=images, out=out, **job("folder"))]
    proxy.script = lambda method, path, times: "503" if method == "PUT" and "index/" in path else None
    result = saliency(*command, SALIENCY_STORE_SECONDS="2")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "stopped: s3://pictures/store/index/unit-00000000.parquet: the store failed" in result.stderr, result.stderr
    assert "(it answered 503 SlowDown)" in result.stderr and "run the same command again" in result.stderr
    proxy.script = None
    again = saliency(*command)
    assert again.returncode == 3, again.stdout + again.stderr
    everything = "".join((result.stdout, result.stderr, again.stdout, again.stderr))
    everything += read_object(open_output(out), RUN_JSON).decode()
    assert not [secret for secret in SECRETS if secret in everything] and "Traceback" not in everything


@pytest.mark.slow
def test_ray_on_a_failing_store(inputs: Path, local, proxy: FaultProxy, saliency) -> None:
    """Some requests fail, then all, then some. Neither the output nor Ray's files contain credentials."""
    images, out = s3.upload(inputs / "tars", "tars"), f"s3://{s3.BUCKET}/store"
    command = ["explain", *flags(images=images, out=out, **job("tars") | {"runner": "ray"})]
    some = seeded(0.2)
    proxy.script = lambda *request: "503" if "index/unit-00000003" in request[1] else some(*request)
    with TemporaryDirectory() as ray:  # short enough for the names of sockets
        result = saliency(*command, SALIENCY_STORE_SECONDS="5", RAY_TMPDIR=ray)
        written = [path.read_bytes() for path in Path(ray).rglob("*") if path.is_file()]
    assert result.returncode == 1 and "stopped: s3://pictures/store/index/unit-00000003" in result.stderr, result.stderr
    proxy.script = some
    again = saliency(*command, SALIENCY_STORE_SECONDS="60")
    assert again.returncode == 3, again.stderr
    proxy.script = None
    assert len(written) > 20, "Ray's logs are elsewhere"
    written += [read_object(open_output(out), RUN_JSON), *(text.encode() for text in (result.stdout, result.stderr))]
    written += [text.encode() for text in (again.stdout, again.stderr)]
    assert not [secret for secret in SECRETS for data in written if secret.encode() in data]
    assert said(verify, out)[0] == 0
    assert comparable(remote(out)) == comparable(local("tars"))


@pytest.mark.slow
def test_two_simultaneous_runs_of_the_same_command(inputs: Path, local, proxy: FaultProxy) -> None:
    images, out = s3.upload(inputs / "folder", "folder"), f"s3://{s3.BUCKET}/store"
    command = [sys.executable, "-m", "jobs", "explain", *flags(images=images, out=out, **job("folder"))]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=MODELS)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [3, 3], outputs
    assert said(verify, out)[0] == 0
    assert comparable(remote(out)) == comparable(local("folder"))
