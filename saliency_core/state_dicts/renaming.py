"""Renames the tensors of a state dict: parts that wrappers add are left out, and a prefix is cut or added."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saliency_core.state_dicts.module_versions import VersionedState, rename_versions

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])(?=\.)")


@dataclass(frozen=True)
class Renaming:
    """A change of names.

    ``left_out``: parts of names that are removed. ``prefix``: what is then cut from the beginning of names, or added if
    ``added``. ``own``: the module's names, and the prefixes of its submodules, by the same names without ``left_out``.
    ``description``: the change, in a note.
    """

    left_out: frozenset[str]
    prefix: str
    added: bool
    own: Mapping[str, str]
    description: str

    def __call__(self, name: str) -> str | None:
        """Returns the module's name for a name (or prefix of names) of the file; None if it lacks the cut prefix."""
        plain = remove_parts(name, self.left_out)
        if self.added:
            plain = self.prefix + plain
        elif plain.startswith(self.prefix):
            plain = plain.removeprefix(self.prefix)
        else:
            return None
        return self.own.get(plain, plain)


def remove_parts(name: str, parts: frozenset[str]) -> str:
    """Removes ``parts`` from a dotted name."""
    return ".".join(part for part in name.split(".") if part not in parts) if parts else name


def rename_old_densenet(state: Mapping[str, Any]) -> VersionedState | None:
    """Returns ``state`` with current names of DenseNet's layers, which torchvision's files call ``norm.1`` and so on.

    Returns None if it has no such names. torchvision itself renames them only in files that it downloads.
    """

    def rename(name: str) -> str:
        return _OLD_DENSENET.sub(r"\1\2", name)

    if not any(_OLD_DENSENET.search(name) for name in state):
        return None
    return VersionedState({rename(name): value for name, value in state.items()}, rename_versions(state, rename))
