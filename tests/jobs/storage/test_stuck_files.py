"""Tests files whose read never returns: they lose only their own row, within the time limit of a store."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.inputs.entry import SourceError
from jobs.inputs.sources import list_entries, open_sources
from jobs.storage.files import open_file, read, read_ranges
from jobs.storage.local_files import open_descriptor, read_descriptor
from jobs.storage.retrying import VARIABLE
from jobs.storage.storage_errors import NotAFile
from jobs.util.job_errors import StoreUnreachable
from tests.conftest import run_inline
from tests.support.faults.stuck_mount import stuck_mount
from tests.support.input_files import picture, write, write_parquet, write_tar


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_suffix(".pipe"))
    path.symlink_to(path.with_suffix(".pipe"))


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path.parent)  # its name must be short
        listener.bind(path.name)
        os.chdir(here)


def to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


KINDS = {
    "pipe": (pipe, "not a regular file"),
    "link-to-pipe": (link_to_pipe, "not a regular file"),
    "socket": (a_socket, "not a regular file"),
    "zeros": (to("/dev/zero"), "not a regular file"),
    "terminal": (to("/dev/ptmx"), "not a regular file"),
    "nothing": (to("/dev/null"), "not a regular file"),
    "dangling": (to("/nowhere/at/all"), "missing"),
    "itself": (lambda path: path.symlink_to(path.name), "cannot be read"),
    "endless": (to("/proc/self/pagemap"), "max_bytes"),
    "memory": (to("/proc/self/mem"), "cannot be read"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, (make, _) in KINDS.items():
        path = tmp_path / f"in/{kind}.png"
        path.parent.mkdir(exist_ok=True)
        make(path)
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    write(tmp_path / "in/good.png", picture(1))
    return tmp_path / "in"


def index(out: Path) -> dict[str, dict[str, object]]:
    return {Path(line["sample_id"]).stem: line for line in pq.read_table(out / "index.parquet").to_pylist()}


@pytest.mark.parametrize("way", ["folder", "glob", "deep glob", "list"])
def test_paths_that_are_not_regular_files_are_quarantined(way: str, folder: Path, tmp_path: Path) -> None:
    images = {"folder": folder, "glob": folder / "*.png", "deep glob": folder / "**/*.png"}.get(way, tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("uri\n" + "".join(f"in/{kind}.png\n" for kind in (*KINDS, "good")))
    code, output = run_inline(images=str(images), out=str(tmp_path / "out"), max_bytes=2**20 - 1)
    assert code == 3, output
    lines = index(tmp_path / "out")
    assert lines.keys() == {*KINDS, "good"}
    assert lines["good"]["status"] == "ok"
    for kind, (_, reason) in KINDS.items():
        words = "no such file" if way == "list" and kind == "dangling" else reason
        if way == "list" and kind == "itself":
            words = "symbolic links"
        assert words in lines[kind]["error"], lines[kind]


def container(path: Path) -> None:
    """A tar, a Parquet file or a list with one image."""
    if path.suffix == ".tar":
        write_tar(path, [("x.png", picture(1))])
    elif path.suffix == ".parquet":
        write_parquet(path, {"image": [picture(1)]})
    else:
        write(path.with_name("x.png"), picture(1))
        path.write_text("uri\nx.png\n")


NO_CONTAINERS = {
    "pipe": (pipe, "not a regular file"),
    "dangling": (to("/nowhere/at/all"), "No such file"),
    "itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "below a file": (to("/etc/passwd/x"), "Not a directory"),
    "forbidden": (lambda path: (container(path), path.chmod(0)), "Permission denied"),
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("form", ["tar", "parquet", "csv", "list"])
@pytest.mark.parametrize("kind", NO_CONTAINERS)
def test_a_container_that_cannot_be_opened_is_one_row(kind: str, form: str, first: bool, tmp_path: Path) -> None:
    if kind == "forbidden" and os.geteuid() == 0:
        pytest.skip("everything is permitted to root")
    make, reason = NO_CONTAINERS[kind]
    extension, columns = ("parquet", {"uri_column": "uri"}) if form == "list" else (form, {})
    bad_one, good_one = (tmp_path / f"{name}.{extension}" for name in ("ab" if first else "ba"))
    make(bad_one)
    if form == "list":
        write_parquet(good_one, {"uri": [str(write(tmp_path / "x.png", picture(1)))]})
    else:
        container(good_one)
    entries = list(list_entries(open_sources([str(tmp_path / f"*.{extension}")], **columns)))
    bad, good = entries if first else entries[::-1]
    assert reason in (bad.error or "") and good.error is None
    good_one.unlink()
    if (kind, form) not in (("pipe", "parquet"),):  # a pipe as Parquet gives rows with the reason
        with pytest.raises(SourceError, match=r"cannot be read|matches no file"):
            list(list_entries(open_sources([str(tmp_path / f"*.{extension}")], **columns)))


@pytest.mark.parametrize("name", ["list.csv", "list.parquet", "x.png"])
def test_a_single_input_that_is_not_a_regular_file_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(SourceError, match="not a regular file"):
        list(list_entries(open_sources([str(tmp_path / name)], uri_column="uri")))


def test_no_reader_opens_a_pipe(tmp_path: Path) -> None:
    uri = str(tmp_path / "pipe")
    os.mkfifo(uri)
    for way in (read, open_file, lambda uri: read_ranges(uri, [(0, 1)])):
        with pytest.raises(NotAFile):
            way(uri)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 9_000_000])
def test_a_file_is_read_whole(size: int, tmp_path: Path) -> None:
    data = os.urandom(1024) * (size // 1024 + 1)
    uri = str(write(tmp_path / "x", data[:size]))
    assert read(uri) == data[:size]
    assert read(uri, 5) == data[5:size]
    assert read(uri, 3, 70_000) == data[3 : min(size, 70_003)]
    assert read_ranges(uri, [(0, 2), (1, size), (size, 3)]) == [data[: min(2, size)], data[1:size], b""]
    with open_file(uri) as file:
        assert file.read() == data[:size]
        file.seek(2)
        assert file.read(3) == data[2 : min(size, 5)]
    with open_descriptor(uri) as descriptor:
        assert read_descriptor(descriptor, length=0) == b""


# -- a mount that hangs ----------------------------------------------------------------------------------------


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory in which `lookup….png`, `open….png` and `read….png` hang at that call; others are images."""
    monkeypatch.setenv(VARIABLE, "3")  # in which a process that reads Parquet starts, also on a busy machine
    where = tmp_path / "mount"
    try:
        with stuck_mount(where, picture(2)):
            yield where
    except OSError as error:
        pytest.skip(f"this process may not mount a file system: {error}")


@pytest.mark.parametrize("way", [*(pytest.param(way, marks=pytest.mark.slow) for way in ("folder", "glob")), "list"])
def test_a_hanging_image_loses_only_its_row(way: str, mount: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ("a", "lookup", "n", "open", "p", "read", "z")
    for name in names:
        (tmp_path / f"in/{name}.png").symlink_to(mount / f"{name}.png")
    (tmp_path / "l.csv").write_text("uri\n" + "".join(f"in/{name}.png\n" for name in names))
    images = {"folder": tmp_path / "in", "glob": tmp_path / "in/*.png", "list": tmp_path / "l.csv"}[way]
    code, output = run_inline(images=str(images), out=str(tmp_path / "out"))
    assert code == 3, output
    lines = index(tmp_path / "out")
    assert [name for name in names if lines[name]["status"] == "ok"] == ["a", "n", "p", "z"]
    for name in ("lookup", "open", "read"):
        assert "no answer within 3 s" in lines[name]["error"]


@pytest.mark.parametrize("form", ["tar", "parquet", "csv"])
@pytest.mark.parametrize("name", ["open", "read"])
def test_a_hanging_shard_is_one_row(form: str, name: str, mount: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / f"in/a.{form}").symlink_to(mount / f"{name}.{form}")
    container(tmp_path / f"in/b.{form}")
    bad, good = list_entries(open_sources([str(tmp_path / f"in/*.{form}")]))
    assert "no answer within 3 s" in (bad.error or "") and good.error is None


@pytest.mark.parametrize("path", ["lookup", "lookup.png", "read.csv", "open.csv"])
def test_an_input_that_hangs_is_refused(path: str, mount: Path) -> None:
    with pytest.raises((SourceError, StoreUnreachable), match=r"no answer within 3 s"):
        list(list_entries(open_sources([str(mount / path)])))


def test_storage_that_never_answers_stops_the_run(mount: Path, tmp_path: Path) -> None:
    """The images are not the cause, and a timeout for each of them would take hours."""
    (tmp_path / "l.csv").write_text("uri\n" + "".join(f"mount/read{i}.png\n" for i in range(20)))
    with pytest.raises(StoreUnreachable, match="SALIENCY_STORE_SECONDS"):
        run_inline(images=str(tmp_path / "l.csv"), out=str(tmp_path / "out"))
