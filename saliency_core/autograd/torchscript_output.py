"""Finds the endings of TorchScript models, whose calls no function mode sees, in their graphs, and edits them there."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from saliency_core.autograd.output_calls import NEGATED, Call, Ending, find_ending


def scripted_ending(module: torch.jit.ScriptModule) -> tuple[Ending | None, nn.Module]:
    """Returns the ending of a TorchScript model, and the model without it.

    The graph is edited in a copy with the weights as constants.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
            edited = torch.jit.freeze(module, optimize_numerics=False)
    except RuntimeError:  # not every module has a form with constant weights; the kind of its values is checked later
        return None, module
    graph = edited.graph
    nodes = list(graph.nodes())
    results = list(graph.outputs())
    ending = find_ending(list(map(_node_call, nodes)), results[0].debugName()) if len(results) == 1 else None
    if ending is not None:
        for position, change in ending.changes.items():
            node = nodes[position]
            value = next(node.inputs())
            if change == NEGATED:
                negated = graph.create("aten::neg", [value])
                negated.insertBefore(node)
                value = negated.output()
            node.output().replaceAllUsesWith(value)
            node.destroy()
    return ending, edited


def _node_call(node: Any) -> Call:
    lists = [value for value in node.inputs() if value.node().kind() == "prim::ListConstruct"]
    values = [*node.inputs(), *(member for value in lists for member in value.node().inputs())]
    constants = [value for value in values if value.node().kind() == "prim::Constant"]
    literals = [value.toIValue() for value in constants]
    literals = [value.item() if isinstance(value, Tensor) and value.numel() == 1 else value for value in literals]
    numbers = tuple(value for value in literals if isinstance(value, int | float))
    reads = tuple(value.debugName() for value in values if _is_tensor(value) and value not in constants)
    makes = frozenset(value.debugName() for value in node.outputs())
    return Call(node.kind().rpartition("::")[2].strip("_"), reads, makes, numbers)


def _is_tensor(value: Any) -> bool:
    return bool(value.type().isSubtypeOf(torch._C.TensorType.get()))
