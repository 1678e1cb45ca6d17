"""Checks the symbolic expressions and guards that an exported program may hold against a grammar.

torch evaluates both as Python. Only arithmetic is allowed: names, numbers, operators, and a list of sympy's and torch's
functions. Attributes, text, subscripts and all other calls are refused, except in the few forms in which guards name an
input's sizes.
"""

from __future__ import annotations

import ast
import re

_MAX_CHARACTERS = 100_000  # characters
_LARGEST_INTEGER = 2**64
_LARGEST_EXPONENT = 64
# With line ends, comments, double quotes or backslashes a text could be parsed in two ways.
_CHARACTERS = re.compile(r"[A-Za-z0-9_ ()+\-*/%<>=!&|~^,.']+")
_GUARD_CHARACTERS = re.compile(r"[A-Za-z0-9_ ()\[\]+\-*/%<>=!&|~^,.':]+")
_NUMBER = re.compile(r"[+-]?[0-9.]{1,40}(e[+-]?[0-9]{1,4})?")
_IDENTIFIER = re.compile(r"[A-Za-z]\w{0,63}")

_LITERALS = frozenset({"Integer", "Rational", "Float", "Symbol", "Dummy"})
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        """
        Add Mul Max Min Abs And Or Not Xor Eq Ne Lt Le Gt Ge Equality Unequality GreaterThan LessThan StrictGreaterThan
        StrictLessThan Piecewise ExprCondPair Tuple ITE floor ceiling sqrt sign log exp sin cos tan sinh cosh tanh asin
        acos atan asinh acosh atanh FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv
        RShift FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt
        RoundDecimal ToFloat Identity OpaqueUnaryFn_sqrt OpaqueUnaryFn_cos OpaqueUnaryFn_cosh OpaqueUnaryFn_sin
        OpaqueUnaryFn_sinh OpaqueUnaryFn_tan OpaqueUnaryFn_tanh OpaqueUnaryFn_asin OpaqueUnaryFn_acos
        OpaqueUnaryFn_atan OpaqueUnaryFn_exp OpaqueUnaryFn_log OpaqueUnaryFn_asinh OpaqueUnaryFn_log2
        BitwiseFn_bitwise_and BitwiseFn_bitwise_or BitwiseFn_bitwise_xor
        """,
    )
)
# Functions that only guards call: Python's built-ins, and torch's.
_GUARD_FUNCTIONS = frozenset({"float", "int", "bool", "abs", "min", "max", "round", "len", "not_none"}) | {
    "cast_symbool_to_symint_guardless"
}
_INPUT_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "item"})
_MATH = re.compile(r"math\.[a-z0-9]+|torch\.sym_[a-z]+")

_OPERATIONS = (
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Tuple, ast.Load, ast.operator, ast.unaryop, ast.boolop,
    ast.cmpop, ast.IfExp,
)  # fmt: skip


def is_symbolic_expression(text: str) -> bool:
    """Whether ``text`` is arithmetic on symbols in the notation of sympy's ``str`` and ``srepr``."""
    return _is_arithmetic(text, _CHARACTERS, guard=False)


def is_guard(text: str) -> bool:
    """Whether ``text`` is arithmetic on the inputs' sizes, as in ``L['x'].size()[2] % 4 == 0``."""
    return _is_arithmetic(text, _GUARD_CHARACTERS, guard=True)


def _is_arithmetic(text: str, characters: re.Pattern[str], *, guard: bool) -> bool:
    if len(text) > _MAX_CHARACTERS or not characters.fullmatch(text):
        return False
    try:
        return _is_allowed(ast.parse(text, mode="eval").body, guard=guard, powers=0)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_allowed(node: ast.expr, *, guard: bool, powers: int) -> bool:
    """Whether the expression is allowed. ``powers`` counts the powers around ``node``: nested more than three deep,
    numbers of a few digits could fill the memory."""
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.Constant):
        return _is_number(node)
    if isinstance(node, ast.Call):
        return _is_allowed_call(node, guard=guard, powers=powers)
    if isinstance(node, ast.Attribute):
        return guard and _MATH.fullmatch(ast.unparse(node)) is not None
    if isinstance(node, ast.Subscript):
        return guard and _is_input(node)
    if not isinstance(node, _OPERATIONS):
        return False
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        if not _is_small_power(node.right, powers):
            return False
        powers += 1
    children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    return all(_is_allowed(child, guard=guard, powers=powers) for child in children)


def _is_allowed_call(node: ast.Call, *, guard: bool, powers: int) -> bool:
    if guard and _is_input(node):
        return True
    if guard and isinstance(node.func, ast.Attribute):
        permitted = _MATH.fullmatch(ast.unparse(node.func)) is not None
    elif isinstance(node.func, ast.Name):
        if node.func.id in _LITERALS:
            return _is_literal(node)
        permitted = node.func.id in _FUNCTIONS | _POWERS or (guard and node.func.id in _GUARD_FUNCTIONS)
        if node.func.id in _POWERS:
            permitted = permitted and len(node.args) == 2 and _is_small_power(node.args[1], powers)
            powers += 1
    else:
        return False
    keywords = all(isinstance(keyword.value, ast.Constant) and _is_number(keyword.value) for keyword in node.keywords)
    return permitted and keywords and all(_is_allowed(argument, guard=guard, powers=powers) for argument in node.args)


def _is_literal(node: ast.Call) -> bool:
    """Whether the call is a literal such as ``Integer(3)``, ``Rational(1, 2)``, ``Float('0.5', precision=53)`` or
    ``Symbol('s0', integer=True)``."""
    assert isinstance(node.func, ast.Name)
    form = _IDENTIFIER if node.func.id in ("Symbol", "Dummy") else _NUMBER

    def fits(value: ast.expr) -> bool:
        if isinstance(value, ast.UnaryOp):
            value = value.operand
        if not isinstance(value, ast.Constant):
            return False
        text = value.value
        return (isinstance(text, str) and form.fullmatch(text) is not None and "__" not in text) or _is_number(value)

    return all(fits(value) for value in (*node.args, *(keyword.value for keyword in node.keywords)))


def _is_number(node: ast.Constant) -> bool:
    value = node.value
    return isinstance(value, bool | float) or (isinstance(value, int) and value < _LARGEST_INTEGER)


def _is_small_power(exponent: ast.expr, powers: int) -> bool:
    for part in ast.walk(exponent):
        if isinstance(part, ast.Constant) and isinstance(part.value, int | float) and part.value > _LARGEST_EXPONENT:
            return False
        if isinstance(part, ast.Pow | ast.LShift) or (isinstance(part, ast.Name) and part.id in _POWERS):
            return False
    return powers < 3


def _is_input(node: ast.expr) -> bool:
    """Whether the expression is an input or its size: ``L['x']``, ``L['args'][0]`` or ``L['x'].size()[2]``."""
    if isinstance(node, ast.Subscript):
        key = node.slice.operand if isinstance(node.slice, ast.UnaryOp) else node.slice
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str | int):
            return False
        return (isinstance(node.value, ast.Name) and node.value.id == "L") or _is_input(node.value)
    if isinstance(node, ast.Call):
        return (
            not node.args
            and not node.keywords
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _INPUT_METHODS
            and _is_input(node.func.value)
        )
    return False
