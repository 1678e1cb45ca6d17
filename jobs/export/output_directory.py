"""Manages the directory of an export: what it holds and which parts are written.

PATH/
  export.json             what is exported; a directory with another one, or with other files, is refused
  parts/part-00000.json   the commit of a part, written after the part's files; it lists what they lack
  left_out.csv            written when all parts are: every row, or map or image of a row, that the files lack, and why

A file has its name only when it is complete; until then it is ``.NAME.partial``.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from jobs.util.csv_escaping import FormulaSafeWriter
from saliency_core.errors import InvalidRequestError

RECIPE_JSON, PARTS, LEFT_OUT_CSV = "export.json", "parts", "left_out.csv"
WHOLE_ROW = "row"
_PARTIAL = ".partial"


class LeftOut(BaseModel):
    """A row of left_out.csv; ``what``: the array's path or "image" that is missing, or WHOLE_ROW."""

    row: int
    sample_id: str
    what: str
    reason: str
    uri: str = ""


class PartCommit(BaseModel):
    """The record that a part is written; ``left_out``: what its files lack."""

    rows: int
    left_out: list[LeftOut]


class ExportFolder:
    """The local directory of one export."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def claim(self, recipe: dict[str, Any]) -> Iterator[None]:
        """Makes the directory, or resumes in it, and locks it against other exports.

        Raises `InvalidRequestError` if it cannot be made, or holds anything but an export with the same ``recipe``.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise InvalidRequestError(
                f"--output {self.path} cannot be made: {error.strerror}. Choose another directory."
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
            except BlockingIOError:
                raise InvalidRequestError(
                    f"--output {self.path}: another export is writing there. Wait until it ends, or choose "
                    "another directory."
                ) from None
            self._write_or_check_recipe(recipe)
            yield
        finally:
            os.close(descriptor)

    def _write_or_check_recipe(self, recipe: dict[str, Any]) -> None:
        try:
            stored = json.loads((self.path / RECIPE_JSON).read_bytes())
        except FileNotFoundError:
            self._refuse_other_files()
            with self.atomic_file(RECIPE_JSON) as file:
                file.write((json.dumps(recipe, indent=2) + "\n").encode())
            return
        except ValueError:
            stored = {}
        differing = [key for key in recipe if not isinstance(stored, dict) or stored.get(key) != recipe[key]]
        if differing:
            raise InvalidRequestError(
                f"--output {self.path} holds another export, or one of the store before it changed (what "
                f"differs: {', '.join(differing)}), and nothing is overwritten: choose another directory."
            )

    def _refuse_other_files(self) -> None:
        names = sorted(path.name for path in self.path.iterdir() if not path.name.endswith(_PARTIAL))
        if names:
            raise InvalidRequestError(
                f"--output {self.path} is not empty and not an export (it holds {', '.join(names[:3])} …), and "
                "nothing is overwritten: choose another directory, or empty this one."
            )

    @contextmanager
    def atomic_path(self, name: str) -> Iterator[Path]:
        """Yields a temporary path; its file is renamed to ``name`` afterwards, or removed if there was an exception."""
        final = self.path / name
        final.parent.mkdir(exist_ok=True)
        partial = final.with_name(f".{final.name}{_PARTIAL}")
        partial.unlink(missing_ok=True)
        try:
            yield partial
            partial.replace(final)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def atomic_file(self, name: str) -> Iterator[IO[bytes]]:
        """Yields `atomic_path`'s file, open for writing."""
        with self.atomic_path(name) as path, path.open("wb") as file:
            yield file

    def commit(self, part: int, commit: PartCommit) -> None:
        """Records that the part's files are complete."""
        with self.atomic_file(f"{PARTS}/{_part_name(part)}") as file:
            file.write((commit.model_dump_json() + "\n").encode())

    def is_committed(self, part: int) -> bool:
        return (self.path / PARTS / _part_name(part)).exists()

    def read_commits(self, parts: int) -> Iterator[PartCommit]:
        """Reads the commits of parts 0 to ``parts`` − 1, which must exist."""
        for part in range(parts):
            yield PartCommit.model_validate_json((self.path / PARTS / _part_name(part)).read_bytes())

    def write_left_out(self, parts: int) -> None:
        """Writes left_out.csv from the commits of all parts."""
        with self.atomic_path(LEFT_OUT_CSV) as path, path.open("w", newline="", encoding="utf-8") as file:
            lines = FormulaSafeWriter(file)
            lines.write(LeftOut.model_fields)
            for commit in self.read_commits(parts):
                for entry in commit.left_out:
                    lines.write(entry.model_dump().values())


def _part_name(part: int) -> str:
    return f"part-{part:05d}.json"
