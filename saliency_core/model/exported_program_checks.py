"""Checks a ``torch.export`` archive before torch loads it: none of its strings may act as a program.

``torch.export.load`` is not a safe reader. It evaluates symbolic expressions (``sympy.sympify``), compiles guards and
the names of the graph's nodes into Python source, imports modules that a tree's description names, and lets a node call
any function below ``torch``. So each string of the archive must have the plain form that its key requires.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from saliency_core.errors import InvalidRequestError
from saliency_core.model.symbolic_expressions import is_guard, is_symbolic_expression

# Bytes of one JSON member; the graph of a ViT-L takes 20 MiB.
LARGEST_MEMBER = 256 * 2**20

# Records that torch unpickles (with its own unrestricted unpickler) or links into this process.
_PROGRAM_RECORDS = ("data/constants/opaque_obj", "data/constants/custom_obj", "data/aotinductor/")
_HOLDS_OBJECTS = "it holds pickled objects or compiled programs beside its graph"
_TENSOR_PREFIXES = ("weight_", "tensor_")

_NAMESPACES = "aten|prims|torchvision|quantized|quantized_decomposed|mkldnn|profiler"
_OVERLOAD = re.compile(rf"torch\.ops\.({_NAMESPACES})\.(\w+)\.(\w+)")
_FILE_OPERATORS = {"from_file"}  # ATen operators that read or write files
_HIGHER_ORDER = re.compile(
    r"torch\.ops\.higher_order\.(cond|switch|while_loop|while_loop_stack_output|map|map_impl|scan|associative_scan"
    r"|strict_mode|out_dtype|hints_wrapper|auto_functionalized|auto_functionalized_v2|flex_attention|invoke_subgraph"
    r"|wrap|wrap_with_set_grad_enabled|wrap_with_autocast|wrap_activation_checkpoint|tag_activation_checkpoint"
    r"|run_const_graph|print)"
)
_FUNCTION = re.compile(
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|xor|not_|lshift|rshift|getitem)"
    r"|math\.[a-z0-9]+|torch\.sym_[a-z]+"
    r"|torch\._functorch\.predispatch\.(lazy_load_decompositions|_add_batch_dim|_remove_batch_dim"
    r"|_vmap_increment_nesting|_vmap_decrement_nesting|_jvp_increment_nesting|_jvp_decrement_nesting"
    r"|_make_dual|_unpack_dual|_unwrap_for_grad|_enter_dual_level|_exit_dual_level)"
)
_SYMBOL = re.compile(r"[A-Za-z_]{1,16}[0-9]{0,6}")
# Without quotes, brackets, backslashes or line ends, such a string stays a string in generated source text.
_PLAIN = re.compile(r"[\w .:+@/<>|$-]*")


def refuse_programs(path: Path) -> None:
    """Raises InvalidRequestError, with the reason, if loading the archive ``path`` could run code that it holds.

    Members are read with torch's own reader, because another reader of zip files may find other members in the file.
    """
    from torch.export.pt2_archive._package import PT2ArchiveReader

    reader = PT2ArchiveReader(str(path))
    names: list[str] = reader.get_file_names()
    for name in names:
        if name.lower().startswith(_PROGRAM_RECORDS):
            raise InvalidRequestError(_HOLDS_OBJECTS)
        if name.startswith(("models/", "extra/")) or name.endswith(".json"):
            size = reader.archive_file.get_record_size(name)
            if size > LARGEST_MEMBER:
                raise InvalidRequestError(f"its {name} has {size} bytes, and at most {LARGEST_MEMBER} bytes are read")
    for name in names:
        if name.startswith("models/"):
            _check_strings(json.loads(reader.read_string(name)))
            model = name.removeprefix("models/")[: -len(".json")]
            for kind in ("weights", "constants"):
                config = f"data/{kind}/{model}_{kind}_config.json"
                if config in names:
                    _check_payload(json.loads(reader.read_string(config)))


def _check_payload(config: Any) -> None:
    for name, payload in config["config"].items():
        if not str(payload["path_name"]).startswith(_TENSOR_PREFIXES):
            raise InvalidRequestError(_HOLDS_OBJECTS)
        _check_strings({name: payload})


def _check_strings(program: Any) -> None:
    """Raises InvalidRequestError for the first string below ``program`` that does not have the form of its key."""
    for key, text in _iterate_strings(program, "", inert=False):
        if not _FORM_CHECKS.get(key, _is_plain)(text):
            kind = _DESCRIPTIONS.get(key, f"a {key!r}")
            raise InvalidRequestError(f"{kind} in it is {text[:60]!r}, which torch would run as a program")


def _iterate_strings(value: Any, key: str, *, inert: bool) -> Iterator[tuple[str, str]]:
    """Yields every string below ``value`` with its key; a dictionary's own keys come under ``"KEY keys"``.

    ``inert``: the value is inside a node's argument, whose text torch only quotes.
    """
    if isinstance(value, str):
        if not (inert and key in ("as_string", "as_strings")):
            yield key, value
    elif isinstance(value, list):
        for item in value:
            # An operator's named argument, not one of the graph's own inputs.
            argument = isinstance(item, dict) and item.keys() >= {"name", "arg"}
            yield from _iterate_strings(item, key, inert=inert or argument)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name != "metadata":  # notes on a node's origin, which torch keeps as text
                yield f"{key} keys", name
                yield from _iterate_strings(item, name, inert=inert)


def _is_plain(text: str) -> bool:
    return _PLAIN.fullmatch(text) is not None


def _is_name(text: str) -> bool:
    return text == "" or text.isidentifier()


def _is_symbol(text: str) -> bool:
    return _SYMBOL.fullmatch(text) is not None


def _is_operator(text: str) -> bool:
    """Whether torch would call an operator by this name, and not some other function reachable from its modules."""
    if _HIGHER_ORDER.fullmatch(text) or _FUNCTION.fullmatch(text):
        return True
    overload = _OVERLOAD.fullmatch(text)
    if overload is None or overload[2] in _FILE_OPERATORS:
        return False
    packet = getattr(getattr(torch.ops, overload[1]), overload[2], None)
    # torch itself refuses an operator that it does not have.
    return isinstance(getattr(packet, overload[3], None), torch._ops.OpOverload | None)


def _is_tree(text: str) -> bool:
    """Whether a container's description (a pytree spec) names no module to import."""
    _, root = json.loads(text)
    pending = [root]
    while pending:
        node = pending.pop()
        pending += node["children_spec"]
        if node["type"] == "collections.defaultdict":
            return False
        context = json.loads(node["context"]) if isinstance(node["context"], str) else node["context"]
        strings = list(_iterate_strings([node["type"] or "", context], "", inert=False))
        if any(string == "__enum__" or not _is_plain(string) for _, string in strings):
            return False
    return True


_FORM_CHECKS: dict[str, Callable[[str], bool]] = {
    "expr_str": is_symbolic_expression,
    "guards_code": is_guard,
    "target": _is_operator,
    "as_operator": _is_operator,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
    # torch compiles these as names in source text.
    "name": _is_name,
    "as_name": _is_name,
    "forward_arg_names": _is_name,
    "field_names": _is_name,
    "tensor_values keys": _is_name,
    "sym_int_values keys": _is_name,
    "sym_bool_values keys": _is_name,
    "sym_float_values keys": _is_name,
    "custom_obj_values keys": _is_name,
    "range_constraints keys": _is_symbol,
    "as_string_to_argument keys": lambda _: True,  # torch quotes them, as it does an operator's text arguments
}
_DESCRIPTIONS = {
    "expr_str": "a symbolic expression",
    "guards_code": "a guard",
    "target": "an operator",
    "as_operator": "an operator",
    "in_spec": "a tree",
    "out_spec": "a tree",
}
