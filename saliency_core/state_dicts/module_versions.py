"""Keeps the versions of the modules that saved a state dict, by which modules convert older weights.

torch stores them in the attribute ``_metadata`` of a state dict, by the path of each module; a plain copy loses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class VersionedState(dict[str, Any]):
    """A state dict of tensors by name, with the metadata of modules by path ("" is the outermost module)."""

    _metadata: dict[str, dict[str, Any]]

    def __init__(self, tensors: Mapping[str, Any], versions: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(tensors)
        if versions:  # torch treats a state dict without metadata as older than all versions
            self._metadata = {path: dict(values) for path, values in versions.items()}


def versions_of(state: object) -> dict[str, dict[str, Any]]:
    """Returns the metadata of modules in ``state`` by path; empty if it has none."""
    metadata = getattr(state, "_metadata", None)
    if not isinstance(metadata, Mapping):
        return {}
    return {
        path: dict(values) for path, values in metadata.items() if isinstance(path, str) and isinstance(values, Mapping)
    }


def rename_versions(state: object, rename: Callable[[str], str | None]) -> dict[str, dict[str, Any]]:
    """Returns the metadata by new paths.

    ``rename`` maps a path, written as a prefix of names ("" or "body.conv."), to a new one, or to None if the module is
    left out. If several modules get the same path, the innermost counts, because the others are wrappers.
    """
    renamed = {}
    for path, values in sorted(versions_of(state).items(), key=lambda item: item[0].count(".") + bool(item[0])):
        new = rename(f"{path}." if path else "")
        if new is not None:
            renamed[new.removesuffix(".")] = values
    return renamed


def select_prefix(state: Mapping[str, Any], prefix: str) -> VersionedState:
    """Returns the tensors whose names begin with ``prefix`` ("model."), by the rest of their names."""
    return VersionedState(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)},
        rename_versions(state, lambda path: path.removeprefix(prefix) if path.startswith(prefix) else None),
    )
