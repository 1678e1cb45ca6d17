"""Finds and bypasses the ending of a model: the calls between its scores and its output, such as a final softmax.

An ending is found by following the model's output back, call by call, to the squashing call that made it: by the
identity of tensors, so that a softmax inside the model (attention) is not mistaken for one. Squashing calls are then
bypassed: they return their input, and calls that only carry values (views, casts) carry scores, not probabilities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from saliency_core.autograd.torch_calls import call_name
from saliency_core.errors import InvalidRequestError

SOFTMAX, SIGMOID, LOGIT = "softmax", "sigmoid", "logit"
INPUT, NEGATED = "its input", "its input, negated"  # what a bypassed call returns

# The probabilities that each squashing call computes; "" if its result is not a probability of a class.
_SQUASHES = {
    **dict.fromkeys(("softmax", "log_softmax", "special_softmax", "special_log_softmax", "softmin"), SOFTMAX),
    **dict.fromkeys(("sigmoid", "special_expit", "expit", "log_sigmoid", "logsigmoid"), SIGMOID),
    **dict.fromkeys(("hardsigmoid", "tanh"), ""),
}
_JOINS = ("cat", "concat", "concatenate", "stack", "hstack", "column_stack")
_CARRIERS = {
    *("view", "view_as", "reshape", "reshape_as", "unsafe_view", "squeeze", "unsqueeze", "flatten", "unflatten"),
    *("getitem", "select", "slice", "narrow", "permute", "transpose", "t", "movedim", "get", "ravel", "unbind"),
    *("expand", "contiguous", "clone", "alias", "to", "to_copy", "float", "double", "half", "bfloat16", "type"),
    *("type_as", "cpu", "cuda", "dropout", "feature_dropout", "nan_to_num", "lift_fresh_copy", "requires_grad"),
    *("flip", "index_select"),
    *_JOINS,
}
# These hardly change probabilities, but would change scores.
_GUARDS = ("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "log", "exp")
_SUMS = ("add", "radd", "iadd")
_OF_MODULES = 5  # the ``_stacklevel`` with which only nn.Softmax and nn.LogSoftmax call their function


@dataclass(frozen=True)
class Call:
    """One call. ``reads``: its tensors, and ``makes``: its results, both as identities; ``numbers``: its arguments that
    are numbers; ``stack_level``: that of nn.functional's softmax."""

    name: str
    reads: tuple[object, ...]
    makes: frozenset[object]
    numbers: tuple[float, ...]
    stack_level: object = None


@dataclass(frozen=True)
class Ending:
    """``kind``: softmax or sigmoid; empty if the squashing calls (``name``) are neither, or differ.

    ``changes``: what is returned instead by the calls at these positions; ``inner``: the scores in front are themselves
    the result of a squashing call; ``is_final_module``: the squashing call is the last call, and one of nn.Softmax or
    nn.LogSoftmax.
    """

    kind: str
    name: str
    changes: Mapping[int, str]
    inner: bool = False
    is_final_module: bool = False


def find_ending(calls: Sequence[Call], output: object) -> Ending | None:
    """Returns the ending of a forward that made ``calls`` in this order; None if no squashing call made ``output``."""
    names: dict[str, None] = {}
    changes: dict[int, str] = {}
    carried, inner, is_final_module = False, False, False
    waiting = [(output, len(calls))]
    while waiting:
        value, before = waiting.pop()
        position = next((position for position in reversed(range(before)) if value in calls[position].makes), None)
        if position is None or not calls[position].reads:
            return None
        call = calls[position]
        if call.name in _SQUASHES:
            names[call.name] = None
            changes[position] = NEGATED if call.name == "softmin" else INPUT
            inner |= find_ending(calls[:position], call.reads[0]) is not None
            is_final_module = not carried and call.stack_level == _OF_MODULES and call.name != "softmin"
            continue
        carried = True
        if call.name in _GUARDS or (call.name in _SUMS and len(call.reads) == 1 and call.numbers):
            changes[position] = INPUT
        elif call.name in ("rsub", "sub") and len(call.reads) == 1 and call.numbers[:1] == (1,):
            changes[position] = NEGATED  # 1 − σ(z) = σ(−z)
        elif call.name not in _CARRIERS:
            return None
        waiting += [(read, position) for read in (call.reads if call.name in _JOINS else call.reads[:1])]
    kinds = {_SQUASHES[name] for name in names}
    return Ending(kinds.pop() if len(kinds) == 1 else "", ", ".join(names), changes, inner, is_final_module)


@dataclass
class Trace(TorchFunctionMode):
    """Records the calls of a forward. It keeps their results alive, so that an ``id`` means one tensor."""

    calls: list[Call] = field(default_factory=list)
    _alive: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        arguments = tree_leaves((tuple(args), {name: kwargs[name] for name in kwargs if name != "_stacklevel"}))
        reads = tuple(id(leaf) for leaf in arguments if isinstance(leaf, Tensor))
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._alive += [arguments, results]
        numbers = tuple(leaf for leaf in arguments if isinstance(leaf, int | float))
        makes = frozenset(map(id, results))
        self.calls.append(Call(_name(func), reads, makes, numbers, kwargs.get("_stacklevel")))
        return result

    def passing(self, ending: Ending) -> Passing:
        """Returns the ending's changes by function and number of its call."""
        names = {self.calls[position].name for position in ending.changes}
        counts, changes = Counter[str](), dict[tuple[str, int], str]()
        for position, call in enumerate(self.calls):
            if call.name in names:
                counts[call.name] += 1
                if position in ending.changes:
                    changes[call.name, counts[call.name]] = ending.changes[position]
        return Passing(changes, counts)


@dataclass(frozen=True)
class Passing:
    """``changes``: what the k-th call of a function returns, by (name, k). ``counts``: its calls in a whole forward."""

    changes: Mapping[tuple[str, int], str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


class PassBy(TorchFunctionMode):
    """Inside it, the calls of one forward that ``passing`` names return their input, and other modes do not see them.

    Raises InvalidRequestError if the forward makes another number of such calls than the one in which they were found.
    """

    def __init__(self, passing: Passing) -> None:
        super().__init__()
        self._passing = passing
        self._counts: Counter[str] = Counter()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for name, number in self._passing.counts.items():
            if kind is None and self._counts[name] != number:
                raise InvalidRequestError(
                    f"the model ends in a {name}, whose input is explained. It makes {number} such calls for one "
                    f"image, and {self._counts[name]} for others, so the last one cannot be identified: let the model "
                    f"return what is in front of its last {name}."
                )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        name = _name(func)
        if name in self._passing.counts:
            self._counts[name] += 1
            change = self._passing.changes.get((name, self._counts[name]))
            if change is not None:
                value = next(leaf for leaf in tree_leaves((tuple(args), kwargs)) if isinstance(leaf, Tensor))
                return -value if change == NEGATED else value
        return func(*args, **(kwargs or {}))


def _name(func: Callable[..., Any]) -> str:
    return call_name(func).strip("_")
