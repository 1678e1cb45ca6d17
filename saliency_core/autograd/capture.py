"""Captures: what a forward's functions made, watched from outside the model.

A torch function mode sees every call, functional or of a module, in place or not, in the order of execution. What is
kept of an output is its edge in the graph, which an in-place ReLU after it does not move, so that a later
``autograd.grad`` gives the gradient of just that call; calls of a reused module are calls like any other.
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
    """One output of one call. ``name`` is the function's with the number of its call, as ``relu#3``, or the module's
    that was asked for.

    ``axes``: of height and width in its ``shape`` [n, …], ``grid`` of its tokens; None where it has none. ``left``:
    what the call leaves over its linearisation. ``value``: the output itself, detached, where it was asked for.
    ``owner``: the module that made the call, where ``everything`` is watched; empty for the model's own forward.
    ``after``: the module whose forward ended last before it.
    ``images``: its axis of the batch's images, where that was found out before.
    """

    name: str
    edge: GradientEdge
    shape: tuple[int, ...]
    axes: tuple[int, int] | None
    grid: tuple[int, int] | None
    left: BiasTerm | None = None
    value: Tensor | None = None
    owner: str = ""
    after: str = ""
    images: ImageAxis | None = None

    @property
    def whereabouts(self) -> str:
        """The name, and where in the model that is: ``relu#121 (after features)``."""
        place = self.owner or (f"after {self.after}" if self.after else "")
        return f"{self.name} ({place})" if place else self.name


class Captures(TorchFunctionMode):
    """Watches one forward of ``module`` on images of ``size`` inside a ``with``, and leaves nothing behind.

    ``leftovers``: fill ``layers`` with every call that leaves something over its linearisation. ``activations``: the
    modules, or calls, whose outputs are wanted, by the names that they shall have here; ``live``: modules whose
    outputs targets read. ``everything``: keep all calls, in ``calls``. ``image_axes`` of calls, by their names.
    """

    def __init__(
        self,
        module: nn.Module,
        size: tuple[int, int],
        *,
        leftovers: bool = False,
        activations: Mapping[str, str] = MappingProxyType({}),
        live: Collection[str] = (),
        everything: bool = False,
        image_axes: Mapping[str, ImageAxis] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._module = module
        self._leftovers, self._everything = leftovers, everything
        self._called = {place: name for name, place in activations.items() if "#" in place}
        self._modules = {place: name for name, place in activations.items() if "#" not in place}
        self._read = frozenset(live)
        self._image_axes = image_axes
        self._numbers: Counter[str] = Counter()
        self._layouts = SpatialAxes(size)
        self._handles: list[RemovableHandle] = []
        self._inside: list[str] = []
        self._ended = ""
        self.layers: list[Capture] = []
        self.calls: list[Capture] = []
        self.activations: dict[str, Capture] = {}
        self.live: dict[str, Tensor] = {}

    @property
    def _watches_functions(self) -> bool:
        # For a module that was named, too: the grids on the way tell which axes are the image's.
        return self._leftovers or self._everything or bool(self._called or self._modules)

    def __enter__(self) -> Captures:
        try:
            for name in sorted({*self._modules, *self._read}):
                self._handles.append(self._submodule(name).register_forward_hook(self._keeper(name)))
            if self._everything:
                self._follow_modules()
        except BaseException:
            self._unhook()
            raise
        if self._watches_functions:
            super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._unhook()
        if self._watches_functions:
            super().__exit__(*error)  # type: ignore[no-untyped-call]

    def refuse_missing(self) -> None:
        """Raises InvalidRequestError where a layer that somebody wants to read was not called in the forward."""
        read = [name for name in self._modules if self._modules[name] not in self.activations]
        for name in (*read, *sorted(self._read - self.live.keys())):
            raise InvalidRequestError(
                f"layer {name!r} exists, but the model never calls it for these images, so there is nothing to read "
                "from it: choose another layer."
            )
        for name, wanted in self._called.items():
            if wanted not in self.activations:
                function = name.partition("#")[0]
                raise InvalidRequestError(
                    f"layer {name!r}: the model calls {function} {self._numbers[function]} times for these images, so "
                    "there is nothing to read there: choose a call that it makes, or a module by its name."
                )

    def _unhook(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _follow_modules(self) -> None:
        """Keeps the names of the modules that are being called, the innermost last."""

        def enter(name: str) -> Callable[[nn.Module, Any], None]:
            return lambda *_: self._inside.append(name)

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs, output
            self._ended = self._inside.pop()

        for name, part in self._module.named_modules():
            self._handles.append(part.register_forward_pre_hook(enter(name)))
            self._handles.append(part.register_forward_hook(leave))

    def _submodule(self, name: str) -> nn.Module:
        try:
            return self._module.get_submodule(name)
        except (AttributeError, KeyError) as error:
            names = [known for known, _ in self._module.named_modules() if known]
            raise InvalidRequestError(
                f"the model has no layer {name!r}: choose one of {', '.join(names[:40])}{' …' if names[40:] else ''}."
            ) from error

    def _keeper(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if len(tensors) != 1 or not tensors[0].requires_grad:
                raise InvalidRequestError(
                    f"layer {name!r} does not give one tensor that depends on the image: choose another, or one in it."
                )
            if name in self._read:
                self.live[name] = tensors[0].clone()  # as it is now: something in place may follow
            if name in self._modules:
                self.activations[self._modules[name]] = self._capture(name, tensors[0], value=True)

        return keep

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
        leftover = BiasTermProbe.before(func, args, kwargs) if self._leftovers else None
        result = call_result(func, args, kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if made:
            function = call_name(func)
            self._numbers[function] += 1
            name = f"{function}#{self._numbers[function]}"
            self._layouts.see(func, made[0])
            if leftover is not None:
                self.layers += [self._capture(name, output, left=left) for output, left in leftover.parts(result)]
            if self._everything:
                self.calls += [self._capture(name, output) for output in made]
            if name in self._called:
                self.activations[self._called[name]] = self._capture(name, made[0], value=True)
        return result

    def _capture(self, name: str, output: Tensor, *, left: BiasTerm | None = None, value: bool = False) -> Capture:
        shape = tuple(output.shape)
        return Capture(
            name,
            get_gradient_edge(output),
            shape,
            self._layouts.axes(shape),
            self._layouts.tokens(shape),
            left,
            output.detach().clone() if value else None,
            self._inside[-1] if self._inside else "",
            self._ended,
            self._image_axes.get(name),
        )
