"""The plan of a batch's passes: which forwards and backwards a set of signals needs, and which of them are shared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from saliency_core.methods.averaging import MEAN
from saliency_core.methods.registry import Signal
from saliency_core.methods.relu_rules import Rule
from saliency_core.methods.samplers import Sampler
from saliency_core.methods.signal_accumulators import AveragedSignal, SignalAccumulator, StreamedSignal

Part = TypeVar("Part", bound=Hashable)


@dataclass(frozen=True)
class RuleGroup:
    """The signals of one sampler and one rule. For each target they share a backward per forward."""

    rule: Rule
    signals: tuple[Signal, ...]
    streamed: bool
    """Whether the signals are read during the backward of a single pass, instead of averaged over several."""

    def make_accumulators(self, n: int, size: tuple[int, int]) -> list[SignalAccumulator]:
        """Returns new accumulators for ``n`` images of ``size``, in the order of ``signals``."""
        accumulator = StreamedSignal if self.streamed else AveragedSignal
        return [accumulator(signal, n, size) for signal in self.signals]


@dataclass(frozen=True)
class SamplerGroup:
    """The signals of one sampler. They share its forwards."""

    sampler: Sampler
    rule_groups: tuple[RuleGroup, ...]

    @property
    def signals(self) -> list[Signal]:
        return [signal for group in self.rule_groups for signal in group.signals]


@dataclass(frozen=True)
class PassPlan:
    """All passes of a batch. The group whose first sample is the clean images, if there is one, comes first."""

    groups: tuple[SamplerGroup, ...]

    @property
    def starts_clean(self) -> bool:
        """Whether the first forward is that of the clean images, so that targets can be chosen from it."""
        return self.groups[0].sampler.starts_clean

    @property
    def signals(self) -> list[Signal]:
        return [signal for group in self.groups for signal in group.signals]

    def cost(self, targets: int) -> float:
        """The cost of one image in passes: a forward is half of a pass, and so is a backward."""
        backwards = sum(group.sampler.passes * len(group.rule_groups) for group in self.groups)
        forwards = sum(group.sampler.passes + group.sampler.has_baseline for group in self.groups)
        clean = 0 if self.starts_clean else 1
        return (forwards + clean + backwards * targets) / 2


def plan_passes(signals: Iterable[Signal]) -> PassPlan:
    """Groups the signals by sampler, then by rule. A signal that occurs several times is in the plan once."""
    by_sampler = _grouped(dict.fromkeys(signals), lambda signal: signal.sampler)
    groups = [_plan_sampler(sampler, members) for sampler, members in by_sampler.items()]
    return PassPlan(tuple(sorted(groups, key=lambda group: not group.sampler.starts_clean)))


def _plan_sampler(sampler: Sampler, signals: Sequence[Signal]) -> SamplerGroup:
    groups = [
        RuleGroup(rule, tuple(members), sampler.passes == 1 and all(signal.moment == MEAN for signal in members))
        for rule, members in _grouped(signals, lambda signal: signal.rule).items()
    ]
    return SamplerGroup(sampler, tuple(groups))


def _grouped(signals: Iterable[Signal], part: Callable[[Signal], Part]) -> dict[Part, list[Signal]]:
    groups: dict[Part, list[Signal]] = {}
    for signal in signals:
        groups.setdefault(part(signal), []).append(signal)
    return groups
