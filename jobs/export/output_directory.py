"""The folder that an export fills: whose it is, and which parts of it are done.

PATH/
  export.json             what is exported; a folder with another one, or with anything else in it, is refused
  parts/part-00000.json   the commit of a part: it comes after the part's files, and says what they lack
  left_out.csv            when all are done: every row, or map of a row, that is not among the files, and why

A file appears under its name when it is whole; until then it is ``.NAME.partial``.
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

from jobs.util.csv_escaping import SafeWriter
from saliency_core.errors import InvalidRequestError

RECIPE_JSON, PARTS, LEFT_OUT_CSV = "export.json", "parts", "left_out.csv"
WHOLE_ROW = "row"
_PARTIAL = ".partial"


class LeftOut(BaseModel):
    """``what``: the array, or the image, that is missing of the row; WHOLE where nothing of it is there."""

    row: int
    sample_id: str
    what: str
    reason: str
    uri: str = ""


class PartCommit(BaseModel):
    """``left_out``: what the part's files lack."""

    rows: int
    left_out: list[LeftOut]


class ExportFolder:
    """A local directory, for one export."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def claim(self, recipe: dict[str, Any]) -> Iterator[None]:
        """Makes the folder, or goes on in it; nobody else does so meanwhile.

        Raises InvalidRequestError where it holds anything but an export with the same ``recipe``, and where it cannot
        be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise InvalidRequestError(
                f"--output {self.path} cannot be made: {error.strerror}. Choose another."
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a kill lets go of it
            except BlockingIOError:
                raise InvalidRequestError(
                    f"--output {self.path}: another export is writing there. Wait for its end, or choose another."
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
                f"--output {self.path} holds another export, or one of the store as it was before it changed (what "
                f"differs: {', '.join(differing)}), and nothing is overwritten: choose another."
            )

    def _refuse_other_files(self) -> None:
        names = sorted(path.name for path in self.path.iterdir() if not path.name.endswith(_PARTIAL))
        if names:
            raise InvalidRequestError(
                f"--output {self.path} is not empty and no export of ours (it holds {', '.join(names[:3])} …), and "
                "nothing is overwritten: choose another, or empty it yourself."
            )

    @contextmanager
    def atomic_path(self, name: str) -> Iterator[Path]:
        """The path of a file to be made, which is ``name`` afterwards, and not at all where the making fails."""
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
        """The same, open."""
        with self.atomic_path(name) as path, path.open("wb") as file:
            yield file

    def commit(self, part: int, commit: PartCommit) -> None:
        """Says that the part's files are there."""
        with self.atomic_file(f"{PARTS}/{_part_name(part)}") as file:
            file.write((commit.model_dump_json() + "\n").encode())

    def is_committed(self, part: int) -> bool:
        return (self.path / PARTS / _part_name(part)).exists()

    def read_commits(self, parts: int) -> Iterator[PartCommit]:
        """Those of parts 0 to ``parts`` − 1, which all exist."""
        for part in range(parts):
            yield PartCommit.model_validate_json((self.path / PARTS / _part_name(part)).read_bytes())

    def write_left_out(self, parts: int) -> None:
        """Writes left_out.csv."""
        with self.atomic_path(LEFT_OUT_CSV) as path, path.open("w", newline="", encoding="utf-8") as file:
            lines = SafeWriter(file)
            lines.write(LeftOut.model_fields)
            for commit in self.read_commits(parts):
                for entry in commit.left_out:
                    lines.write(entry.model_dump().values())


def _part_name(part: int) -> str:
    return f"part-{part:05d}.json"
