"""Tests single requests to an object store through a failing proxy: the row fails, or the run stops."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from jobs.inputs.fetch import REMOTE_THREADS, fetch
from jobs.inputs.rejected import RejectedImage
from jobs.inputs.sources import list_entries, open_sources
from jobs.storage import object_store
from jobs.storage.file_walk import walk
from jobs.storage.files import open_file, read, stat
from jobs.storage.object_store import delete, list_keys, open_output, put, read_object, store_address
from jobs.storage.retrying import VARIABLE
from jobs.storage.storage_errors import CREDENTIAL_ERRORS
from jobs.store.index import withdraw
from jobs.store.row_identity import keep_identities
from jobs.util.job_errors import StoreUnreachable, StoreUnusable
from saliency_core.errors import InvalidRequestError
from tests.conftest import run_inline
from tests.support.faults import s3
from tests.support.faults.fault_proxy import FAULTS, FaultProxy


@pytest.mark.parametrize("fault", ["403 AccessDenied", "403 InvalidObjectState", "400 KeyTooLongError"])
def test_an_object_without_permission_loses_only_its_row(fault: str, tree: Path, proxy: FaultProxy) -> None:
    images = s3.upload(tree, "folder")
    entries = list(list_entries(open_sources([images])))[:4]
    proxy.script = lambda method, path, times: fault if entries[2].sample_id in path else None
    results = fetch(entries, max_bytes=1 << 20)
    assert [isinstance(result, RejectedImage) for result in results] == [False, False, True, False]
    assert fault.split()[1] in results[2].reason  # type: ignore[union-attr]


def test_a_process_requests_few_objects_at_once(tree: Path, proxy: FaultProxy) -> None:
    images = s3.upload(tree, "tree")
    entries = list(list_entries(open_sources([images])))
    proxy.script = lambda *request: "late"
    assert len([data for data in fetch(entries, max_bytes=2**20) if isinstance(data, bytes)]) >= 40
    assert REMOTE_THREADS // 2 < proxy.most <= REMOTE_THREADS


def test_commits_are_listed_for_a_run_and_not_for_a_unit(tree: Path, proxy: FaultProxy) -> None:
    listed: list[str] = []

    def script(method: str, path: str, times: int) -> None:
        del method, times
        query = parse_qs(urlsplit(path).query)
        if "list-type" in query:
            listed.extend(query.get("prefix", [""]))

    proxy.script = script
    requests = {}
    for size in (2, 16):  # 22 and 3 units
        for _ in range(2):  # the second run has nothing to do
            assert run_inline(images=str(tree), out=f"s3://{s3.BUCKET}/out-{size}", unit_size=size)[0] == 3
        requests[size] = Counter(prefix.removeprefix(f"out-{size}") for prefix in listed)
        listed.clear()
    assert requests[2] == requests[16]
    assert requests[2]["/index/"] == 3  # one per finalize, and one for the units already committed


def test_identities_are_requested_only_if_there_are_any(tree: Path, proxy: FaultProxy) -> None:
    """A run without identities needs one listing; after a killed retry, each unit needs one request."""
    requests: list[str] = []

    def script(method: str, path: str, times: int) -> None:
        del times
        if "identity" in path:
            requests.append(f"{method} {'list' if 'list-type' in path else 'unit'}")

    proxy.script = script
    out = f"s3://{s3.BUCKET}/identities"
    assert run_inline(images=str(tree / "ant"), out=out, unit_size=2, limit=2)[0] in (0, 3)
    assert "GET unit" not in requests and "GET list" in requests
    store = open_output(out)
    keep_identities(store, 0)
    withdraw(store, [0])
    requests.clear()
    assert run_inline(images=str(tree / "ant"), out=out, unit_size=2)[0] == 3
    assert requests.count("GET unit") >= 5  # units, of which the last one is of one row


@pytest.mark.parametrize("code", [*CREDENTIAL_ERRORS, "503"])
def test_refused_credentials_and_outages_quarantine_no_row(
    code: str, tree: Path, proxy: FaultProxy, monkeypatch
) -> None:
    images = s3.upload(tree, "folder")
    entries = list(list_entries(open_sources([images])))[:4]
    monkeypatch.setenv(VARIABLE, "1")
    object_store._bucket.cache_clear()
    proxy.script = lambda *request: code if code == "503" else f"{400 if 'Token' in code else 403} {code}"
    with pytest.raises(StoreUnreachable, match=code):
        fetch(entries, max_bytes=1 << 20)


def test_every_request_is_repeated_after_a_failure(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are repeated after every kind of failure. obstore alone does not repeat all of them."""
    s3.put("in/a.bin", bytes(range(256)) * 5000)
    store, uri = open_output(f"s3://{s3.BUCKET}/out"), f"s3://{s3.BUCKET}/in/a.bin"
    large = bytes(6 << 20)  # a multipart upload
    requests: dict[str, Callable[[], object]] = {
        "stat": lambda: stat(uri).size == 1_280_000,
        "read": lambda: read(uri) == bytes(range(256)) * 5000,
        "part": lambda: open_file(uri).read(3) == b"\0\1\2",
        "walk": lambda: len(list(walk(f"s3://{s3.BUCKET}/in"))) == 1,
        "put": lambda: put(store, "b", b"1") is None and read_object(store, "b") == b"1",
        "large put": lambda: put(store, "c", large) is None and read_object(store, "c") == large,
        "list": lambda: sorted(list_keys(store)) == ["b", "c"],
        "delete": lambda: delete(store, "b") is None and delete(store, "c") is None,
    }
    for fault in FAULTS:
        proxy.forget()
        proxy.script = lambda method, path, times, fault=fault: fault if times < 2 else None
        assert [name for name, ask in requests.items() if not ask()] == []
    monkeypatch.setenv(VARIABLE, "3")
    proxy.script = lambda method, path, times: "hang"
    with pytest.raises(StoreUnreachable, match="no answer in time"):
        read_object(open_output(f"s3://{s3.BUCKET}/out"), "b")


def test_a_missing_bucket_is_refused(tree: Path, proxy: FaultProxy) -> None:
    with pytest.raises(InvalidRequestError, match=r"s3://nowhere/x.*NoSuchBucket"):
        run_inline(images=str(tree), out="s3://nowhere/x", unit_size=8)
    with pytest.raises(StoreUnusable, match="no such bucket"):
        put(open_output("s3://nowhere/x"), "a", b"1")


def test_endpoint_without_encryption_must_be_allowed(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreUnusable, match="AWS_ALLOW_HTTP=true"):
        read_object(open_output(f"s3://{s3.BUCKET}/out"), "x")


def test_other_clouds_are_opened_from_their_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are not sent: the store shows their address and credentials."""
    for name, value in {
        "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps({
            "private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": True,
        }),
        "AZURE_STORAGE_ACCOUNT_NAME": "somebody", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    object_store._bucket.cache_clear()
    kinds = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
    for scheme, kind in kinds.items():
        store, key = object_store.locate(f"{scheme}://bucket/some/key")
        assert (type(store).__name__, key, store_address(store)) == (kind, "some/key", f"{scheme}://bucket")
    object_store._bucket.cache_clear()


def test_region_and_endpoint_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    signed = []

    class Listening(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            signed.append(self.headers["Authorization"])
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with HTTPServer(("127.0.0.1", 0), Listening) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            "AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "WHO", "AWS_SECRET_ACCESS_KEY": "x",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        object_store._bucket.cache_clear()
        with pytest.raises(FileNotFoundError):
            read("s3://bucket/some/key")
        server.shutdown()
    object_store._bucket.cache_clear()
    assert re.search(r"Credential=WHO/\d+/eu-central-1/s3/", signed[0])
