"""Tests that every row of a store is unchanged in the files of each format, or is listed as left out."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from rich.console import Console

from jobs.cli.app import app
from jobs.config.requested_rows import RowSelection
from jobs.export import selection
from jobs.export.export_command import FORMAT_NAMES
from jobs.export.output_directory import ExportFolder, PartCommit
from jobs.store.store_reader import Store, open_store
from saliency_core.errors import InvalidRequestError
from saliency_core.visualization.map_style import MapStyle
from tests.conftest import TESTS, run_inline
from tests.support.exports import BROKEN, GRADIENT, INPUT_X, files, lacking, run, samples

# -- every format ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMAT_NAMES)
def test_rows_without_a_map_are_counted_and_named(finished: Path, tmp_path: Path, to: str) -> None:
    code, message = run(finished, to, tmp_path / "e", arrays=[GRADIENT])
    assert code == 3 and "3 quarantined" in message and all(name in message for name in BROKEN)
    assert {(entry["sample_id"], entry["what"]) for entry in lacking(tmp_path / "e")} == {
        (name, "row") for name in BROKEN
    }
    code, message = run(finished, to, tmp_path / "whole", arrays=[GRADIENT], selection=RowSelection(rows=[1, 0]))
    assert code == 0 and "left out" not in message and lacking(tmp_path / "whole") == []


@pytest.mark.parametrize("to", FORMAT_NAMES)
def test_an_array_that_a_row_lacks_is_named(partial: Path, tmp_path: Path, to: str) -> None:
    code, _ = run(partial, to, tmp_path / "e")
    assert code == 3
    without = [row for row in range(20) if row % 5 >= 2]
    assert [(int(entry["row"]), entry["what"]) for entry in lacking(tmp_path / "e")] == [
        (i, "label/gradient") for i in without
    ]


@pytest.mark.parametrize("to", FORMAT_NAMES)
def test_part_size_changes_no_result_and_memory_is_bounded(
    finished: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of any size have the same rows and values, and few maps are read at once."""
    batch_sizes: list[int] = []
    maps = Store.maps
    monkeypatch.setattr(
        Store, "maps", lambda self, path, rows: (batch_sizes.append(len(rows)), maps(self, path, rows))[1]
    )
    monkeypatch.setattr(selection, "BATCH_ROWS", 5)
    for size in (4, 43):
        run(finished, to, tmp_path / str(size), arrays=[GRADIENT], rows_per_part=size)
    assert max(batch_sizes) <= 5
    assert len(list((tmp_path / "4/parts").iterdir())) == 11
    many_parts, one_part = tmp_path / "4", tmp_path / "43"
    if to == "png":
        assert files(many_parts / "pictures") == files(one_part / "pictures")
    elif to == "webdataset":
        assert samples(many_parts) == samples(one_part) and len(list(many_parts.glob("*.tar"))) == 11
    elif to == "quantus":
        for name in ("x_batch", "y_batch", "a_batch", "row"):
            parts = [np.load(path)[name] for path in sorted(many_parts.glob("*/*.npz"))]
            np.testing.assert_array_equal(np.concatenate(parts), np.load(next(one_part.glob("*/*.npz")))[name])
    else:
        for name in ("inputs", "predicted__gradient"):
            with h5py.File(many_parts / f"{name}.h5") as a, h5py.File(one_part / f"{name}.h5") as b:
                assert set(a) == set(b)
                for key in a:
                    np.testing.assert_array_equal(a[key][:], b[key][:])


def killed(out: Path, to: str, output: Path, **keys: Any) -> None:
    """Exports in another process, which is killed when the fourth part's files are there and its commit is not."""
    script = (
        "import os, signal\n"
        "from rich.console import Console\n"
        "from jobs.export.export_command import export\n"
        "from jobs.export.output_directory import ExportFolder\n"
        "commit = ExportFolder.commit\n"
        "def dies(self, part, commit_record):\n"
        "    if part == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    commit(self, part, commit_record)\n"
        "ExportFolder.commit = dies\n"
        f"export({str(out)!r}, Console(), to={to!r}, output={str(output)!r}, **{keys!r})\n"
    )
    died = subprocess.run([sys.executable, "-c", script], cwd=TESTS.parent, timeout=120, capture_output=True)
    assert died.returncode == -signal.SIGKILL


def stopped(out: Path, to: str, output: Path, **keys: Any) -> None:
    """Exports until Ctrl-C, when the fourth part's files are there and its commit is not."""
    commit = ExportFolder.commit

    def stops(self: ExportFolder, part: int, commit_record: PartCommit) -> None:
        if part == 3:
            raise KeyboardInterrupt
        commit(self, part, commit_record)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ExportFolder, "commit", stops)
        run(out, to, output, **keys)


@pytest.mark.parametrize(
    "to, ended",
    [
        ("webdataset", killed),
        *(pytest.param(to, killed, marks=pytest.mark.slow) for to in FORMAT_NAMES if to != "webdataset"),
        *((to, stopped) for to in FORMAT_NAMES),
    ],
)
def test_an_interrupted_export_repeats_one_part(
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
    commit = ExportFolder.commit
    monkeypatch.setattr(
        ExportFolder,
        "commit",
        lambda self, part, commit_record: (written.append(part), commit(self, part, commit_record))[1],
    )
    code, message = run(finished, to, half, **keys)
    assert code == 3 and "43 of 43 rows" in message and written == [3, 4, 5]
    assert files(half) == files(tmp_path / "whole")
    done = [path for path in before if re.search(r"-0000[012]\.|/export\.json", str(path))]
    assert len(done) >= 4 and all(path.stat().st_mtime_ns == before[path] for path in done)
    run(finished, to, half, **keys)
    assert written == [3, 4, 5] and files(half) == files(tmp_path / "whole")


def test_a_failing_export_leaves_no_file_that_looks_complete(tmp_path: Path) -> None:
    folder = ExportFolder(tmp_path)
    with pytest.raises(OSError, match="full"), folder.atomic_file("data/a.bin") as file:
        file.write(b"half")
        raise OSError("full")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# -- other directories ----------------------------------------------------------------------------------------


def test_a_foreign_folder_is_refused_and_not_touched(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(InvalidRequestError, match=r"thesis\.txt.*nothing is overwritten"):
        run(finished, "png", tmp_path)
    assert files(tmp_path) == {"thesis.txt": b"years"}
    with pytest.raises(InvalidRequestError, match="cannot be made"):
        run(finished, "png", tmp_path / "thesis.txt")


@pytest.mark.parametrize(
    "other, differs",
    [
        ({"to": "webdataset"}, "to"),
        ({"selection": RowSelection(rows=[0, 1])}, "rows"),
        ({"arrays": [INPUT_X]}, "arrays"),
        ({"views": ["mask"]}, "views"),
        ({"style": MapStyle(clip=90)}, "look"),
        ({"rows_per_part": 1}, "rows_per_part"),
    ],
)
def test_another_export_is_refused(finished: Path, tmp_path: Path, other: dict[str, Any], differs: str) -> None:
    keys: dict[str, Any] = {"to": "png", "selection": RowSelection(rows=[0]), "arrays": [GRADIENT]}
    run(finished, output=tmp_path / "e", **keys)
    before = files(tmp_path)
    with pytest.raises(InvalidRequestError, match=rf"another export.*differs: .*{differs}"):
        run(finished, output=tmp_path / "e", **{**keys, **other})
    assert files(tmp_path) == before


def test_a_store_that_changed_is_another_export(tree: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tree, tmp_path / "tree")
    keys = {"images": str(broken), "out": str(tmp_path / "s"), "unit_size": 8}
    run_inline(**keys)
    run(tmp_path / "s", "webdataset", tmp_path / "e")
    moved = shutil.copytree(tmp_path / "s", tmp_path / "moved")
    assert run(moved, "webdataset", tmp_path / "e")[0] == 3  # the same store at another path
    shutil.copy(broken / "dog/003.png", broken / "dog/torn.png")
    from jobs.explain.retry_command import retry

    retry(str(tmp_path / "s"), Console(file=io.StringIO()), runner="inline", workers="auto")
    with pytest.raises(InvalidRequestError, match=r"before it changed.*rows"):
        run(tmp_path / "s", "webdataset", tmp_path / "e")


def test_two_simultaneous_exports_are_refused(finished: Path, tmp_path: Path) -> None:
    with ExportFolder(tmp_path / "e").claim({}), pytest.raises(InvalidRequestError, match="another export is writing"):
        run(finished, "png", tmp_path / "e")


def test_invalid_exports_are_refused_before_anything_is_written(finished: Path, tmp_path: Path) -> None:
    for message, keys in {
        "'hdf'.*virelay, quantus": {"to": "hdf"},
        "must not hold other files": {"to": "png", "output": finished / "pictures"},
        "object store": {"to": "png", "output": "s3://bucket/e"},
        "row 5 twice": {"to": "png", "selection": RowSelection(rows=[5, 4, 5])},
        "no array 'nope/x'": {"to": "png", "arrays": ["nope/x"]},
        "--view.*webdataset has no pictures": {"to": "webdataset", "views": ["map"]},
        "--cmap": {"to": "quantus", "style": MapStyle(invert=True)},
        "--originals": {"to": "virelay", "originals": True},
        "view 'x-ray'": {"to": "png", "views": ["x-ray"]},
        "--rows-per-part 0": {"to": "png", "rows_per_part": 0},
    }.items():
        with pytest.raises(InvalidRequestError, match=message):
            run(finished, **{"output": tmp_path / "e", **keys})
    assert not (tmp_path / "e").exists() and not (finished / "pictures").exists()


def test_an_unfinished_store_is_exported_by_named_rows_only(tree: Path, tmp_path: Path) -> None:
    run_inline(images=str(tree), out=str(tmp_path / "s"), unit_size=8, limit=16)
    with pytest.raises(InvalidRequestError, match=r"not finished.*--rows"):
        run(tmp_path / "s", "webdataset", tmp_path / "e")
    assert run(tmp_path / "s", "webdataset", tmp_path / "e", selection=RowSelection(rows=[3]))[0] == 0
    assert len(samples(tmp_path / "e")) == 1


def test_virelay_without_h5py_names_the_package_to_install(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "jobs.export.virelay", raising=False)
    monkeypatch.delitem(sys.modules, "jobs.export.virelay_analysis", raising=False)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InvalidRequestError, match="pip install h5py"):
        run(finished, "virelay", tmp_path / "e")


def test_the_command_is_the_function(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["export", str(finished), "--to", "webdataset", "--output", str(tmp_path / "e"), "--array", GRADIENT]
    assert app([*flags, "--highest", "predicted__score", "-n", "2"], standalone_mode=False) == 0
    assert "2 of 2 rows exported" in capsys.readouterr().out
    scores = open_store(str(finished)).lines(columns=["predicted__score"])[0].drop_null().to_pylist()
    exported = [json.loads(sample["json"])["predicted__score"] for sample in samples(tmp_path / "e").values()]
    assert sorted(exported) == sorted(scores)[-2:]
    assert app([*flags, "--view", "map"], standalone_mode=False) == 2
