"""Tests that no credential of an input is in any byte that a run writes or prints."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.config.explain_config import make_config
from jobs.inputs.listing import find_files
from jobs.inputs.sources import list_entries, open_sources
from jobs.inputs.uri_list_source import UriListSource
from jobs.storage.retrying import VARIABLE
from jobs.util.redaction import scrubbed
from saliency_core.errors import InvalidRequestError
from tests.conftest import flags, run_inline
from tests.jobs.util.test_redaction import CUT, KEPT, ONLY_AS_ADDRESS
from tests.support.faults import s3
from tests.support.input_files import picture, write, write_parquet, write_tar

PASSWORD = "Tr0ub4dor"  # what the tables call PW
ADDRESSES = [address.replace("P W", f"{PASSWORD} x").replace("P@W", f"{PASSWORD}@x").replace("P#W", f"{PASSWORD}#x")
             .replace("PW", PASSWORD) for address in (*CUT, *ONLY_AS_ADDRESS)]  # fmt: skip
REMOTE = ("s3://", "S3://", "gs://", "az://")


def write_list(path: Path, addresses: list[str]) -> Path:
    text = io.StringIO()
    csv.writer(text).writerows([["uri"], *([address] for address in addresses)])
    return write(path, text.getvalue().encode())


def everything(root: Path) -> bytes:
    """Returns the bytes of all files, and the values of all Parquet columns."""
    parts = [b""]
    for path in sorted(root.rglob("*")):
        if path.is_file():
            parts += [str(path).encode(), path.read_bytes()]
            if path.suffix == ".parquet":
                parts.append(str(pq.read_table(path).to_pylist()).encode())
    return b"\n".join(parts)


def test_a_run_over_addresses_with_credentials_does_not_write_or_print_them(
    tmp_path: Path, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    s3.put("x.jpg", picture(1))
    own = [bucket.replace("s3://", f"{scheme}://KEY:{PASSWORD}@") + "/x.jpg" for scheme in ("s3", "S3")]
    signed = [f"{bucket}/x.jpg?X-Amz-Date=1&X-Amz-Signature={PASSWORD}{i}" for i in range(2)]
    others = [address for address in ADDRESSES if not address.startswith(REMOTE)]
    listed = write_list(tmp_path / "in/list.csv", [*own, *signed, *others])
    member = f"https://user:{PASSWORD}@host/a.png"
    tar = write_tar(tmp_path / "in/a.tar", [(member, picture(2)), (member.replace("user", "other"), b"broken")])
    with caplog.at_level(logging.DEBUG):
        code, told = run_inline(images=(str(listed), str(tar)), out=str(tmp_path / "out"), unit_size=16, batch_size=4)
    assert code == 3, told
    assert PASSWORD not in told + caplog.text
    assert PASSWORD.encode() not in everything(tmp_path / "out")
    index = {line["sample_id"]: line for line in pq.read_table(tmp_path / "out/index.parquet").to_pylist()}
    assert len(index) == len(own) + len(signed) + len(others) + 2
    for name in ("s3://pictures/x.jpg", "S3://pictures/x.jpg", "s3://pictures/x.jpg~2", "s3://pictures/x.jpg~3"):
        assert index[f"0/{name}"]["status"] == "ok", "read with the environment's credentials"
    assert "in the environment" in index["0/https://host/x.jpg"]["error"]
    assert index["1/a.tar/https://host/a.png"]["status"] == "ok"
    assert index["1/a.tar/https://host/a.png~2"]["status"] == "quarantined"


def test_credentials_in_paths_and_labels_of_parquet_are_not_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = [address for address in ADDRESSES if not address.startswith(REMOTE)]
    columns = {"image": [{"bytes": None, "path": address} for address in others], "label": [f"of {a}" for a in others]}
    table = write_parquet(tmp_path / "in/a.parquet", columns)
    with caplog.at_level(logging.DEBUG):
        code, told = run_inline(images=str(table), out=str(tmp_path / "out"), targets=("predicted", "class:0"))
    assert code == 3, told
    assert PASSWORD not in told + caplog.text
    assert PASSWORD.encode() not in everything(tmp_path / "out")


def test_the_command_does_not_print_credentials(tmp_path: Path, saliency: Callable) -> None:
    addresses = [address for address in ADDRESSES if not address.startswith(REMOTE)]
    listed = write_list(tmp_path / "in/list.csv", addresses)
    told = saliency("explain", *flags(images=listed, out=tmp_path / "out"))
    assert told.returncode == 3, told.stderr
    assert PASSWORD not in told.stdout + told.stderr
    assert PASSWORD.encode() not in everything(tmp_path / "out")


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_entry_has_no_credentials(address: str, tmp_path: Path) -> None:
    listed = write_list(tmp_path / "list.csv", [address, address.replace(PASSWORD, "other")])
    first, second = UriListSource(find_files(str(listed)), table="csv").entries()
    assert PASSWORD not in repr(first)
    assert first.sample_id == scrubbed(address)
    if address.replace(PASSWORD, "other") != address:
        assert second.sample_id == f"{first.sample_id}~2", "what differs in its credentials alone is the same image"


@pytest.mark.parametrize("address", [address for address in KEPT if address.startswith("s3://")])
def test_keys_that_resemble_credentials_keep_their_names_and_are_read(
    address: str, tmp_path: Path, bucket: str
) -> None:
    key = address.removeprefix("s3://bucket/").replace("//", "/")
    s3.put(key, picture(3))
    listed = write_list(tmp_path / "list.csv", [f"{bucket}/{key}"])
    code, told = run_inline(images=str(listed), out=str(tmp_path / "out"))
    assert code == 0, told
    assert pq.read_table(tmp_path / "out/index.parquet")["sample_id"].to_pylist() == [f"{bucket}/{key}"]


@pytest.mark.parametrize("name", ["img.php?token=1.png", "x.png?X-Amz-Signature=1", "http:/a:b@c/x.png"])
def test_a_local_file_whose_name_resembles_credentials_is_read(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, picture(4))
    listed = write_list(tmp_path / "list.csv", [name])
    code, told = run_inline(images=str(listed), out=str(tmp_path / "out"))
    assert code == 0, told


LOCAL = (
    *(
        "a@b.png",
        "a:b@c.png",
        "12:30@home/x.png",
        "12/34@x/y.png",
        "a:b@c:d.png",
        "x;token=1.png",
        "img.php?token=1.png",
    ),
    *("x#access_token=1.png", '{"token":"1"}.png', "a%40b%3Ac.png", "@scope/x@2x.png", "user:1/2@host/x.png"),
)


def test_names_of_local_files_are_their_sample_ids(tmp_path: Path) -> None:
    for name in LOCAL:
        write(tmp_path / "in" / name, picture(4))
    listed = write_list(tmp_path / "in/list.csv", list(LOCAL))
    for source in (UriListSource(find_files(str(listed)), table="csv"), *open_sources([str(tmp_path / "in")])):
        entries = list(source.entries())
        assert {entry.sample_id for entry in entries} == set(LOCAL), source
        assert all(entry.without_credentials() is entry and entry.error is None for entry in entries)


@pytest.mark.parametrize("key", ["images", "out", "weights", "model", "class_names", "output", "uri_column", "mean"])
def test_a_configuration_with_credentials_is_refused_without_printing_them(key: str, tmp_path: Path) -> None:
    address = f"https://user:{PASSWORD}@host/x"
    for value in (address, f"file:{address}", f"S3://KEY:{PASSWORD}@bucket/x", f"s3://b/x?X-Amz-Signature={PASSWORD}"):
        for file in (False, True):
            keys = {"images": "i", "model": "file:m.pt", "out": "o", key: value}
            path = write(tmp_path / "run.yaml", "".join(f"{k}: '{v}'\n" for k, v in keys.items()).encode())
            with pytest.raises(InvalidRequestError, match="credentials") as refusal:
                make_config({} if file else keys, file=path if file else None)
            assert PASSWORD not in str(refusal.value) + repr(refusal.value.__cause__)


@pytest.mark.parametrize("lines", [b"- https://user:%b@host", b"x: [https://user:%b@host", b"https://u:%b@host/: 1"])
def test_a_configuration_file_that_cannot_be_read_is_not_quoted(lines: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", lines % PASSWORD.encode())
    with pytest.raises(InvalidRequestError) as refusal:
        make_config({}, file=path)
    assert PASSWORD not in str(refusal.value)


def test_the_refusal_of_a_source_has_no_credentials(tmp_path: Path) -> None:
    for path in (f"https://user:{PASSWORD}@host/*.jpg", f"ftp://user:{PASSWORD}@host/x.jpg"):
        with pytest.raises(InvalidRequestError) as refusal:
            list(list_entries(open_sources([path])))
        assert PASSWORD not in str(refusal.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"ray://user:{PASSWORD}@host:10001", "RAY_ADDRESS=ray://host:10001"),
        (f"user:{PASSWORD}@127.0.0.1:1", "RAY_ADDRESS=127.0.0.1:1"),
        (f"user:x/{PASSWORD}@127.0.0.1:1", "RAY_ADDRESS=127.0.0.1:1"),
    ],
)
def test_the_address_of_a_cluster_is_printed_without_credentials(address: str, shown: str) -> None:
    from jobs.runners.cluster import refuse_unreachable

    with pytest.raises(InvalidRequestError, match=shown) as refusal:
        refuse_unreachable(address)
    assert PASSWORD not in str(refusal.value)


def test_the_credentials_of_an_endpoint_are_not_printed(tmp_path: Path, saliency: Callable) -> None:
    """The object store's library quotes the address of its request in its errors."""
    listed = write_list(tmp_path / "list.csv", ["s3://bucket/x.jpg"])
    endpoint = {
        "AWS_ENDPOINT_URL": f"http://user:{PASSWORD}@127.0.0.1:1", "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": PASSWORD, "AWS_REGION": "us-east-1", VARIABLE: "1",
    }  # fmt: skip
    told = saliency("explain", *flags(images=listed, out=tmp_path / "out"), **endpoint, SALIENCY_TRACEBACK="1")
    assert told.returncode == 1, told.stderr
    assert PASSWORD not in told.stdout + told.stderr
    assert PASSWORD.encode() not in everything(tmp_path / "out")
