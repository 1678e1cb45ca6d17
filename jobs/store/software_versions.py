"""The software that the bytes of maps depend on: compared when a store is gone on with, and recorded for each unit."""

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
from jobs.util.formatting import ranges
from saliency_core.arithmetic_version import ARITHMETIC_VERSION
from saliency_core.errors import InvalidRequestError

if TYPE_CHECKING:
    from torch import nn

    from jobs.config.job_config import JobConfig
    from jobs.store.run_record import AnyRecord, Record

# Beside these, the packages that the network's classes come from: timm, transformers, ….
ALWAYS = ("saliency-jobs", "ray", "torch", "torchvision", "numpy", "pillow", "pyarrow", "zarr", "obstore")
LIBRARIES = ("torch", "torchvision", "timm")  # never the user's own code, wherever they are installed
# No value of a map depends on them. Python runs the code, whose digest is the same for all its versions; Ray and
# obstore move bytes; zarr and pyarrow pack them without loss, and each commit knows the hashes of what they packed;
# for our own package, which older stores name saliency, the arithmetic version stands.
WITHOUT_EFFECT = frozenset({"python", "saliency", "saliency-jobs", "ray", "obstore", "zarr", "pyarrow"})
# A build for another device is the same version: the driver's may be one without CUDA.
_BUILD = re.compile(r"\+(cpu|cu\d+|xpu|rocm[\d.]+)$")
_NETWORK = "classes of the network"
_LOSS = re.compile(r"(?:^|=)loss:([^:]+):")


class Software(BaseModel):
    """``arithmetic``: our own version, None if it was not recorded yet. ``versions``: package → version.
    ``code``: the user's modules → a digest, None if a module has no source."""

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
        """A short name for it, the same for all software that differs only in what has no effect; "" if it was made
        before software was recorded."""
        if self.arithmetic is None:
            return ""
        told = json.dumps([self.arithmetic, self.effective, self.code], sort_keys=True)
        return short_digest(told.encode())

    def differences(self, other: Software) -> list[str]:
        """What differs, in words, ``self`` first. What one of them did not record yet is not held against it."""
        recorded = self.arithmetic is not None and other.arithmetic is not None
        pairs: list[tuple[str, object, object]] = []
        if recorded:
            pairs.append(("arithmetic", self.arithmetic, other.arithmetic))
        mine, others = self.effective, other.effective
        names = mine.keys() | others.keys() if recorded else mine.keys() & others.keys()
        pairs += [(name, mine.get(name), others.get(name)) for name in sorted(names)]
        if recorded:
            names = self.code.keys() | other.code.keys()
            pairs += [(f"code of {name}", self.code.get(name), other.code.get(name)) for name in sorted(names)]
        return [f"{name}: {one or 'none'}, now {two or 'none'}" for name, one, two in pairs if one != two]

    def words(self) -> str:
        """In one line."""
        told = [f"{name} {text}" for name, text in sorted(self.effective.items())]
        told += [f"{name} ({digest or 'no source'})" for name, digest in self.code.items()]
        told.append("older than the record of it" if self.arithmetic is None else f"arithmetic {self.arithmetic}")
        return ", ".join(told)


def software_here(config: JobConfig, network: nn.Module) -> Software:
    """The software of this process, with which ``network`` was just built from ``config``: before it ran, for a lazy
    module has another class afterwards."""
    named = {config.model.split(":")[1]} if config.model.startswith("python:") else set()
    named |= {match[1] for target in getattr(config, "targets", ()) if (match := _LOSS.search(target))}
    libraries, own = set[str](), set[str]()
    for module in {type(part).__module__ for part in network.modules()}:
        top = module.partition(".")[0]
        if top in LIBRARIES or is_installed(module):
            libraries.add(top)
        else:
            own.add(module)
    packages = {package for top in libraries if (package := _package(top)) is not None}
    code = code_digests([*sorted(named), *sorted(own - named)]) if named else {}
    if config.model.startswith("python:"):
        code[_NETWORK] = _classes(network)
    return Software(arithmetic=ARITHMETIC_VERSION, versions=installed(packages), code=code)


def installed(more: Iterable[str] = ()) -> dict[str, str]:
    """The versions of Python, of the packages that are always told, and of ``more``."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in (*ALWAYS, *sorted(more))}


def refuse_other_versions(there: Software, packages: Iterable[str]) -> None:
    """Raises InvalidRequestError unless this process has ``packages`` in the versions that the session was planned
    with: the check of a stage that has no model."""
    refuse_other_worker(there, Software(versions={name: metadata.version(name) for name in packages}))


def refuse_other_worker(there: Software, here: Software) -> None:
    """Raises InvalidRequestError unless a worker has the software ``there`` that the session was planned with."""
    differences = there.differences(here)
    if differences:
        raise InvalidRequestError(
            f"{platform.node()} has other software than this session was planned with, and its maps could be others:\n"
            + "".join(f"  {difference}\n" for difference in differences)
            + "Give all machines the same packages and the same code, and run the same command again."
        )


def begun(run: AnyRecord, here: Software) -> AnyRecord:
    """The record of a new store, with the software that it is begun with."""
    return run.model_copy(update={**here.model_dump(), "session_software": here.digest})


def gone_on(run: AnyRecord, stored: Record, here: Software, *, accept: bool) -> AnyRecord:
    """The record ``run`` of a session that will add units to the store of ``stored``.

    Args:
        here: the software of this session.
        accept: other software than the store's is taken (``--accept-versions``); each unit records which made it.

    Raises:
        InvalidRequestError: the store has no units of such software yet, and something differs.
    """
    later, notes = stored.later_software, []
    if here.digest not in stored.all_software:
        told = stored.software.differences(here)
        if told and not accept:
            raise InvalidRequestError(
                f"{stored.config.out} was begun with other software, and maps of both would be mixed:\n"
                + "".join(f"  {difference}\n" for difference in told)
                + "Go on with the software that it was begun with, or into a new --out; or take the mixture with "
                "--accept-versions: each unit records which software made it."
            )
        later = (*later, here)
        notes = [f"--accept-versions: this store goes on with other software ({'; '.join(told)})."] if told else []
        if stored.software.arithmetic is None:
            notes.append(
                "this store was begun by a version that did not record its arithmetic and the user's code: whether "
                "they are the same was not checked."
            )
    history = stored.software.model_dump() | {"later_software": later, "session_software": here.digest}
    return run.model_copy(update=history).with_notes(notes)


def at_rest(run: AnyRecord, stored: Record) -> AnyRecord:
    """The record ``run`` of a session that adds no unit: the software is that which made what is there."""
    names = ("versions", "arithmetic", "code", "later_software", "session_software")
    return run.model_copy(update={name: getattr(stored, name) for name in names})


class Makers:
    """Counts which software made which units of a store."""

    def __init__(self, run: Record) -> None:
        self._run = run
        self._units: dict[str, list[int]] = {}

    def add(self, unit: int, software: str) -> None:
        """``software``: the digest that the unit's commit has; "": what the store was begun with."""
        self._units.setdefault(software or self._run.software.digest, []).append(unit)

    def notes(self) -> list[str]:
        """A line for each software, in words, if units of several are mixed; empty otherwise."""
        if len(self._units) < 2 and self._units.keys() <= self._run.all_software.keys():
            return []
        known = self._run.all_software
        return [
            f"note: {_counted(units)} made with "
            + (known[digest].words() if digest in known else f"software {digest}, of which {self._run.KEY} has no word")
            for digest, units in self._units.items()
        ]


def _counted(units: list[int]) -> str:
    return f"unit {units[0]} was" if len(units) == 1 else f"units {ranges(sorted(units))} were"


def _classes(network: nn.Module) -> str:
    """Which classes a network consists of. Beside its code, that may depend on a file or on the environment."""
    lines = []
    for name, part in network.named_modules():
        kind = type(part)
        # The arguments of torch's own classes are told in the same way in every process.
        told = part.extra_repr() if kind.__module__.startswith("torch.nn.modules.") else ""
        lines.append(f"{name} {kind.__module__}.{kind.__qualname__} {told}\n")
    return short_digest("".join(lines).encode())


def _package(top: str) -> str | None:
    """The distribution that a top-level module is of, if it is no part of Python and not told anyway."""
    if top in (*ALWAYS, "builtins", "__main__"):
        return None
    try:
        metadata.version(top)
    except metadata.PackageNotFoundError:
        return next(iter(metadata.packages_distributions().get(top, ())), None)
    return top
