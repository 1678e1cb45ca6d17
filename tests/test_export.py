"""The export: every row of a store is in the files of each format, as it was, or named as left out."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
import yaml
from conftest import TESTS, run_inline
from factories import tiny
from PIL import Image
from rich.console import Console

from jobs.audit.results import AUDIT_JSON, ROWS, Audit, row_schema
from jobs.audit.results import folder as audit_folder
from jobs.cli import app
from jobs.export import selection
from jobs.export.folder import Commit, Folder
from jobs.export.names import key_of, name_of
from jobs.export.run import TO, export
from jobs.reader import Store, open_store
from saliency_core.errors import Refused
from saliency_core.look import Look, draw_map

GRADIENT, INPUT_X = "predicted/gradient", "predicted/input_x_gradient"
BROKEN = ("ant/broken.jpg", "cat/empty.png", "dog/torn.png")


def run(out: Path, to: str, output: Path, **keys: Any) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=300)
    code = export(str(out), console, to=to, output=str(output), **keys)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def files(folder: Path) -> dict[str, bytes]:
    """Content by path. Of HDF5 files that only point at others, where they point: they also hold a time."""
    return {
        str(path.relative_to(folder)): pointers(path) or path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pointers(path: Path) -> bytes:
    if path.suffix != ".h5":
        return b""
    with h5py.File(path) as file:
        virtual = {key: one for key, one in file.items() if one.is_virtual}
        told = {
            key: (one.shape, [(s.file_name, s.dset_name) for s in one.virtual_sources()])
            for key, one in virtual.items()
        }
    return repr(told).encode() if told else b""


def lacking(folder: Path) -> list[dict[str, str]]:
    with (folder / "left_out.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """What a plain tar reader finds: extension → bytes, by key."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


@pytest.fixture(scope="module")
def store(finished: Path) -> Store:
    return open_store(str(finished))


@pytest.fixture(scope="module")
def explained(store: Store) -> list[dict[str, Any]]:
    return [line for line in store.lines().to_pylist() if line["status"] == "ok"]


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which no row has a label, but for the classes ant and bee: others have no map of it."""
    root = tmp_path_factory.mktemp("partial")
    rng = np.random.default_rng(1)
    lines = []
    for row in range(20):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(root / f"{row}.png")
        lines.append(f"{root / f'{row}.png'},{row % 5 if row % 5 < 2 else ''}")
    (root / "list.csv").write_text("uri,label\n" + "\n".join(lines) + "\n")
    run_inline(images=str(root / "list.csv"), out=str(root / "s"), unit_size=8, targets=("predicted", "label"))
    return root / "s"


# -- every format ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", TO)
def test_rows_without_a_map_are_counted_and_named(finished: Path, tmp_path: Path, to: str) -> None:
    code, told = run(finished, to, tmp_path / "e", arrays=[GRADIENT])
    assert code == 3 and "3 quarantined" in told and all(name in told for name in BROKEN)
    assert {(one["sample_id"], one["what"]) for one in lacking(tmp_path / "e")} == {(name, "row") for name in BROKEN}
    code, told = run(finished, to, tmp_path / "whole", arrays=[GRADIENT], rows=[1, 0])
    assert code == 0 and "left out" not in told and lacking(tmp_path / "whole") == []


@pytest.mark.parametrize("to", TO)
def test_an_array_that_a_row_lacks_is_named(partial: Path, tmp_path: Path, to: str) -> None:
    code, _ = run(partial, to, tmp_path / "e")
    assert code == 3
    without = [row for row in range(20) if row % 5 >= 2]
    assert [(int(one["row"]), one["what"]) for one in lacking(tmp_path / "e")] == [
        (i, "label/gradient") for i in without
    ]


@pytest.mark.parametrize("to", TO)
def test_parts_are_of_no_consequence_and_memory_is_bounded(
    finished: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the parts: the same rows, the same values; and never many maps at once."""
    asked: list[int] = []
    maps = Store.maps
    monkeypatch.setattr(Store, "maps", lambda self, path, rows: (asked.append(len(rows)), maps(self, path, rows))[1])
    monkeypatch.setattr(selection, "BATCH", 5)
    for size in (4, 43):
        run(finished, to, tmp_path / str(size), arrays=[GRADIENT], rows_per_part=size)
    assert max(asked) <= 5
    assert len(list((tmp_path / "4/parts").iterdir())) == 11
    few, one = tmp_path / "4", tmp_path / "43"
    if to == "png":
        assert files(few / "pictures") == files(one / "pictures")
    elif to == "webdataset":
        assert samples(few) == samples(one) and len(list(few.glob("*.tar"))) == 11
    elif to == "quantus":
        for name in ("x_batch", "y_batch", "a_batch", "row"):
            parts = [np.load(path)[name] for path in sorted(few.glob("*/*.npz"))]
            np.testing.assert_array_equal(np.concatenate(parts), np.load(next(one.glob("*/*.npz")))[name])
    else:
        for name in ("inputs", "predicted__gradient"):
            with h5py.File(few / f"{name}.h5") as a, h5py.File(one / f"{name}.h5") as b:
                assert set(a) == set(b)
                for key in a:
                    np.testing.assert_array_equal(a[key][:], b[key][:])


def killed(out: Path, to: str, output: Path, **keys: Any) -> None:
    """Exports in another process, which is killed when the fourth part's files are there and its commit is not."""
    script = (
        "import os, signal\n"
        "from rich.console import Console\n"
        "from jobs.export import folder, run\n"
        "commit = folder.Folder.commit\n"
        "def dies(self, part, made):\n"
        "    if part == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    commit(self, part, made)\n"
        "folder.Folder.commit = dies\n"
        f"run.export({str(out)!r}, Console(), to={to!r}, output={str(output)!r}, **{keys!r})\n"
    )
    died = subprocess.run([sys.executable, "-c", script], cwd=TESTS.parent, timeout=120, capture_output=True)
    assert died.returncode == -signal.SIGKILL


def stopped(out: Path, to: str, output: Path, **keys: Any) -> None:
    """The same by Ctrl-C."""
    commit = Folder.commit

    def stops(self: Folder, part: int, made: Commit) -> None:
        if part == 3:
            raise KeyboardInterrupt
        commit(self, part, made)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Folder, "commit", stops)
        run(out, to, output, **keys)


@pytest.mark.parametrize(
    "to, ended",
    [
        ("webdataset", killed),
        *(pytest.param(to, killed, marks=pytest.mark.slow) for to in TO if to != "webdataset"),
        *((to, stopped) for to in TO),
    ],
)
def test_an_end_costs_one_part(
    finished: Path, tmp_path: Path, to: str, ended: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"arrays": [GRADIENT], "rows_per_part": 8}
    run(finished, to, tmp_path / "whole", **keys)
    half = tmp_path / "half"
    ended(finished, to, half, **keys)
    assert len(list((half / "parts").glob("part-*.json"))) == 3
    (half / "parts/.part-00004.json.partial").write_bytes(b'{"rows": 8')
    before = {path: path.stat().st_mtime_ns for path in half.rglob("*") if path.is_file()}
    written: list[int] = []
    commit = Folder.commit
    monkeypatch.setattr(Folder, "commit", lambda self, part, made: (written.append(part), commit(self, part, made))[1])
    code, told = run(finished, to, half, **keys)
    assert code == 3 and "43 of 43 rows" in told and written == [3, 4, 5]
    assert files(half) == files(tmp_path / "whole")
    done = [path for path in before if re.search(r"-0000[012]\.|/export\.json", str(path))]
    assert len(done) >= 4 and all(path.stat().st_mtime_ns == before[path] for path in done)
    run(finished, to, half, **keys)
    assert written == [3, 4, 5] and files(half) == files(tmp_path / "whole")


def test_what_fails_in_the_middle_leaves_no_file_that_looks_whole(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(OSError, match="full"), folder.writing("data/a.bin") as file:
        file.write(b"half")
        raise OSError("full")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# -- whose folder it is ----------------------------------------------------------------------------------------


def test_a_foreign_folder_is_refused_and_not_touched(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(Refused, match=r"thesis\.txt.*nothing is overwritten"):
        run(finished, "png", tmp_path)
    assert files(tmp_path) == {"thesis.txt": b"years"}
    with pytest.raises(Refused, match="cannot be made"):
        run(finished, "png", tmp_path / "thesis.txt")


@pytest.mark.parametrize(
    "other, differs",
    [
        ({"to": "webdataset", "view": None}, "to"),
        ({"rows": [0, 1]}, "rows"),
        ({"arrays": [INPUT_X]}, "arrays"),
        ({"views": ["mask"]}, "views"),
        ({"look": Look(clip=90)}, "look"),
        ({"rows_per_part": 1}, "rows_per_part"),
    ],
)
def test_another_export_is_refused(finished: Path, tmp_path: Path, other: dict[str, Any], differs: str) -> None:
    keys: dict[str, Any] = {"to": "png", "rows": [0], "arrays": [GRADIENT]}
    run(finished, output=tmp_path / "e", **keys)
    before = files(tmp_path)
    other = {name: value for name, value in other.items() if name != "view"}
    with pytest.raises(Refused, match=rf"another export.*differs: .*{differs}"):
        run(finished, output=tmp_path / "e", **{**keys, **other})
    assert files(tmp_path) == before


def test_a_store_that_changed_is_another_export(tree: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tree, tmp_path / "tree")
    keys = {"images": str(broken), "out": str(tmp_path / "s"), "unit_size": 8}
    run_inline(**keys)
    run(tmp_path / "s", "webdataset", tmp_path / "e")
    moved = shutil.copytree(tmp_path / "s", tmp_path / "moved")
    assert run(moved, "webdataset", tmp_path / "e")[0] == 3  # the same store, elsewhere
    shutil.copy(broken / "dog/003.png", broken / "dog/torn.png")
    from jobs.retry import retry

    retry(str(tmp_path / "s"), Console(file=io.StringIO()), runner="inline", workers="auto")
    with pytest.raises(Refused, match=r"before it changed.*rows"):
        run(tmp_path / "s", "webdataset", tmp_path / "e")


def test_two_at_once_are_refused(finished: Path, tmp_path: Path) -> None:
    with Folder(tmp_path / "e").claimed({}), pytest.raises(Refused, match="another export is writing"):
        run(finished, "png", tmp_path / "e")


def test_what_cannot_be_exported_is_refused_before_anything_is_made(finished: Path, tmp_path: Path) -> None:
    for told, keys in {
        "'hdf'.*virelay, quantus": {"to": "hdf"},
        "of which it is no part": {"to": "png", "output": finished / "pictures"},
        "object store": {"to": "png", "output": "s3://bucket/e"},
        "row 5 twice": {"to": "png", "rows": [5, 4, 5]},
        "no array 'nope/x'": {"to": "png", "arrays": ["nope/x"]},
        "--view.*webdataset has no pictures": {"to": "webdataset", "views": ["map"]},
        "--cmap": {"to": "quantus", "look": Look(invert=True)},
        "--originals": {"to": "virelay", "originals": True},
        "view 'x-ray'": {"to": "png", "views": ["x-ray"]},
        "--rows-per-part 0": {"to": "png", "rows_per_part": 0},
    }.items():
        with pytest.raises(Refused, match=told):
            run(finished, **{"output": tmp_path / "e", **keys})
    assert not (tmp_path / "e").exists() and not (finished / "pictures").exists()


def test_an_unfinished_store_is_exported_by_named_rows_only(tree: Path, tmp_path: Path) -> None:
    run_inline(images=str(tree), out=str(tmp_path / "s"), unit_size=8, limit=16)
    with pytest.raises(Refused, match=r"not finished.*--rows"):
        run(tmp_path / "s", "webdataset", tmp_path / "e")
    assert run(tmp_path / "s", "webdataset", tmp_path / "e", rows=[3])[0] == 0
    assert len(samples(tmp_path / "e")) == 1


def test_virelay_without_h5py_says_what_to_install(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "jobs.export.virelay", raising=False)
    monkeypatch.delitem(sys.modules, "jobs.export.virelay_analysis", raising=False)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(Refused, match="pip install h5py"):
        run(finished, "virelay", tmp_path / "e")


def test_the_command_is_the_function(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["export", str(finished), "--to", "webdataset", "--output", str(tmp_path / "e"), "--array", GRADIENT]
    assert app([*flags, "--highest", "predicted__score", "-n", "2"], standalone_mode=False) == 0
    assert "2 of 2 rows exported" in capsys.readouterr().out
    scores = open_store(str(finished)).lines(columns=["predicted__score"])[0].drop_null().to_pylist()
    found = [json.loads(one["json"])["predicted__score"] for one in samples(tmp_path / "e").values()]
    assert sorted(found) == sorted(scores)[-2:]
    assert app([*flags, "--view", "map"], standalone_mode=False) == 2


# -- names -----------------------------------------------------------------------------------------------------

HOSTILE = (
    "../../etc/passwd",
    "/root/.ssh",
    "a.b/c.tar.gz.png",
    "<b>&\"'`$(x)",
    "صورة.png",
    "x" * 300,
    "",
    "nul\0\n\x1b[2J",
)


def test_keys_are_safe_and_unique() -> None:
    keys = [key_of(row, name) for row in (0, 7, 10**9) for name in HOSTILE]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{9,80}", key) for key in keys)
    assert len({key_of(row, "same") for row in range(100)}) == 100
    assert key_of(17, "ant/003.png") == "00000017_ant_003_png"


def test_names_of_arrays_stay_apart_and_in_their_folder(store: Store) -> None:
    spec = store.array(GRADIENT).spec
    assert name_of(spec) == "predicted__gradient"
    assert name_of(spec.model_copy(update={"method": "gradcam++"})) == "predicted__gradcam++"
    pairs = [(target, method) for target in (*HOSTILE, "..", "a%2Fb", "a/b") for method in ("x", "../x", ".")]
    names = [name_of(spec.model_copy(update={"target": target, "method": method})) for target, method in pairs]
    assert len(set(names)) == len(names)
    assert not any("/" in name or "\0" in name or name in (".", "..") for name in names)


@pytest.mark.parametrize("to", TO)
def test_hostile_names_stay_in_the_folder(tmp_path: Path, to: str) -> None:
    rng = np.random.default_rng(0)
    names = [
        "up..%2F..%2Fup.png",
        "a.b.c/d.e.png",
        "a b/<i>&'.png",
        "صورة/\u202eغلط.png",
        f"{'y' * 120}/{'x' * 200}.png",
    ]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "in" / name)
    run_inline(images=str(tmp_path / "in"), out=str(tmp_path / "s"))
    others = set(tmp_path.rglob("*"))
    assert run(tmp_path / "s", to, tmp_path / "e")[0] == 0
    assert all(path.is_relative_to(tmp_path / "e") for path in set(tmp_path.rglob("*")) - others)
    if to == "webdataset":
        assert sorted(json.loads(one["json"])["sample_id"] for one in samples(tmp_path / "e").values()) == sorted(names)
        with tarfile.open(tmp_path / "e/maps-00000.tar") as tar:
            assert all("/" not in member.name and ".." not in member.name for member in tar)
    if to == "png":
        with (tmp_path / "e/pictures.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        assert {line["sample_id"] for line in table} == set(names) and len({line["file"] for line in table}) == 10


# -- webdataset ------------------------------------------------------------------------------------------------


# It leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_what_the_store_has(
    finished: Path, store: Store, explained: list[dict[str, Any]], tmp_path: Path
) -> None:
    run(finished, "webdataset", tmp_path, rows_per_part=16, originals=True)
    shards = str(tmp_path / "maps-{00000..00002}.tar")
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert [sample["json"]["row"] for sample in found] == [line["row"] for line in explained]
    assert len({sample["__key__"] for sample in found}) == 40
    for sample, line in zip(found, explained, strict=True):
        for path in store.arrays:
            values = sample[f"{path.replace('/', '__')}.npy"]
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, store.maps(path, [line["row"]])[0])
        assert sample["json"] == line
        assert sample["jpg"].shape == (line["height"], line["width"], 3)
    assert samples(tmp_path).keys() == {sample["__key__"] for sample in found}
    gc.collect()


def test_json_lines_are_json(tree: Path, tmp_path: Path) -> None:
    """What is not finite in the index has no word in JSON."""
    from jobs.export.webdataset import _json

    line = {"row": 3, "score": float("nan"), "max": float("inf"), "label": None, "sample_id": "ü"}
    assert json.loads(_json(line)) == {"row": 3, "score": None, "max": None, "label": None, "sample_id": "ü"}


def test_an_image_that_no_jpeg_holds_is_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (65_501, 1)).save(tmp_path / "in/line.png")
    run_inline(images=str(tmp_path / "in"), out=str(tmp_path / "s"))
    assert run(tmp_path / "s", "webdataset", tmp_path / "e", originals=True)[0] == 3
    assert [one["what"] for one in lacking(tmp_path / "e")] == ["image"]
    assert [set(one) for one in samples(tmp_path / "e").values()] == [{"json", "predicted__gradient.npy"}]


@pytest.mark.parametrize("to", TO)
def test_an_image_that_is_gone_or_another_is_told(tree: Path, tmp_path: Path, to: str) -> None:
    """Also one of the same size in bytes, pixels and with the same time, which only its hash tells."""
    images = shutil.copytree(tree, tmp_path / "tree")
    gone, other = images / "bee/001.png", images / "cat/other.bmp"
    Image.new("RGB", (20, 20), "red").save(other)
    run_inline(images=str(images), out=str(tmp_path / "s"), unit_size=8)
    gone.unlink()
    stat = other.stat()
    Image.new("RGB", (20, 20), "blue").save(other)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    keys = {"originals": True} if to == "webdataset" else {}
    assert run(tmp_path / "s", to, tmp_path / "e", **keys)[0] == 3
    told = {one["sample_id"]: one for one in lacking(tmp_path / "e") if one["sample_id"] not in BROKEN}
    assert told.keys() == {"bee/001.png", "cat/other.bmp"} and "bytes have changed" in told["cat/other.bmp"]["reason"]
    needed = to in ("virelay", "quantus")
    assert all(one["what"] == ("row" if needed else "image") and one["reason"] for one in told.values())
    if to == "webdataset":  # the map is there all the same
        key = next(key for key in samples(tmp_path / "e") if "bee_001" in key)
        assert set(samples(tmp_path / "e")[key]) == {"json", "predicted__gradient.npy"}
    if to == "png":
        pictures = [path.name.split(".")[2] for path in (tmp_path / "e/pictures").glob("*bee_001*")]
        assert pictures == ["map"]


# -- png -------------------------------------------------------------------------------------------------------


def test_pictures_are_as_large_as_the_originals(finished: Path, store: Store, tmp_path: Path) -> None:
    run(finished, "png", tmp_path, rows=[5, 2], arrays=[GRADIENT, INPUT_X], views=["map", "overlay", "mask"])
    with (tmp_path / "pictures.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(line["row"]) for line in table] == [5] * 6 + [2] * 6
    assert {line["file"] for line in table} == {f"pictures/{path.name}" for path in (tmp_path / "pictures").iterdir()}
    for line in table:
        own = store.lines([int(line["row"])]).to_pylist()[0]
        assert line["class_name"] == own["predicted__class_name"]
        with Image.open(tmp_path / line["file"]) as picture:
            assert picture.size == (own["width"], own["height"]) and picture.mode == "RGB"


def test_a_picture_is_its_map_in_the_look_asked_for(tmp_path: Path) -> None:
    """Of images that the model sees as they are, a picture of the map is the map's colours, pixel by pixel."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"in/{name}.png")
    run_inline(images=str(tmp_path / "in"), out=str(tmp_path / "s"), methods=("input_x_gradient", "gradient"))
    look = Look(cmap="viridis", clip=90, blur=1, invert=True)
    run(tmp_path / "s", "png", tmp_path / "e", views=["map"], look=look)
    found = open_store(str(tmp_path / "s"))
    for array in found.arrays.values():
        path = tmp_path / f"e/pictures/00000001_b_png.{name_of(array)}.map.png"
        expected = draw_map(found.maps(array.path, [1])[0], look, signed=not array.nonnegative)
        with Image.open(path) as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected)


def test_kept_channels_have_pictures(tree: Path, tmp_path: Path) -> None:
    run_inline(images=str(tree), out=str(tmp_path / "s"), limit=8, unit_size=8, methods="all=gradient(reduction=none)")
    assert run(tmp_path / "s", "png", tmp_path / "e", rows=[0, 1])[0] == 0
    assert len(list((tmp_path / "e/pictures").iterdir())) == 4


# -- quantus ---------------------------------------------------------------------------------------------------


def test_quantus_gets_what_the_model_saw_and_said(
    finished: Path, store: Store, explained: list[dict[str, Any]], tmp_path: Path
) -> None:
    run(finished, "quantus", tmp_path, rows_per_part=16)
    for path, target in ((GRADIENT, "predicted"), ("label/input_x_gradient", "label")):
        parts = [np.load(file) for file in sorted((tmp_path / path.replace("/", "__")).glob("*.npz"))]
        x, y, a, rows = (
            np.concatenate([part[name] for part in parts]) for name in ("x_batch", "y_batch", "a_batch", "row")
        )
        assert rows.tolist() == [line["row"] for line in explained]
        assert x.shape == (40, 3, 16, 16) and x.dtype == np.float32 and y.dtype == np.int64
        assert a.shape == (40, 1, 16, 16) and a.dtype == np.float32
        np.testing.assert_array_equal(a[:, 0], store.maps(path, rows))
        with torch.no_grad():
            scores = tiny().eval()(torch.from_numpy(x)).numpy()[np.arange(40), y]
        np.testing.assert_allclose(scores, [line[f"{target}__score"] for line in explained], rtol=1e-4, atol=1e-5)


def test_quantus_takes_kept_channels_and_no_target_that_is_no_class(tree: Path, tmp_path: Path) -> None:
    run_inline(
        images=str(tree), out=str(tmp_path / "s"), limit=8, unit_size=8, methods="all=gradient(reduction=none)",
        targets=("predicted", "mix=weighted:{0: 1.0, 1: -1.0}"),
    )  # fmt: skip
    with pytest.raises(Refused, match=r"mix/all explains no class.*leave it out"):
        run(tmp_path / "s", "quantus", tmp_path / "e", rows=[0, 1])
    assert run(tmp_path / "s", "quantus", tmp_path / "f", rows=[0, 1], arrays=["predicted/all"])[0] == 0
    assert np.load(tmp_path / "f/predicted__all/part-00000.npz")["a_batch"].shape == (2, 3, 16, 16)


# -- virelay: its format, point by point; test_export_tools.py has its own loader read it -------------------------


def test_virelay_has_every_sample_with_its_attribution(
    finished: Path, store: Store, explained: list[dict[str, Any]], tmp_path: Path
) -> None:
    run(finished, "virelay", tmp_path, rows_per_part=16)
    rows = [line["row"] for line in explained]
    labels = json.loads((tmp_path / "label_map.json").read_text())
    assert [(one["index"], one["name"]) for one in labels] == [
        (0, "ant"), (1, "bee"), (2, "cat"), (3, "dog"), (4, "elk"), (5, "unknown"),
    ]  # fmt: skip
    with h5py.File(tmp_path / "inputs.h5") as inputs:
        assert inputs["data"].shape == (40, 3, 16, 16) and inputs["data"].dtype == np.uint8
        assert inputs["label"].dtype == np.uint16 and inputs["row"][:].tolist() == rows
        np.testing.assert_array_equal(inputs["label"][:], [line["label"] for line in explained])
        with Image.open(Path(store.run.config.images[0]) / explained[7]["sample_id"]) as image:
            expected = store.run.preprocessing.apply(image.convert("RGB"))
        np.testing.assert_array_equal(inputs["data"][7], expected.transpose(2, 0, 1))
    for path in store.arrays:
        name = path.replace("/", "__")
        project = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())["project"]
        assert project["dataset"]["path"] == "inputs.h5" and project["attributions"]["sources"] == [f"{name}.h5"]
        assert project["attributions"]["attribution_strategy"] == {"p": "predicted_label", "l": "true_label"}[path[0]]
        assert "analyses" not in project
        with h5py.File(tmp_path / f"{name}.h5") as found:
            assert "index" not in found and found["prediction"].shape == (40, 5)
            assert found["attribution"].shape == (40, 3, 16, 16) and found["attribution"].dtype == np.float32
            np.testing.assert_array_equal(found["attribution"][:].sum(axis=1), store.maps(path, rows))
            predicted = [line["predicted__class"] for line in explained]
            np.testing.assert_array_equal(found["prediction"][:].argmax(axis=1), predicted)
            for one, line in zip(found["prediction"][:], explained, strict=True):
                assert one[line["label__class"]] == np.float32(line["label__probability"])


def test_a_grey_model_has_grey_inputs_and_viewable_images(tree: Path, tmp_path: Path) -> None:
    run_inline(
        images=str(tree), out=str(tmp_path / "s"), limit=8, unit_size=8, model="python:factories:grey", channels=1,
        mean="0.5", std="0.25", methods="all=gradient(reduction=none)",
    )  # fmt: skip
    for to in ("virelay", "quantus"):
        run(tmp_path / "s", to, tmp_path / to, rows=[0, 1])
    part = np.load(tmp_path / "quantus/predicted__all/part-00000.npz")
    assert part["x_batch"].shape == part["a_batch"].shape == (2, 1, 16, 16)
    with h5py.File(tmp_path / "virelay/inputs.h5") as inputs:
        data = inputs["data"][:]
    assert data.shape == (2, 3, 16, 16) and (data == data[:, :1]).all()
    np.testing.assert_allclose(part["x_batch"], (data[:, :1] / 255 - 0.5) / 0.25, atol=1e-6)
    with h5py.File(tmp_path / "virelay/predicted__all.h5") as found:
        np.testing.assert_array_equal(found["attribution"][:].sum(axis=1), part["a_batch"][:, 0])


def test_virelay_learns_which_samples_have_an_attribution(partial: Path, tmp_path: Path) -> None:
    run(partial, "virelay", tmp_path, rows_per_part=8, rows=[19, 1, 0, 2, 6])
    with h5py.File(tmp_path / "inputs.h5") as inputs:
        assert inputs["row"][:].tolist() == [19, 1, 0, 2, 6]
        assert inputs["label"][:].tolist() == [5, 1, 0, 5, 1]  # 5: unknown
    with h5py.File(tmp_path / "label__gradient.h5") as found:
        assert found["index"][:].tolist() == [1, 2, 4]
        np.testing.assert_array_equal(
            found["attribution"][:, 0], open_store(str(partial)).maps("label/gradient", [1, 0, 6])
        )


def audited(finished: Path, where: Path) -> Path:
    """A copy of the store with an audit of one array: class 0 has two clusters, class 1 one, class 2 no place."""
    copy = shutil.copytree(finished, where)
    lines = [line for line in open_store(str(finished)).lines().to_pylist() if line["status"] == "ok"]
    values: dict[str, list[Any]] = {name: [None] * len(lines) for name in row_schema().names}
    values["row"] = [line["row"] for line in lines]
    values["class"] = [i % 3 for i in range(len(lines))]
    values["cluster"] = [(i // 3) % 2 if i % 3 == 0 else -1 if i % 3 == 2 else 0 for i in range(len(lines))]
    for axis, sign in (("embed_x", 1), ("embed_y", -1)):
        values[axis] = [None if i % 3 == 2 else sign * float(line["row"]) for i, line in enumerate(lines)]
    (copy / audit_folder(GRADIENT)).mkdir(parents=True)
    pq.write_table(pa.table(values, schema=row_schema()), copy / audit_folder(GRADIENT) / ROWS)
    told = Audit(
        array=GRADIENT, target_spec="predicted", method_spec="gradient", cells=(16, 16), rows=43, mapped=len(lines),
        blank=0, classes=3, alarms=0, seed=0,
    )  # fmt: skip
    (copy / audit_folder(GRADIENT) / AUDIT_JSON).write_text(told.model_dump_json())
    return copy


def test_virelay_gets_no_audit_of_fewer_maps(finished: Path, tmp_path: Path) -> None:
    copy = audited(finished, tmp_path / "s")
    place = copy / audit_folder(GRADIENT) / AUDIT_JSON
    place.write_text(place.read_text().replace('"mapped":40', '"mapped":39'))
    run(copy, "virelay", tmp_path / "e", arrays=[GRADIENT])
    assert "analyses" not in yaml.safe_load((tmp_path / "e/predicted__gradient.yaml").read_text())["project"]


def test_virelay_shows_what_an_audit_found(finished: Path, tmp_path: Path) -> None:
    copy = audited(finished, tmp_path / "s")
    rows = [40, 0, 1, 2, 3, 6, 7]
    later = (copy / "audit").rename(tmp_path / "later")
    run(copy, "virelay", tmp_path / "e", rows=rows, arrays=[GRADIENT, INPUT_X])
    assert "analyses" not in yaml.safe_load((tmp_path / "e/predicted__gradient.yaml").read_text())["project"]
    later.rename(copy / "audit")
    run(copy, "virelay", tmp_path / "e", rows=rows, arrays=[GRADIENT, INPUT_X])
    project = yaml.safe_load((tmp_path / "e/predicted__gradient.yaml").read_text())["project"]
    assert project["analyses"] == [
        {"analysis_method": "saliency audit", "sources": ["predicted__gradient.analysis.h5"]}
    ]
    assert "analyses" not in yaml.safe_load((tmp_path / "e/predicted__input_x_gradient.yaml").read_text())["project"]
    audit = {line["row"]: line for line in pq.read_table(copy / audit_folder(GRADIENT) / ROWS).to_pylist()}
    names = {one["word_net_id"]: one["index"] for one in json.loads((tmp_path / "e/label_map.json").read_text())}
    with h5py.File(tmp_path / "e/predicted__gradient.analysis.h5") as found:
        assert {names[category] for category in found} == {0, 1}
        seen = []
        for category, group in found.items():
            own = [rows[position] for position in group["index"][:]]
            seen += own
            assert all(audit[row]["class"] == names[category] for row in own)
            assert group["cluster/spectral"][:].tolist() == [audit[row]["cluster"] for row in own]
            assert group["embedding/spectral"][:].tolist() == [[row, -row] for row in own]
        assert sorted(seen) == sorted(row for row in rows if audit[row]["class"] < 2)
