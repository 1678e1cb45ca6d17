"""Exports, what lies in their folders, and an audited store to export."""

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
        blank=0, classes=3, alarms=0, seed=0, overall={},
    )  # fmt: skip
    (copy / audit_folder(GRADIENT) / AUDIT_JSON).write_text(told.model_dump_json())
    return copy
