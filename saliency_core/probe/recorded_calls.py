"""Records the calls of a forward with their results, and finds the first call whose results differ in two forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from saliency_core.autograd.torch_calls import call_name, call_result

_VALUE_READS = {
    *("__bool__", "__float__", "__int__", "__index__", "__array__"),
    *("item", "tolist", "numpy", "equal", "allclose", "is_nonzero"),
}
_COMPARISONS = {"gt", "lt", "ge", "le", "eq", "ne", "greater", "less"}
_SELECTIONS = {
    *("argmax", "argmin", "argsort", "sort", "msort", "topk", "kthvalue", "max", "min", "median", "nanmedian", "mode"),
    *("any", "all", "nonzero", "argwhere", "unique", "bucketize", "searchsorted", "sign", "heaviside"),
    *("round", "floor", "ceil", "trunc", "floor_divide", "isclose"),
}
_SIZE_READS = {"size", "len", "numel", "nelement", "unbind", "iter", "split", "chunk", "tensor_split"}
_TOLERANCE = 1e-4  # relative; differences by rounding are smaller, and most others larger


@dataclass(frozen=True)
class RecordedCall:
    """A call of a torch function in a forward.

    ``name``: the function's. ``owner``: the module that called it; empty for the model's own forward. ``value``: a copy
    of the resulting tensor. ``edge``: the result's edge in the autograd graph; None if it has none. ``cuts``: an
    argument was in the graph, and the result is not.
    """

    name: str
    owner: str
    value: Tensor
    edge: GradientEdge | None
    cuts: bool

    def is_of_values(self) -> bool:
        """Whether the result may affect scores: it is neither uninitialised memory nor a counter of batches."""
        return "empty" not in self.name and (self.value.is_floating_point() or self.value.dim() > 0)

    def __str__(self) -> str:
        return f"{self.name} in {f'module {self.owner!r}' if self.owner else 'the forward of the model itself'}"


class CallRecorder(TorchFunctionMode):
    """Records the ``calls`` of the forwards of ``module`` inside ``recording``, except those inside TorchScript."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: list[RecordedCall] = []
        self._module = module
        self._entered: list[str] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records inside the ``with``."""
        with ExitStack() as stack:
            for name, part in self._module.named_modules():
                if not isinstance(part, torch.jit.ScriptModule):
                    stack.callback(part.register_forward_pre_hook(self._enter(name)).remove)
                    stack.callback(part.register_forward_hook(self._leave, always_call=True).remove)
            stack.enter_context(self)
            yield

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda *_: self._entered.append(name)

    def _leave(self, *_: object) -> None:
        self._entered.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        result = call_result(func, args, kwargs or {})
        in_graph = _has_gradient(args, kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_quantized:
                owner = self._entered[-1] if self._entered else ""
                edge = get_gradient_edge(leaf) if leaf.requires_grad else None
                name = call_name(func).strip("_")
                self.calls.append(RecordedCall(name, owner, leaf.detach().clone(), edge, in_graph and edge is None))
        return result


class ForwardObserver(TorchFunctionMode):
    """Observes properties of a forward inside the ``with``.

    ``values``: Python reads a value of a tensor, or values that depend on the image select something, so the forward
    may branch. ``hooks``: a hook on a gradient is registered. ``cuts``: a tensor is detached from the graph, so the
    gradient may not be that of the scores. ``sizes``: the size of a tensor is read. ``draws``: a generator is passed to
    a call.
    """

    values = hooks = cuts = sizes = draws = False

    def __enter__(self) -> ForwardObserver:
        self._graph = torch.is_grad_enabled()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        name, attribute = call_name(func), _attribute(func)
        plain = name.strip("_")
        self.cuts = self.cuts or plain == "detach" or attribute == "data" or self._graph != torch.is_grad_enabled()
        self.hooks = self.hooks or name == "register_hook" or attribute == "grad_fn"
        self.sizes = self.sizes or plain in _SIZE_READS or attribute == "shape"
        self.draws = self.draws or any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values()))
        result = func(*args, **kwargs)
        compares = plain in _COMPARISONS and isinstance(result, Tensor)
        scalar = compares and result.dim() == 0
        chooses = (compares or plain in _SELECTIONS) and (self.cuts or _has_gradient(args, kwargs))
        self.values = self.values or scalar or chooses or name in _VALUE_READS
        return result


def _attribute(func: Callable[..., Any]) -> str:
    """Returns the name of the tensor attribute that the call reads; empty if the call does not read an attribute."""
    return str(getattr(getattr(func, "__self__", None), "__name__", "")) if call_name(func) == "__get__" else ""


def _has_gradient(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves((args, kwargs)))


def find_first_difference(first: Sequence[RecordedCall], second: Sequence[RecordedCall], row: int | None = None) -> str:
    """Describes the first call whose results differ in two forwards; empty if there is none.

    ``row``: the ``first`` forward had only that image of the ``second``. None: both had the same images.
    """
    for call, other in zip(first, second, strict=False):
        if call.name != other.name:
            return str(call)
        if call.is_of_values() and not _results_agree(call.value, other.value, row):
            return str(call)
    return ""


def find_gradient_cut(calls: Sequence[RecordedCall], gradients: Sequence[Tensor | None]) -> str:
    """Describes the call through which no gradient passes; empty if it is not found.

    ``gradients``: those of the scores by the results of ``calls``. The first call whose result has a gradient passes
    none to its inputs. If no result has one, it is the first call that cuts the graph.
    """
    reached = [
        call
        for call, gradient in zip(calls, gradients, strict=True)
        if gradient is not None and bool((gradient != 0).any())
    ]
    cutting = [call for call in calls if call.cuts and call.value.is_floating_point()] or [
        call for call in calls if call.cuts
    ]
    return str(next(iter(reached or cutting), ""))


def _results_agree(alone: Tensor, together: Tensor, row: int | None) -> bool:
    if alone.shape == together.shape:
        return _are_close(alone, together)
    if row is None or alone.dim() != together.dim():
        return False
    sizes = list(zip(alone.shape, together.shape, strict=True))
    axis = next(axis for axis, (size, total) in enumerate(sizes) if size != total)
    size, total = sizes[axis]
    if size == 0 or total % size:
        return True  # the axis of images is unknown
    before, after = together.shape[:axis], together.shape[axis + 1 :]
    images = together.reshape(*before, total // size, size, *after).select(axis, row)
    strided = together.reshape(*before, size, total // size, *after).select(axis + 1, row)
    return images.shape != alone.shape or _are_close(alone, images) or _are_close(alone, strided)


def _are_close(first: Tensor, second: Tensor) -> bool:
    if first.is_complex() or not first.numel():
        return True
    first, second = first.double(), second.double()
    size = float(first.abs().nan_to_num(posinf=0).max())
    return torch.allclose(first, second, _TOLERANCE, _TOLERANCE * size, equal_nan=True)
