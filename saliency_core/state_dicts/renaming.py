"""Changes of a state dict's names: wrappers left out, a prefix cut or added."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saliency_core.state_dicts.module_versions import VersionedState, rename_versions

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])(?=\.)")


@dataclass(frozen=True)
class Renaming:
    """A change of names. ``own``: the module's names, and its modules' prefixes of names, by what is left of them
    without ``left_out``. ``description``: what is done, for a note."""

    left_out: frozenset[str]
    prefix: str
    added: bool
    own: Mapping[str, str]
    description: str

    def __call__(self, name: str) -> str | None:
        """The module's name of a tensor of the file (or prefix of names); None if the change does not concern it."""
        plain = remove_parts(name, self.left_out)
        if self.added:
            plain = self.prefix + plain
        elif plain.startswith(self.prefix):
            plain = plain.removeprefix(self.prefix)
        else:
            return None
        return self.own.get(plain, plain)


def remove_parts(name: str, parts: frozenset[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in parts) if parts else name


def rename_old_densenet(state: Mapping[str, Any]) -> VersionedState | None:
    """``state`` with the names of today for DenseNet's layers, which torchvision's files call ``norm.1`` and so on;
    None if it has no such names. torchvision renames them too, but only in files that it downloads itself."""

    def rename(name: str) -> str:
        return _OLD_DENSENET.sub(r"\1\2", name)

    if not any(_OLD_DENSENET.search(name) for name in state):
        return None
    return VersionedState({rename(name): value for name, value in state.items()}, rename_versions(state, rename))
