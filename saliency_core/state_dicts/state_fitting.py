"""A state dict brought to the names of a module: prefixes cut or added, wrappers left out, tied tensors filled in.

A name is changed only if the changed names fit the module whole; what was changed is noted.
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

# Parts of names that wrappers of a module, or of any module in it, bring: torch.compile, FSDP, activation checkpoints.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_ddp_module"})
# What thop.profile leaves in every module that it has counted; no module of torch's has buffers of these names.
_COUNTERS = ("total_ops", "total_params")
_REMOVABLE_PARTS = (frozenset[str](), _WRAPPERS, _WRAPPERS | {"module"})


@dataclass(frozen=True)
class Fit:
    """A state dict in the module's names, and how far it is from the module's own.

    ``shapes``: the names whose tensor is of another shape, with the file's and the module's. ``passed_over``: names of
    the file outside of the prefix that was cut. ``change``: what was done to the file's names, in words; empty if
    nothing was. ``contradicted``: pairs of names that are one tensor in the module and two in the file. ``ambiguous``:
    the changes by which more than one network in the file fits; ``keys``: the prefixes that choose one of them.
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
        return not (self.distance or self.ambiguous)

    @property
    def distance(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.shapes) + len(self.contradicted)

    def describe(self) -> str:
        """In words, what keeps the state dict from being exactly the module's; empty if nothing does."""
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
            choice = f": choose one with `weights_key`, of {_join_first(self.keys)}" if self.keys else ""
            parts.append(f"more than one network in it fits ({_join_first(self.ambiguous)}){choice}")
        return "; ".join(parts)


def _join_first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def fit_state(module: nn.Module, state: Mapping[str, Any]) -> tuple[Fit, tuple[str, ...]]:
    """The nearest fit of ``state`` to ``module``, and the changes of names that were tried.

    Names stay as they are if they fit so. A fit that passes over some of the file's names counts only if it is the
    only one that is whole: of two networks in a file, none is preferred.
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
    """The fit of ``state`` with its names as they are."""
    return _compare(_tensors(module), state, Renaming(frozenset(), "", False, {}, ""))


def fits_for_hooks(module: nn.Module, state: Mapping[str, Any]) -> Iterator[Fit]:
    """The fits of ``state`` with its names as they are, and with each prefix cut that all of them have."""
    own = _tensors(module)
    yield fit_unchanged(module, state)
    for prefix in accumulate(f"{part}." for part in _shared_prefix(state).split(".") if part):
        yield _compare(own, state, Renaming(frozenset(), prefix, False, {}, f"{prefix!r} cut"))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _candidate_renamings(own: Sequence[str], prefixes: Sequence[str], state: Mapping[str, Any]) -> Iterator[Renaming]:
    """The changes of names that bring some name of ``state`` to one of the module's; ``prefixes``: its modules'."""
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
    """The prefixes, with whether each is to be added, by which the module's most telling names are found in the file.

    One name tells all: its prefix is that of every other. Several are asked, as any one may be missing.
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
    """How ``state``, with its names changed, differs from what the module needs."""
    names = {name: new for name in state if (new := rename(name)) is not None}
    counters = [old for old, new in names.items() if new.rpartition(".")[2] in _COUNTERS and new not in own]
    renamed = {new: state[old] for old, new in names.items() if old not in counters}
    passed_over = (*(name for name in state if name not in names), *counters)
    ties = tied_names(own)
    for group in ties:
        present = [name for name in group if name in renamed]
        renamed |= {name: renamed[present[0]] for name in group if present and name not in renamed}
    # Files from before torch 0.4.1 lack BN's counter, which eval mode never reads.
    renamed |= {name: own[name] for name in own if name not in renamed and name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in renamed]
    extra = [name for name in renamed if name not in own and not name.endswith("_extra_state")]
    shapes = {
        name: (tuple(renamed[name].shape), tuple(value.shape))
        for name, value in own.items()
        if name in renamed and renamed[name].shape != value.shape
    }
    only_extra = not missing and not shapes  # else the search for copies would be long, and of no use
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
    """The dotted beginning that all names have in common, without their last part."""
    steps = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, steps))
