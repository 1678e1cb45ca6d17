"""Tests of the plan of passes: which passes are shared, their cost, and the accumulator of each signal."""

from __future__ import annotations

import pytest

from saliency_core.methods.registry import parse_method
from saliency_core.methods.samplers import Once
from saliency_core.methods.signal_accumulators import AveragedSignal, StreamedSignal
from saliency_core.pass_plan import PassPlan, plan_passes


def plan_of(*specs: str) -> PassPlan:
    return plan_passes(signal for spec in specs for signal in parse_method(spec).signals)


def test_groups_by_sampler_then_rule_and_starts_with_the_clean_images() -> None:
    plan = plan_of("smoothgrad(n=5)", "gradient", "guided_gradcam", "vargrad(n=5)", "gradient(reduction=l2)")
    assert plan.starts_clean and plan.groups[0].sampler == Once()
    assert [[len(rule_group.signals) for rule_group in group.rule_groups] for group in plan.groups] == [[2, 1], [2]]
    assert not plan_of("smoothgrad").starts_clean


@pytest.mark.parametrize("specs, targets, cost", [
    (["gradient", "fullgrad"], 1, 1),
    (["gradient", "fullgrad"], 3, 2),
    (["gradient", "guided_backprop"], 1, 1.5),
    (["smoothgrad(n=5)"], 1, 5.5),
    (["gradient", "smoothgrad(n=5)", "vargrad(n=5)"], 1, 6),
    (["integrated_gradients(n=4)"], 2, 7),
])  # fmt: skip
def test_cost_in_passes(specs: list[str], targets: int, cost: float) -> None:
    assert plan_of(*specs).cost(targets) == cost


@pytest.mark.parametrize("spec, kind", [
    ("fullgrad", StreamedSignal),
    ("compose(sampler=noise, n=1)", StreamedSignal),
    ("compose(sampler=noise, n=1, moment=variance)", AveragedSignal),
    ("smoothgrad(n=2)", AveragedSignal),
])  # fmt: skip
def test_a_single_pass_is_streamed(spec: str, kind: type) -> None:
    ((rule_group,),) = (group.rule_groups for group in plan_of(spec).groups)
    (accumulator,) = rule_group.make_accumulators(2, (8, 8))
    assert type(accumulator) is kind
