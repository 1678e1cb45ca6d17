"""The software that the bytes of maps depend on: recorded for each unit, and compared when a store is resumed."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from jobs.store.code_digests import code_digests, is_installed
from jobs.util.digests import short_digest
from jobs.util.formatting import format_ranges
from saliency_core.arithmetic_version import ARITHMETIC_VERSION
from saliency_core.errors import InvalidRequestError

if TYPE_CHECKING:
    from torch import nn

    from jobs.config.job_config import JobConfig
    from jobs.store.run_record import AnyRecord, Record

# The packages of the network's classes, such as timm, are recorded, too.
ALWAYS_RECORDED = ("saliency-jobs", "ray", "torch", "torchvision", "numpy", "pillow", "pyarrow", "zarr", "obstore")
LIBRARIES = ("torch", "torchvision", "timm")  # never the user's own code, even if installed from a folder
# No value of a map depends on these. Python: the digest of code is the same for all its versions. Ray and obstore move
# bytes. zarr and pyarrow compress without loss, and each commit has the hashes of their output. The arithmetic version
# represents this package, which older stores name saliency.
WITHOUT_EFFECT = frozenset({"python", "saliency", "saliency-jobs", "ray", "obstore", "zarr", "pyarrow"})
# A build for another device is the same version: the driver may have a build without CUDA.
_BUILD = re.compile(r"\+(cpu|cu\d+|xpu|rocm[\d.]+)$")
_NETWORK = "classes of the network"
_LOSS = re.compile(r"(?:^|=)loss:([^:]+):")


class Software(BaseModel):
    """The software of a process.

    ``arithmetic`` is the arithmetic version of this package, None in old stores. ``versions`` maps packages to
    versions, and ``code`` maps the user's modules to a digest; None if a module has no source.
    """

    model_config = ConfigDict(frozen=True)

    arithmetic: int | None = None
    versions: dict[str, str] = {}
    code: dict[str, str | None] = {}

    @property
    def effective(self) -> dict[str, str]:
        """The versions that values may depend on."""
        return {name: _BUILD.sub("", text) for name, text in self.versions.items() if name not in WITHOUT_EFFECT}

    @property
    def digest(self) -> str:
        """A digest that depends only on what has an effect on maps; "" if the software was not recorded."""
        if self.arithmetic is None:
            return ""
        text = json.dumps([self.arithmetic, self.effective, self.code], sort_keys=True)
        return short_digest(text.encode())

    def differences(self, other: Software) -> list[str]:
        """A text for each difference, ``self`` first. An old store is compared only in what it records."""
        recorded = self.arithmetic is not None and other.arithmetic is not None
        pairs: list[tuple[str, object, object]] = []
        if recorded:
            pairs.append(("arithmetic", self.arithmetic, other.arithmetic))
        own, theirs = self.effective, other.effective
        names = own.keys() | theirs.keys() if recorded else own.keys() & theirs.keys()
        pairs += [(name, own.get(name), theirs.get(name)) for name in sorted(names)]
        if recorded:
            names = self.code.keys() | other.code.keys()
            pairs += [(f"code of {name}", self.code.get(name), other.code.get(name)) for name in sorted(names)]
        return [f"{name}: {old or 'none'}, now {new or 'none'}" for name, old, new in pairs if old != new]

    def describe(self) -> str:
        """A description in one line."""
        parts = [f"{name} {text}" for name, text in sorted(self.effective.items())]
        parts += [f"{name} ({digest or 'no source'})" for name, digest in self.code.items()]
        parts.append("no recorded arithmetic" if self.arithmetic is None else f"arithmetic {self.arithmetic}")
        return ", ".join(parts)


def current_software(config: JobConfig, network: nn.Module) -> Software:
    """The software of this process, which has just built ``network`` from ``config``.

    The network must not have run yet, because a lazy module changes its class when it runs.
    """
    named = {config.model.split(":")[1]} if config.model.startswith("python:") else set()
    named |= {match[1] for target in getattr(config, "targets", ()) if (match := _LOSS.search(target))}
    libraries, own = set[str](), set[str]()
    for module in {type(part).__module__ for part in network.modules()}:
        top = module.partition(".")[0]
        if top in LIBRARIES or is_installed(module):
            libraries.add(top)
        else:
            own.add(module)
    packages = {package for top in libraries if (package := _distribution_of(top)) is not None}
    code = code_digests([*sorted(named), *sorted(own - named)]) if named else {}
    if config.model.startswith("python:"):
        code[_NETWORK] = _network_digest(network)
    return Software(arithmetic=ARITHMETIC_VERSION, versions=installed_versions(packages), code=code)


def installed_versions(more: Iterable[str] = ()) -> dict[str, str]:
    """The versions of Python, of the packages that are always recorded, and of ``more``."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in (*ALWAYS_RECORDED, *sorted(more))
    }


def refuse_other_versions(there: Software, packages: Iterable[str]) -> None:
    """Raises InvalidRequestError unless this process has the planned versions of ``packages``.

    A stage without a model calls it.
    """
    refuse_other_worker(there, Software(versions={name: metadata.version(name) for name in packages}))


def refuse_other_worker(there: Software, here: Software) -> None:
    """Raises InvalidRequestError unless a worker's software ``here`` is that of the plan, ``there``."""
    differences = there.differences(here)
    if differences:
        raise InvalidRequestError(
            f"{platform.node()} has other software than this session was planned with, so its maps could differ:\n"
            + "".join(f"  {difference}\n" for difference in differences)
            + "Give all machines the same packages and the same code, and run the same command again."
        )


def record_of_new_store(run: AnyRecord, here: Software) -> AnyRecord:
    """The record of a new store, with its software."""
    return run.model_copy(update={**here.model_dump(), "session_software": here.digest})


def record_of_resumed_store(run: AnyRecord, stored: Record, here: Software, *, accept: bool) -> AnyRecord:
    """The record of a session that will add units to the store of ``stored``.

    Args:
        here: The software of this session.
        accept: Whether other software than the store's is accepted (``--accept-versions``).

    Raises:
        InvalidRequestError: The software differs from the store's, no unit was made with it, and ``accept`` is False.
    """
    later, notes = stored.later_software, []
    if here.digest not in stored.all_software:
        differences = stored.software.differences(here)
        if differences and not accept:
            raise InvalidRequestError(
                f"{stored.config.out} was begun with other software, so maps of both would be mixed:\n"
                + "".join(f"  {difference}\n" for difference in differences)
                + "Use the software that it was begun with, or a new --out; or accept the mixture with "
                "--accept-versions: each unit records which software made it."
            )
        later = (*later, here)
        notes = (
            [f"--accept-versions: this store goes on with other software ({'; '.join(differences)})."]
            if differences
            else []
        )
        if stored.software.arithmetic is None:
            notes.append(
                "this store was begun by a version that did not record its arithmetic and the user's code: whether "
                "they are the same was not checked."
            )
    history = stored.software.model_dump() | {"later_software": later, "session_software": here.digest}
    return run.model_copy(update=history).with_notes(notes)


def record_of_idle_session(run: AnyRecord, stored: Record) -> AnyRecord:
    """The record of a session that adds no unit: it keeps the software of ``stored``."""
    names = ("versions", "arithmetic", "code", "later_software", "session_software")
    return run.model_copy(update={name: getattr(stored, name) for name in names})


def with_session(run: AnyRecord, stored: Record | None, here: Software, *, adds_units: bool, accept: bool) -> AnyRecord:
    """The record ``run`` with the software of a session: one that begins a store (``stored`` is None), adds units to
    it, or only finishes it. ``here``, ``accept`` and what is raised: as for
    ``record_of_resumed_store``."""
    if stored is None:
        return record_of_new_store(run, here)
    if not adds_units:
        return record_of_idle_session(run, stored)
    return record_of_resumed_store(run, stored, here, accept=accept)


class UnitSoftware:
    """Counts which software made which units of a store."""

    def __init__(self, run: Record) -> None:
        self._run = run
        self._units: dict[str, list[int]] = {}

    def add(self, unit: int, software: str) -> None:
        """Adds a unit, with the digest in its commit; "" means the software that the store was begun with."""
        self._units.setdefault(software or self._run.software.digest, []).append(unit)

    def notes(self) -> list[str]:
        """A line for each software, if units of several are mixed; empty otherwise."""
        if len(self._units) < 2 and self._units.keys() <= self._run.all_software.keys():
            return []
        recorded = self._run.all_software
        return [
            f"note: {_units_were(units)} made with "
            + (recorded[digest].describe() if digest in recorded else f"software {digest}, which {self._run.KEY} lacks")
            for digest, units in self._units.items()
        ]


def _units_were(units: list[int]) -> str:
    return f"unit {units[0]} was" if len(units) == 1 else f"units {format_ranges(sorted(units))} were"


def _network_digest(network: nn.Module) -> str:
    """A digest of the classes of a network, which may depend on files or the environment as well as on code."""
    lines = []
    for name, part in network.named_modules():
        kind = type(part)
        # The text of torch's own classes is the same in every process.
        arguments = part.extra_repr() if kind.__module__.startswith("torch.nn.modules.") else ""
        lines.append(f"{name} {kind.__module__}.{kind.__qualname__} {arguments}\n")
    return short_digest("".join(lines).encode())


def _distribution_of(top: str) -> str | None:
    """The distribution of a top-level module; None if it is Python's, or always recorded."""
    if top in (*ALWAYS_RECORDED, "builtins", "__main__"):
        return None
    try:
        metadata.version(top)
    except metadata.PackageNotFoundError:
        return next(iter(metadata.packages_distributions().get(top, ())), None)
    return top
