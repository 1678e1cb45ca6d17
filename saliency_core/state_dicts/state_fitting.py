"""Fits a state dict to the names of a module: prefixes are cut or added, wrappers left out, tied tensors filled in.

Names are changed only if all of them then fit the module. The change is noted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import Any

from torch import Tensor, nn

from saliency_core.state_dicts.module_versions import VersionedState, rename_versions
from saliency_core.state_dicts.renaming import Renaming, remove_parts
from saliency_core.state_dicts.tied_tensors import equal, is_copy, tied_names

# Parts of names that wrappers of a module or submodule add: torch.compile, FSDP, activation checkpoints.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_ddp_module"})
# Buffers that thop.profile leaves in every module that it has counted; none of torch's modules has such buffers.
_COUNTERS = ("total_ops", "total_params")
_REMOVABLE_PARTS = (frozenset[str](), _WRAPPERS, _WRAPPERS | {"module"})


@dataclass(frozen=True)
class Fit:
    """A state dict with the module's names, and its differences from the module's own state dict.

    ``shapes``: the file's and the module's shape of each tensor whose shapes differ. ``contradicted``: pairs of names
    that are the same tensor in the module, but different ones in the file. ``passed_over``: names of the file that are
    not used. ``change``: the change of the file's names, for a note; empty if they are unchanged. ``ambiguous``: the
    changes by which several networks in the file fit; ``keys``: the prefixes that choose one of them.
    """

    state: dict[str, Any]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    contradicted: tuple[tuple[str, str], ...] = ()
    passed_over: tuple[str, ...] = ()
    change: str = ""
    ambiguous: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the module can load the state dict without any difference."""
        return not (self.distance or self.ambiguous)

    @property
    def distance(self) -> int:
        """The number of differences."""
        return len(self.missing) + len(self.unexpected) + len(self.shapes) + len(self.contradicted)

    def describe(self) -> str:
        """Describes the differences from the module's own state dict; empty if there are none."""
        shapes = [
            f"{name} is {list(file)}, the model's {list(own)}" for name, (file, own) in sorted(self.shapes.items())
        ]
        parts = []
        for problem, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", shapes),
        ):
            if names:
                parts.append(f"{problem}: {_join_first(names)}")
        if self.contradicted:
            pairs = [f"{first} and {second}" for first, second in self.contradicted]
            parts.append(f"one tensor in the model, but different ones in the file: {_join_first(pairs)}")
        if self.ambiguous:
            choice = f": choose one with `weights_key`, from {_join_first(self.keys)}" if self.keys else ""
            parts.append(f"more than one network in it fits ({_join_first(self.ambiguous)}){choice}")
        return "; ".join(parts)


def _join_first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def fit_state(module: nn.Module, state: Mapping[str, Any]) -> tuple[Fit, tuple[str, ...]]:
    """Returns the closest fit of ``state`` to ``module``, and the changes of names that were tried.

    Names are unchanged if they fit. A fit that does not use all of the file's names counts only if it is the only whole
    one, because none of several networks in a file is preferred.
    """
    own = _tensors(module)
    unchanged = fit_unchanged(module, state)
    if unchanged.whole:
        return unchanged, ()
    prefixes = [f"{path}." if path else "" for path, _ in module.named_modules(remove_duplicate=False)]
    fits = [_compare(own, state, renaming) for renaming in _candidate_renamings(list(own), prefixes, state)]
    tried = tuple(dict.fromkeys(fit.change for fit in fits))
    whole = [fit for fit in fits if fit.whole]
    complete = [fit for fit in whole if not fit.passed_over]
    if complete:
        return complete[0], tried
    untouched = [] if unchanged.missing or unchanged.shapes else ["as it is"]
    if whole and (untouched or len({tuple(sorted(map(id, fit.state.values()))) for fit in whole}) > 1):
        keys = dict.fromkeys(key for fit in whole for key in fit.keys)
        changes = dict.fromkeys(fit.change for fit in whole)
        return Fit({}, ambiguous=(*untouched, *changes), keys=tuple(keys)), tried
    return min((*whole, unchanged, *fits), key=lambda fit: (fit.distance, len(fit.passed_over))), tried


def fit_unchanged(module: nn.Module, state: Mapping[str, Any]) -> Fit:
    """Returns the fit of ``state`` with unchanged names."""
    return _compare(_tensors(module), state, Renaming(frozenset(), "", False, {}, ""))


def fits_for_hooks(module: nn.Module, state: Mapping[str, Any]) -> Iterator[Fit]:
    """Yields the fits of ``state`` with unchanged names, and with each prefix cut that all names share."""
    own = _tensors(module)
    yield fit_unchanged(module, state)
    for prefix in accumulate(f"{part}." for part in _shared_prefix(state).split(".") if part):
        yield _compare(own, state, Renaming(frozenset(), prefix, False, {}, f"{prefix!r} cut"))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _candidate_renamings(own: Sequence[str], prefixes: Sequence[str], state: Mapping[str, Any]) -> Iterator[Renaming]:
    """Yields the changes that turn some name of ``state`` into a name of the module.

    ``own``: the module's names; ``prefixes``: those of its submodules.
    """
    mappings: set[tuple[tuple[str, str | None], ...]] = set()
    for parts in _REMOVABLE_PARTS:
        plain_own = {remove_parts(name, parts): name for name in own}
        plain_file = {remove_parts(name, parts): name for name in state}
        if len(plain_own) != len(own) or len(plain_file) != len(state) or not plain_own:
            continue
        left_out = sorted(part for part in parts if any(part in name.split(".") for name in (*own, *state)))
        if parts and not left_out:
            continue
        own_names = plain_own | {remove_parts(name, parts): name for name in prefixes}
        for prefix, added in _candidate_prefixes(plain_own, plain_file):
            changes = [f"{part!r} left out" for part in left_out]
            if prefix:
                changes.append(f"{prefix!r} {'added' if added else 'cut'}")
            renaming = Renaming(parts, prefix, added, own_names, ", ".join(changes))
            mapping = tuple((name, renaming(name)) for name in state)
            if changes and mapping not in mappings:
                mappings.add(mapping)
                yield renaming


def _candidate_prefixes(own: Mapping[str, str], file: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Returns prefixes, and whether each is added or cut, by which the module's deepest names match names of the file.

    One name would suffice, because all names share the prefix. Several are compared in case some are missing.
    """
    candidates: dict[tuple[str, bool], None] = {("", False): None}
    for name in sorted(own, key=lambda name: (-name.count("."), name))[:8]:
        for other in file:
            if other.endswith("." + name):
                candidates[other[: -len(name)], False] = None
            if name.endswith("." + other):
                candidates[name[: -len(other)], True] = None
    for other in sorted(file, key=lambda name: (-name.count("."), name))[:8]:
        for name in own:
            if name.endswith("." + other):
                candidates[name[: -len(other)], True] = None
    return list(candidates)[:200]


def _compare(own: Mapping[str, Tensor], state: Mapping[str, Any], rename: Renaming) -> Fit:
    """Compares ``state``, with its names changed, with the module's own tensors."""
    names = {name: new for name in state if (new := rename(name)) is not None}
    counters = [old for old, new in names.items() if new.rpartition(".")[2] in _COUNTERS and new not in own]
    renamed = {new: state[old] for old, new in names.items() if old not in counters}
    passed_over = (*(name for name in state if name not in names), *counters)
    ties = tied_names(own)
    for group in ties:
        present = [name for name in group if name in renamed]
        renamed |= {name: renamed[present[0]] for name in group if present and name not in renamed}
    # Files from before torch 0.4.1 lack the counters of batch norms, which eval mode does not read.
    renamed |= {name: own[name] for name in own if name not in renamed and name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in renamed]
    extra = [name for name in renamed if name not in own and not name.endswith("_extra_state")]
    shapes = {
        name: (tuple(renamed[name].shape), tuple(value.shape))
        for name, value in own.items()
        if name in renamed and renamed[name].shape != value.shape
    }
    only_extra = not missing and not shapes  # otherwise the search for copies would be slow and useless
    duplicates = [name for name in extra if only_extra and is_copy(renamed[name], own, renamed)]
    averaged = ["n_averaged"] if "n_averaged" in state and rename.description else []  # AveragedModel's own counter
    unexpected = [name for name in extra if name not in (*duplicates, *averaged)]
    pairs = ((group[0], name) for group in ties for name in group[1:] if group[0] in renamed)
    return Fit(
        state=VersionedState(
            {name: value for name, value in renamed.items() if name not in (*duplicates, *averaged)},
            rename_versions(state, rename),
        ),
        missing=tuple(sorted(missing)),
        unexpected=tuple(sorted(unexpected)),
        shapes=shapes,
        contradicted=tuple(pair for pair in pairs if not shapes and not equal(renamed[pair[0]], renamed[pair[1]])),
        passed_over=tuple(name for name in passed_over if name not in averaged),
        change=rename.description,
        keys=(_shared_prefix(names),) if rename.prefix and not rename.added else (),
    )


def _shared_prefix(names: Iterable[str]) -> str:
    """Returns the dotted prefix that all names share, without their last part."""
    steps = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, steps))
