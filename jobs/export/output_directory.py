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

from jobs.util.csv_escaping import FormulaSafeWriter
from saliency_core.errors import InvalidRequestError

RECIPE, PARTS, LEFT_OUT = "export.json", "parts", "left_out.csv"
WHOLE = "row"
_PARTIAL = ".partial"


class LeftOut(BaseModel):
    """``what``: the array, or the image, that is missing of the row; WHOLE where nothing of it is there."""

    row: int
    sample_id: str
    what: str
    reason: str
    uri: str = ""


class Commit(BaseModel):
    """``left_out``: what the part's files lack."""

    rows: int
    left_out: list[LeftOut]


class Folder:
    """A local directory, for one export."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def claimed(self, recipe: dict[str, Any]) -> Iterator[None]:
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
            self._claim(recipe)
            yield
        finally:
            os.close(descriptor)

    def _claim(self, recipe: dict[str, Any]) -> None:
        try:
            found = json.loads((self.path / RECIPE).read_bytes())
        except FileNotFoundError:
            self._refuse_foreign()
            with self.writing(RECIPE) as file:
                file.write((json.dumps(recipe, indent=2) + "\n").encode())
            return
        except ValueError:
            found = {}
        differing = [key for key in recipe if not isinstance(found, dict) or found.get(key) != recipe[key]]
        if differing:
            raise InvalidRequestError(
                f"--output {self.path} holds another export, or one of the store as it was before it changed (what "
                f"differs: {', '.join(differing)}), and nothing is overwritten: choose another."
            )

    def _refuse_foreign(self) -> None:
        there = sorted(entry.name for entry in self.path.iterdir() if not entry.name.endswith(_PARTIAL))
        if there:
            raise InvalidRequestError(
                f"--output {self.path} is not empty and no export of ours (it holds {', '.join(there[:3])} …), and "
                "nothing is overwritten: choose another, or empty it yourself."
            )

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """The path of a file to be made, which is ``name`` afterwards, and not at all where the making fails."""
        place = self.path / name
        place.parent.mkdir(exist_ok=True)
        partial = place.with_name(f".{place.name}{_PARTIAL}")
        partial.unlink(missing_ok=True)
        try:
            yield partial
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """The same, open."""
        with self.making(name) as path, path.open("wb") as file:
            yield file

    def commit(self, part: int, commit: Commit) -> None:
        """Says that the part's files are there."""
        with self.writing(f"{PARTS}/{_part_name(part)}") as file:
            file.write((commit.model_dump_json() + "\n").encode())

    def is_committed(self, part: int) -> bool:
        return (self.path / PARTS / _part_name(part)).exists()

    def commits(self, parts: int) -> Iterator[Commit]:
        """Those of parts 0 to ``parts`` − 1, which all exist."""
        for part in range(parts):
            yield Commit.model_validate_json((self.path / PARTS / _part_name(part)).read_bytes())

    def list_left_out(self, parts: int) -> None:
        """Writes left_out.csv."""
        with self.making(LEFT_OUT) as path, path.open("w", newline="", encoding="utf-8") as file:
            lines = FormulaSafeWriter(file)
            lines.write(LeftOut.model_fields)
            for commit in self.commits(parts):
                for one in commit.left_out:
                    lines.write(one.model_dump().values())


def _part_name(part: int) -> str:
    return f"part-{part:05d}.json"
