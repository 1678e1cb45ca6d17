"""The records of stores, such as run.json: all that a stage, a reader or a later run needs about a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from jobs.config.explain_config import ExplainConfig, MapDtype
from jobs.config.job_config import JobConfig
from jobs.store.layout import RUN_JSON
from jobs.store.software_versions import Software
from jobs.util import bounds
from saliency_core.errors import InvalidRequestError
from saliency_core.model.preprocessing import Preprocessing

FORMAT_VERSION = 1
STATISTICS = ("min", "max", "mean", "l1", "l2")


class ArraySpec(BaseModel):
    """One Zarr array, ``maps.zarr/<target>/<method>``, and the array ``<method>_scale`` beside it if maps are scaled.

    ``residual`` is True if its maps have a completeness identity; the index then has each map's distance from it.
    """

    model_config = ConfigDict(frozen=True)

    target: str
    method: str
    target_spec: str
    method_spec: str
    dtype: MapDtype
    item_shape: tuple[int, ...]
    nonnegative: bool
    residual: bool = False

    @property
    def path(self) -> str:
        return f"{self.target}/{self.method}"

    @property
    def scale_path(self) -> str:
        """The path of the array of scales; only scaled arrays have one."""
        return f"{self.path}_scale"

    @property
    def column(self) -> str:
        """The prefix of the array's columns in the index."""
        return f"{self.target}__{self.method}"

    @property
    def statistics(self) -> tuple[str, ...]:
        """The last parts of the names of the array's columns."""
        return (*STATISTICS, *(["scale"] if self.scaled else []), *(["residual"] if self.residual else []))

    @property
    def dimensions(self) -> tuple[str, ...]:
        return ("row", "channel", "y", "x") if len(self.item_shape) == 3 else ("row", "y", "x")

    @property
    def scaled(self) -> bool:
        return self.dtype != "float32"

    def item_bytes(self) -> int:
        """Bytes of one map, uncompressed."""
        size = {"float32": 4, "float16": 2, "uint8": 1, "int8": 1}[self.dtype]
        for length in self.item_shape:
            size *= length
        return size


class Record(BaseModel):
    """The description of a store of any job, in the object ``KEY``. A directory without it is not a store.

    ``fingerprint``: the settings and inputs that must be the same when the run is resumed. ``versions`` (packages),
    ``arithmetic`` (the version of this program's calculations) and ``code`` (digests of the user's code) describe the
    software of the first session; ``later_software``: other software of later sessions that had units to add;
    ``session_software``: the digest of the software of the latest session that had units to add.
    """

    model_config = ConfigDict(frozen=True)
    KEY: ClassVar[str]

    format_version: int = FORMAT_VERSION
    config: JobConfig
    fingerprint: dict[str, Any]
    rows: int = Field(ge=1, le=bounds.COUNT)
    unit_size: int = Field(ge=1, le=bounds.COUNT)
    device: str
    preprocessing_: dict[str, Any] = Field(alias="preprocessing")
    probe: dict[str, Any] = {}
    """What was measured of the model on made-up images; empty in old stores."""
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    arithmetic: int | None = None
    code: dict[str, str | None] = {}
    later_software: tuple[Software, ...] = ()
    session_software: str = ""

    @property
    def software(self) -> Software:
        """The software that the store was begun with."""
        return Software(arithmetic=self.arithmetic, versions=self.versions, code=self.code)

    @property
    def all_software(self) -> dict[str, Software]:
        """All software that made units of the store, by digest."""
        return {software.digest: software for software in (self.software, *self.later_software)}

    @property
    def session(self) -> Software:
        """The software that this session was planned with."""
        return self.all_software.get(self.session_software, self.software)

    def find_software(self, digest: str) -> Software | None:
        """The software with the digest that a unit's commit names; None if the record does not have it."""
        return self.all_software.get(digest) if digest else self.software

    def with_notes(self, notes: Sequence[str]) -> Self:
        """A copy of the record, with more notes."""
        return self.model_copy(update={"notes": (*self.notes, *notes)})

    @property
    def units(self) -> int:
        return -(-self.rows // self.unit_size)

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_dict(self.preprocessing_)

    def unit_rows(self, unit: int) -> range:
        """The rows of a unit."""
        return range(unit * self.unit_size, min((unit + 1) * self.unit_size, self.rows))

    def to_json(self) -> bytes:
        return (self.model_dump_json(indent=2, by_alias=True) + "\n").encode()


class Run(Record):
    """The content of run.json. Only ``totals``, ``state`` and the software change after the plan.

    ``state`` is "running"; "finished"; or "reopened", while a session works on a store that has SHA256SUMS already.
    """

    KEY = RUN_JSON

    state: str = "running"
    config: ExplainConfig
    micro_batch: int = Field(ge=1, le=bounds.COUNT)
    class_names: tuple[str, ...] | None
    n_classes: int = Field(ge=1, le=bounds.COUNT)
    target_specs: dict[str, str]
    arrays: tuple[ArraySpec, ...]
    head: str = "softmax"
    """How scores become probabilities: softmax, sigmoid, or logit (a single logit, for two classes)."""
    passes: float = 1.0
    agreement: dict[str, float] = {}
    ignored: dict[str, int] = {}
    totals: dict[str, Any] = {}

    @property
    def opened_state(self) -> str:
        """The state that a session gives the store until it has finalized it.

        A store that was finished never becomes "running" again: with its SHA256SUMS, that would look like damage.
        """
        return "running" if self.state == "running" else "reopened"

    @property
    def prediction(self) -> str | None:
        """The target whose class is the model's prediction; None if there is none."""
        for target, spec in self.target_specs.items():
            if spec == "predicted" or spec.startswith("top:1 "):
                return target
        return None

    @property
    def requested_units(self) -> range:
        """The units that this session completes: all, or those of the first --limit rows."""
        limit = self.config.limit
        return range(self.units if limit is None else min(self.units, -(-limit // self.unit_size)))

    @property
    def chunk_rows(self) -> int:
        """Rows in one chunk: the largest of 8, 4, 2 and 1 that divides the unit size."""
        return next(rows for rows in (8, 4, 2, 1) if self.unit_size % rows == 0)


AnyRecord = TypeVar("AnyRecord", bound=Record)


def parse_record(kind: type[AnyRecord], data: bytes, *, where: str) -> AnyRecord:
    """Parses a record. Raises InvalidRequestError if it is damaged, or of a format that this version cannot read."""
    version = unsupported_format(data)  # checked first, because another format may have other fields
    if version is not None:
        raise InvalidRequestError(
            f"{where} is of store format {version}, this program reads {FORMAT_VERSION}: use the version that made it."
        )
    try:
        return kind.model_validate_json(data)
    except ValueError as error:
        first = " ".join(str(error).splitlines()[:3])
        raise InvalidRequestError(f"{where}/{kind.KEY} cannot be read, so the store cannot be used: {first}") from error


def unsupported_format(data: bytes) -> int | None:
    """The store format that a record names, if it is not this program's; None if it is, or if none is named."""
    try:
        version = json.loads(data)["format_version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return version if type(version) is int and version != FORMAT_VERSION else None


def checked_json(record: Record) -> bytes:
    """The record as JSON. Raises InvalidRequestError if it does not parse to the same record again.

    JSON has no infinity, for example: it would be written as null, and no later command could open the store.
    """
    data = record.to_json()
    try:
        same, reason = type(record).model_validate_json(data).to_json() == data, "other values come back"
    except ValueError as error:
        same, reason = False, " ".join(str(error).splitlines()[:3])
    if not same:
        raise InvalidRequestError(
            f"{record.KEY} could not be read again as it would be written ({reason}), so no command could open --out: "
            "nothing was written. Change that value."
        )
    return data
