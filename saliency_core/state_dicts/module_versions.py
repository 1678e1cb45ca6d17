"""A state dict with the versions of the modules that saved it, by which modules bring older weights up to date.

torch keeps them in the attribute ``_metadata`` of a state dict, by the path of each module; a plain copy drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class VersionedState(dict[str, Any]):
    """Tensors by their names, and the metadata of modules by their paths ("" is the outermost)."""

    _metadata: dict[str, dict[str, Any]]

    def __init__(self, tensors: Mapping[str, Any], versions: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(tensors)
        if versions:  # a state dict without them is, for torch, older than all versions
            self._metadata = {path: dict(values) for path, values in versions.items()}


def versions_of(state: object) -> dict[str, dict[str, Any]]:
    """The metadata of modules that ``state`` carries, by their paths; empty if it carries none."""
    metadata = getattr(state, "_metadata", None)
    if not isinstance(metadata, Mapping):
        return {}
    return {
        path: dict(values) for path, values in metadata.items() if isinstance(path, str) and isinstance(values, Mapping)
    }


def rename_versions(state: object, rename: Callable[[str], str | None]) -> dict[str, dict[str, Any]]:
    """The metadata by new paths. ``rename`` gets a path as a prefix of names ("" or "body.conv."), and gives one or
    None, for a module that is left out. Of several modules that get one path, the innermost counts: wrappers are left
    out, not what they wrap."""
    renamed = {}
    for path, values in sorted(versions_of(state).items(), key=lambda item: item[0].count(".") + bool(item[0])):
        new = rename(f"{path}." if path else "")
        if new is not None:
            renamed[new.removesuffix(".")] = values
    return renamed


def select_prefix(state: Mapping[str, Any], prefix: str) -> VersionedState:
    """The tensors whose names begin with ``prefix`` ("model."), by the rest of their names."""
    return VersionedState(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)},
        rename_versions(state, lambda path: path.removeprefix(prefix) if path.startswith(prefix) else None),
    )
