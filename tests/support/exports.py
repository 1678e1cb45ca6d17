"""Runs exports, reads their directories, and makes an audited store to export."""

from __future__ import annotations

import csv
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import h5py
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from jobs.audit.audit_schema import AUDIT_JSON, ROWS, Audit, audit_folder, row_schema
from jobs.export.export_command import export
from jobs.store.store_reader import open_store

GRADIENT, INPUT_X = "predicted/gradient", "predicted/input_x_gradient"
BROKEN = ("ant/broken.jpg", "cat/empty.png", "dog/torn.png")


def run(out: Path, to: str, output: Path, **keys: Any) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=300)
    code = export(str(out), console, to=to, output=str(output), **keys)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def files(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file by path; of HDF5 files with links only these, as the files also hold a time."""
    return {
        str(path.relative_to(folder)): pointers(path) or path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pointers(path: Path) -> bytes:
    if path.suffix != ".h5":
        return b""
    with h5py.File(path) as file:
        virtual = {key: array for key, array in file.items() if array.is_virtual}
        links = {
            key: (array.shape, [(s.file_name, s.dset_name) for s in array.virtual_sources()])
            for key, array in virtual.items()
        }
    return repr(links).encode() if links else b""


def lacking(folder: Path) -> list[dict[str, str]]:
    with (folder / "left_out.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """Returns extension → bytes for each sample key, as ``tarfile`` reads them."""
    by_key: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                by_key.setdefault(key, {})[extension] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return by_key


def audited(finished: Path, where: Path) -> Path:
    """Copies the store and adds an audit of one array: class 0 has two clusters, class 1 one, class 2 no embedding."""
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
    audit = Audit(
        array=GRADIENT, target_spec="predicted", method_spec="gradient", cells=(16, 16), rows=43, mapped=len(lines),
        blank=0, classes=3, alarms=0, seed=0, overall={},
    )  # fmt: skip
    (copy / audit_folder(GRADIENT) / AUDIT_JSON).write_text(audit.model_dump_json())
    return copy
