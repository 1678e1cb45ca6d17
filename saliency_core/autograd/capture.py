"""Captures: records of the calls that a forward makes, taken from outside the model.

A torch function mode sees every call, functional or of a module, in place or not, in the order of execution. The record
of an output is its edge in the graph, which a later in-place ReLU does not change, so that ``autograd.grad`` gives the
gradient of that call alone. Each call of a reused module has a record of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from saliency_core.autograd.bias_terms import BiasTerm, BiasTermProbe
from saliency_core.autograd.spatial_axes import ImageAxis, SpatialAxes
from saliency_core.autograd.torch_calls import call_name, call_result
from saliency_core.errors import InvalidRequestError


@dataclass(frozen=True)
class Capture:
    """One output of one call. ``name`` is the function's with the number of its call, as ``relu#3``, or that of
    the requested module.

    ``axes``: of height and width in its ``shape`` [n, …], ``grid`` of its tokens; None if it has none.
    ``bias_term``: what the call adds over its linearisation. ``value``: the output itself, detached, if requested.
    ``owner``: the module that made the call, if all calls are recorded; empty for the model's own forward.
    ``after``: the module whose forward ended last before it.
    ``image_axis``: its axis of the batch's images, if that was found out before.
    """

    name: str
    edge: GradientEdge
    shape: tuple[int, ...]
    axes: tuple[int, int] | None
    grid: tuple[int, int] | None
    bias_term: BiasTerm | None = None
    value: Tensor | None = None
    owner: str = ""
    after: str = ""
    image_axis: ImageAxis | None = None

    @property
    def location(self) -> str:
        """The name and the place in the model, for example ``relu#121 (after features)``."""
        module = self.owner or (f"after {self.after}" if self.after else "")
        return f"{self.name} ({module})" if module else self.name


class Captures(TorchFunctionMode):
    """Records one forward of ``module`` on images of ``size`` inside a ``with``. Removes its hooks afterwards.

    ``bias_terms``: record in ``layers`` every call with a bias term. ``activations``: the modules or calls whose
    outputs
    are recorded, by the keys that they get in ``activations``. ``target_layers``: modules whose outputs targets read.
    ``record_all``: record all calls, in ``calls``. ``image_axes`` of calls, by their names.
    """

    def __init__(
        self,
        module: nn.Module,
        size: tuple[int, int],
        *,
        bias_terms: bool = False,
        activations: Mapping[str, str] = MappingProxyType({}),
        target_layers: Collection[str] = (),
        record_all: bool = False,
        image_axes: Mapping[str, ImageAxis] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._module = module
        self._bias_terms, self._record_all = bias_terms, record_all
        self._calls_to_keep = {location: name for name, location in activations.items() if "#" in location}
        self._modules_to_keep = {location: name for name, location in activations.items() if "#" not in location}
        self._target_layers = frozenset(target_layers)
        self._image_axes = image_axes
        self._numbers: Counter[str] = Counter()
        self._spatial_axes = SpatialAxes(size)
        self._hooks: list[RemovableHandle] = []
        self._running_modules: list[str] = []
        self._last_module = ""
        self.layers: list[Capture] = []
        self.calls: list[Capture] = []
        self.activations: dict[str, Capture] = {}
        self.target_layers: dict[str, Tensor] = {}

    @property
    def _watches_functions(self) -> bool:
        # Also for a named module: the grids of the calls before it determine which axes are the image's.
        return self._bias_terms or self._record_all or bool(self._calls_to_keep or self._modules_to_keep)

    def __enter__(self) -> Captures:
        try:
            for name in sorted({*self._modules_to_keep, *self._target_layers}):
                self._hooks.append(self._submodule(name).register_forward_hook(self._make_hook(name)))
            if self._record_all:
                self._follow_modules()
        except BaseException:
            self._remove_hooks()
            raise
        if self._watches_functions:
            super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._remove_hooks()
        if self._watches_functions:
            super().__exit__(*error)  # type: ignore[no-untyped-call]

    def refuse_missing(self) -> None:
        """Raises InvalidRequestError if a requested layer was not called in the forward."""
        read = [name for name in self._modules_to_keep if self._modules_to_keep[name] not in self.activations]
        for name in (*read, *sorted(self._target_layers - self.target_layers.keys())):
            raise InvalidRequestError(
                f"layer {name!r} exists, but the model never calls it for these images, so there is nothing to read "
                "from it: choose another layer."
            )
        for name, key in self._calls_to_keep.items():
            if key not in self.activations:
                function = name.partition("#")[0]
                raise InvalidRequestError(
                    f"layer {name!r}: the model calls {function} {self._numbers[function]} times for these images, so "
                    "there is nothing to read there: choose a call that it makes, or a module by its name."
                )

    def _remove_hooks(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _follow_modules(self) -> None:
        """Registers hooks that keep the names of the running modules, the innermost last."""

        def enter(name: str) -> Callable[[nn.Module, Any], None]:
            return lambda *_: self._running_modules.append(name)

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs, output
            self._last_module = self._running_modules.pop()

        for name, part in self._module.named_modules():
            self._hooks.append(part.register_forward_pre_hook(enter(name)))
            self._hooks.append(part.register_forward_hook(leave))

    def _submodule(self, name: str) -> nn.Module:
        try:
            return self._module.get_submodule(name)
        except (AttributeError, KeyError) as error:
            names = [part for part, _ in self._module.named_modules() if part]
            raise InvalidRequestError(
                f"the model has no layer {name!r}: choose one of {', '.join(names[:40])}{' …' if names[40:] else ''}."
            ) from error

    def _make_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if len(tensors) != 1 or not tensors[0].requires_grad:
                raise InvalidRequestError(
                    f"layer {name!r} does not give one tensor that depends on the image: choose another, or one in it."
                )
            if name in self._target_layers:
                self.target_layers[name] = tensors[0].clone()  # a copy, because an in-place call may follow
            if name in self._modules_to_keep:
                self.activations[self._modules_to_keep[name]] = self._capture(name, tensors[0], value=True)

        return record

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():  # also inside a custom autograd function
            return func(*args, **kwargs)
        probe = BiasTermProbe.before(func, args, kwargs) if self._bias_terms else None
        result = call_result(func, args, kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if outputs:
            function = call_name(func)
            self._numbers[function] += 1
            name = f"{function}#{self._numbers[function]}"
            self._spatial_axes.record_call(func, outputs[0])
            if probe is not None:
                self.layers += [self._capture(name, output, bias_term=term) for output, term in probe.parts(result)]
            if self._record_all:
                self.calls += [self._capture(name, output) for output in outputs]
            if name in self._calls_to_keep:
                self.activations[self._calls_to_keep[name]] = self._capture(name, outputs[0], value=True)
        return result

    def _capture(self, name: str, output: Tensor, *, bias_term: BiasTerm | None = None, value: bool = False) -> Capture:
        shape = tuple(output.shape)
        return Capture(
            name,
            get_gradient_edge(output),
            shape,
            self._spatial_axes.height_and_width(shape),
            self._spatial_axes.token_grid(shape),
            bias_term,
            output.detach().clone() if value else None,
            self._running_modules[-1] if self._running_modules else "",
            self._last_module,
            self._image_axes.get(name),
        )
