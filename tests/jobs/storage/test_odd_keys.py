"""Tests keys that obstore cannot request: they lose only their own rows, and the others are read."""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import pyarrow.parquet as pq
import pytest
from moto.s3.models import s3_backends

from jobs.inputs.entry import SourceError
from jobs.inputs.sources import list_entries, open_sources
from jobs.storage import object_store
from jobs.storage.file_walk import walk
from jobs.storage.files import read
from jobs.storage.object_store import list_keys, open_output
from jobs.storage.storage_errors import NotAFile
from jobs.util.job_errors import StoreUnusable
from tests.conftest import SECRET, run_inline
from tests.support.faults import s3
from tests.support.faults.fault_proxy import FaultProxy
from tests.support.faults.google_server import BEARER, google
from tests.support.faults.machine_identity import TOKEN, machine_identity
from tests.support.input_files import picture, write, write_tar

ODD = (
    "a//b.png",
    "a//c.png",
    "//d.png",
    "./e.png",
    "f/../g.png",
    "../h.png",
    "i\x01.png",
    "j\x7f.png",
    "k/\t.png",
    "l/./m.png",
)
SOUND = ("0.png", "a/0.png", "f/g.png", "m%2Fn.png", "o p+q.png", "r?s=1&t#u@v.png", "größe – 大きさ.png", "w\\x.png",
         "y*[z].png", "~.png", "%00.png", "a...png")  # fmt: skip


def put_all(*names: str) -> None:
    for i, name in enumerate(names):
        s3.put(f"p/{name}", picture(i))


@pytest.mark.parametrize("odd", ODD)
def test_one_odd_key_is_one_row(odd: str, bucket: str, tmp_path: Path) -> None:
    put_all("0.png", odd, "z.png", "d.png", "a/b.png", "a/c.png")  # includes the key without the odd part
    code, output = run_inline(images=f"{bucket}/p", out=str(tmp_path / "out"))
    assert code == 3, output
    index = {line["sample_id"]: line for line in pq.read_table(tmp_path / "out/index.parquet").to_pylist()}
    assert len(index) == 6 and index["0.png"]["status"] == index["z.png"]["status"] == "ok"
    ((name, line),) = [(name, line) for name, line in index.items() if line["status"] != "ok"]
    assert name == odd and line["uri"] == f"{bucket}/p/{odd}"
    assert f"{bucket}/p/{odd}" in line["error"] and "cannot be requested: rename it" in line["error"]


def test_all_odd_keys_together_with_sound_keys(bucket: str, tmp_path: Path) -> None:
    put_all(*ODD, *SOUND)
    code, output = run_inline(images=f"{bucket}/p", out=str(tmp_path / "out"))
    assert code == 3, output
    status = {line["uri"]: line["status"] for line in pq.read_table(tmp_path / "out/index.parquet").to_pylist()}
    assert status == {f"{bucket}/p/{name}": "ok" if name in SOUND else "quarantined" for name in (*ODD, *SOUND)}


def test_both_ways_of_listing_agree(bucket: str) -> None:
    put_all(*SOUND)
    s3.put("p/folder/", b"")
    s3.put("p.png", b"another")
    sound = list(walk(f"{bucket}/p"))
    s3.put("p/zz//odd.png", b"")
    again = {(info.uri, info.size, info.etag) for info in walk(f"{bucket}/p")}
    ((odd, _, _),) = again - {(info.uri, info.size, info.etag) for info in sound}
    assert odd == f"{bucket}/p/zz//odd.png" and len(again) == len(sound) + 1


def test_odd_shards_and_odd_lines_of_a_list_are_rows_too(bucket: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("x.png", picture(1))]).read_bytes()
    for name in ("t/a//odd.tar", "t/sound.tar"):
        s3.put(name, tar)
    odd, sound = sorted(list_entries(open_sources([f"{bucket}/t"])), key=lambda entry: entry.error is None)
    assert "rename it" in (odd.error or "") and sound.error is None
    s3.put("sound.png", picture(1))
    listed = write(tmp_path / "l.csv", f"uri\n{bucket}/a//b.png\n{bucket}/sound.png\n{bucket}/./c.png\n".encode())
    code, output = run_inline(images=str(listed), out=str(tmp_path / "out"))
    assert code == 3, output
    statuses = pq.read_table(tmp_path / "out/index.parquet")["status"].to_pylist()
    assert statuses == ["quarantined", "ok", "quarantined"]


@pytest.mark.parametrize("signed", [True, False])
def test_several_pages_are_listed(signed: bool, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a//b.png", *(f"{i}.png" for i in range(7)), "z//b.png"]
    put_all(*names)
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    if not signed:
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert [info.uri for info in walk(f"{bucket}/p")] == sorted(f"{bucket}/p/{name}" for name in names)


def test_listing_a_store_with_an_odd_key_fails_with_the_key(bucket: str) -> None:
    put_all("0.png", "a//b.png")
    with pytest.raises(StoreUnusable, match=r"a//b\.png.*rename it"):
        list(list_keys(open_output(f"{bucket}/p")))


@pytest.mark.parametrize("variables", [
    {}, {"AWS_SESSION_TOKEN": "a/token+of=this"}, {"AWS_ENDPOINT_URL_S3": "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL": "http://x"},
    {"AWS_ENDPOINT": "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL": ""}, {"AWS_REGION": "eu-central-1"},
    {"AWS_SKIP_SIGNATURE": "true"},
])  # fmt: skip
def test_environment_variables_configure_the_list_request(
    variables: dict[str, str], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_all("0.png", "a//b.png")
    place = os.environ["AWS_ENDPOINT_URL"]
    for name, value in variables.items():
        monkeypatch.setenv(name, place if value == "AWS_ENDPOINT_URL" else value)
        if not value:
            monkeypatch.delenv(name)
    path = listed_anew(proxy)
    query = dict(parse_qsl(urlsplit(path).query))
    region = variables.get("AWS_REGION", "us-east-1")
    if "AWS_SKIP_SIGNATURE" in variables:
        assert "X-Amz-Signature" not in query
    else:
        check_signature(path, place, region)
        assert query.get("X-Amz-Security-Token") == variables.get("AWS_SESSION_TOKEN")


def test_credentials_of_the_machine_sign_the_list_request(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    put_all("0.png", "a//b.png")
    with machine_identity(monkeypatch, SECRET):
        path = listed_anew(proxy)
    check_signature(path, os.environ["AWS_ENDPOINT_URL"], "us-east-1")
    query = dict(parse_qsl(urlsplit(path).query))
    assert query["X-Amz-Credential"].startswith("MACHINE/") and query["X-Amz-Security-Token"] == TOKEN


def listed_anew(proxy: FaultProxy) -> str:
    """Lists both objects with these variables set; returns the last path that is requested."""
    paths: list[str] = []

    def script(method: str, path: str, times: int) -> None:
        del method, times
        paths.append(path)

    proxy.script = script
    object_store._bucket.cache_clear()
    assert [info.uri for info in walk("s3://pictures/p")] == ["s3://pictures/p/0.png", "s3://pictures/p/a//b.png"]
    return paths[-1]


def check_signature(path: str, endpoint: str, region: str) -> None:
    """Computes AWS's Signature Version 4 of a query, because the test's server checks none."""
    query = dict(parse_qsl(urlsplit(path).query))
    signature, date = query.pop("X-Amz-Signature"), query["X-Amz-Date"]
    signed = "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
    host = f"host:{urlsplit(endpoint).netloc}"
    lines = ["GET", urlsplit(path).path, signed, host, "", "host", "UNSIGNED-PAYLOAD"]
    scope = f"{date[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join(["AWS4-HMAC-SHA256", date, scope, digest])
    assert hmac.digest(key, text.encode(), "sha256").hex() == signature


def test_a_key_with_a_line_break_is_one_row(bucket: str, tmp_path: Path) -> None:
    put_all("0.png")
    # The test server has no route for such a key.
    s3_backends["123456789012"]["aws"].put_object(s3.BUCKET, "p/a\nb.png", b"")
    code, output = run_inline(images=f"{bucket}/p", out=str(tmp_path / "out"))
    assert code == 3, output
    index = pq.read_table(tmp_path / "out/index.parquet").to_pylist()
    assert [(line["uri"], line["status"]) for line in index] == [
        (f"{bucket}/p/0.png", "ok"),
        (f"{bucket}/p/a\nb.png", "quarantined"),
    ]
    assert "cannot be requested: rename it" in index[1]["error"]


@pytest.mark.parametrize("who", ["token", "nobody", "account"])
def test_odd_keys_do_not_stop_the_listing_of_a_google_bucket(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    odd, sound = (
        [f"gs://pictures/p/{name}" for name in (*ODD, "a\nb.png")],
        [f"gs://pictures/p/{name}" for name in SOUND],
    )
    with google(monkeypatch, who) as server:
        server.objects.update({uri.removeprefix("gs://pictures/"): uri.encode() for uri in (*odd, *sound)})
        server.objects["pq.png"] = b"below another prefix"
        assert {(info.uri, info.size) for info in walk("gs://pictures/p")} == {
            (uri, len(uri.encode())) for uri in (*odd, *sound)
        }
        assert [read(uri).decode() for uri in sound] == sound
        for uri in odd:
            with pytest.raises(NotAFile, match="rename it"):
                read(uri)
    assert set(server.asked) == {{"token": f"Bearer {BEARER}", "account": "signed"}.get(who, who)}


def test_an_azure_container_with_an_odd_key_is_refused_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """obstore cannot sign a list request to Azure."""
    name, more = "p/a//b.png", "<Properties><Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified>"
    more += "<Content-Length>1</Content-Length><Content-Type>image/png</Content-Type><Etag>1</Etag></Properties>"
    page = (
        f"<EnumerationResults><Blobs><Blob><Name>{name}</Name>{more}</Blob></Blobs><NextMarker/></EnumerationResults>"
    )

    class Container(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if "comp=list" in self.path else 404)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page.encode())

        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Container) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "somebody")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
        object_store._bucket.cache_clear()
        with pytest.raises(SourceError, match=r"az://pictures/p .*the key p/a//b\.png has .*: rename it"):
            open_sources(["az://pictures/p"])
        server.shutdown()
    object_store._bucket.cache_clear()
