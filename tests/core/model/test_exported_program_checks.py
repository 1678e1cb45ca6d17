"""Tests that a torch.export file is read without running code, for each place of the archive that torch evaluates."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from torch import Tensor, nn

from saliency_core import InvalidRequestError, Preprocessing, load_model
from saliency_core.model.symbolic_expressions import is_guard, is_symbolic_expression

SMALL = Preprocessing((32, 32), None, "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
pytestmark = pytest.mark.filterwarnings("ignore")


class Sizes(nn.Module):
    """A net whose graph computes with the images' sizes, and so holds symbolic expressions and guards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = nn.functional.avg_pool2d(self.conv(x), 2)
        with torch.no_grad():
            scale = features.shape[2] * features.shape[3] + x.shape[2] // 3 + x.shape[2] ** 2 + x.shape[3] / 7
        return self.head(features.flatten(2).mean(2)) * scale


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns the members of a valid archive, by their names below its root."""
    path = tmp_path_factory.mktemp("sound") / "sound.pt2"
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=16, max=100), 3: torch.export.Dim("w", min=16)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Sizes().eval(), (torch.randn(2, 3, 32, 32),), dynamic_shapes=(sizes,))
        torch.export.save(program, path)
    with ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(path: Path, members: dict[str, bytes]) -> Path:
    with ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"sound/{name}", content)
    return path


def test_a_graph_with_sizes_loads(tmp_path: Path, members: dict[str, bytes]) -> None:
    text = members["models/model.json"].decode()
    assert "FloorDiv" in text and "Pow" in text and "wrap_with_set_grad_enabled" in text
    assert json.loads(text)["guards_code"], "no guard to check"
    model = load_model(f"file:{written(tmp_path / 'sound.pt2', members)}", preprocessing=SMALL)
    assert model.logits(torch.randn(3, 3, 40, 36)).shape == (3, 5)


class Branches(nn.Module):
    """A net with sub-graphs, a vmap, an operator's text argument, and parameters whose names are not identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a-b": nn.Conv2d(3, 4, 3), "c d": nn.Linear(4, 5)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.cond(x.mean() > 0, lambda a: a * 2, lambda a: a * 3, (x,))
        x = torch.vmap(lambda a: a + 1)(x)
        x = nn.functional.gelu(self.parts["a-b"](x), approximate="tanh")
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.einsum("nchw->nc", x)
        return {"logits": self.parts["c d"](x)}


def test_every_kind_of_operator_loads(tmp_path: Path) -> None:
    sizes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(Branches().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "sound.pt2")
    model = load_model(f"file:{tmp_path / 'sound.pt2'}", preprocessing=SMALL)
    assert model.logits(torch.randn(3, 3, 8, 8)).shape == (3, 5)


Graph = dict[str, Any]


def first_tensor(program: Graph) -> Graph:
    return next(
        tensor
        for tensor in program["graph_module"]["graph"]["tensor_values"].values()
        if "as_expr" in tensor["sizes"][0]
    )


def in_expression(program: Graph, code: str) -> None:
    first_tensor(program)["sizes"][0]["as_expr"]["expr_str"] = code


def in_stride(program: Graph, code: str) -> None:
    first_tensor(program)["strides"][0] = {"as_expr": {"expr_str": code, "hint": None}}


def in_integer(program: Graph, code: str) -> None:
    values = program["graph_module"]["graph"]["sym_int_values"]
    values[next(iter(values))] = {"as_expr": {"expr_str": code, "hint": None}}


def in_symbol(program: Graph, code: str) -> None:
    in_expression(program, f'Symbol("{code}", integer=True)')


def in_guard(program: Graph, code: str) -> None:
    program["guards_code"].append(f"{code} is not None")


def in_guard_beside_a_sound_one(program: Graph, code: str) -> None:
    program["guards_code"][0] += f" or {code}"


def in_call(program: Graph, code: str) -> None:
    """A node that calls a function in torch's modules that is not an operator: ``torch.os.system``."""
    node = program["graph_module"]["graph"]["nodes"][0]
    text = {"name": "", "arg": {"as_string": "echo > " + code.split("'")[1]}, "kind": 1}
    node["target"], node["inputs"] = "torch.os.system", [text]


def in_operator_argument(program: Graph, code: str) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    text = {"name": "", "arg": {"as_string": "echo > " + code.split("'")[1]}, "kind": 1}
    node["target"] = "torch.ops.higher_order.wrap"
    node["inputs"] = [{"name": "", "arg": {"as_operator": "torch.os.system"}, "kind": 1}, text]


def in_operator_call(program: Graph, code: str) -> None:
    in_operator_argument(program, code)
    program["graph_module"]["graph"]["nodes"][0]["target"] = "_operator.call"


def in_file_operator(program: Graph, code: str) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.aten.from_file.default"
    node["inputs"] = [{"name": "filename", "arg": {"as_string": code.split("'")[1]}, "kind": 1}]


def in_node_name(program: Graph, code: str) -> None:
    graph = program["graph_module"]["graph"]
    old, new = graph["nodes"][-1]["outputs"][0]["as_tensor"]["name"], f"({code}).x"
    replaced = json.loads(json.dumps(graph).replace(json.dumps(old), json.dumps(new)))
    program["graph_module"]["graph"] = replaced
    last = program["graph_module"]["signature"]["output_specs"][0]["user_output"]["arg"]["as_tensor"]
    last["name"] = new


def in_argument_name(program: Graph, code: str) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"] = [f"x={code}"]


def in_parameter_name(program: Graph, code: str) -> None:
    for spec in program["graph_module"]["signature"]["input_specs"]:
        if "parameter" in spec:
            spec["parameter"]["parameter_name"] = f'a" + str({code}) + "'


def in_text_input(program: Graph, code: str) -> None:
    program["graph_module"]["graph"]["inputs"].append({"as_string": f"' or {code} or '"})


def tree(kind: str, context: str) -> str:
    child = {"type": kind, "context": context, "children_spec": []}
    return json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [child]}])


def in_default_dictionary(program: Graph, code: str) -> None:
    context = {"default_factory_module": "this", "default_factory_name": "s", "dict_context": []}
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["out_spec"] = tree("collections.defaultdict", context)  # type: ignore[arg-type]


def in_enumeration(program: Graph, code: str) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["out_spec"] = tree("builtins.dict", json.dumps([{"__enum__": True, "fqn": "this:s", "name": "x"}]))


PLACES: list[Callable[[Graph, str], None]] = [
    in_expression, in_stride, in_integer, in_symbol, in_guard, in_guard_beside_a_sound_one, in_call,
    in_operator_argument, in_operator_call, in_file_operator, in_node_name, in_argument_name, in_parameter_name,
    in_text_input, in_default_dictionary, in_enumeration,
]  # fmt: skip


def hostile(tmp_path: Path, members: dict[str, bytes], place: Callable[[Graph, str], None], code: str) -> Path:
    program = json.loads(members["models/model.json"])
    place(program, code)
    return written(tmp_path / "hostile.pt2", members | {"models/model.json": json.dumps(program).encode()})


@pytest.mark.parametrize("place", PLACES)
def test_code_is_never_run(
    tmp_path: Path, members: dict[str, bytes], place: Callable[[Graph, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = hostile(tmp_path, members, place, f"open('{tmp_path / 'opened'}', 'w').close()")
    with pytest.raises(InvalidRequestError, match="could run code"):
        load_model(f"file:{path}", preprocessing=SMALL)
    assert not (tmp_path / "opened").exists(), "its code was run"
    assert "Zen" not in capsys.readouterr().out, "a module was imported"


@pytest.mark.parametrize("place", [in_expression, in_integer, in_guard])
def test_torch_alone_would_run_it(
    tmp_path: Path, members: dict[str, bytes], place: Callable[[Graph, str], None]
) -> None:
    """The reason for the checks: if this fails, torch itself has fixed it."""
    path = hostile(tmp_path, members, place, f"open('{tmp_path / 'opened'}', 'w').close()")
    with suppress(Exception):  # the code has run by then
        torch.export.load(path).module()(torch.zeros(2, 3, 32, 32))
    assert (tmp_path / "opened").exists()


def test_a_record_that_only_another_reader_accepts_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    """torch ignores the case of records' names."""
    config = {"config": {"x": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}}}
    upper = {
        "data/constants/model_constants_config.json": json.dumps(config).encode(),
        "data/constants/OPAQUE_OBJ_0": b"cbuiltins\nprint\n(S'Zen'\ntR.",
    }
    with pytest.raises(InvalidRequestError, match="pickled objects"):
        load_model(f"file:{written(tmp_path / 'upper.pt2', members | upper)}", preprocessing=SMALL)


def test_a_record_config_in_capitals_is_read_as_torch_reads_it(tmp_path: Path, members: dict[str, bytes]) -> None:
    """torch also opens a config whose name is in capitals, or refuses it; it is never used unchecked."""
    config = {"config": {"x": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}}}
    unchanged = {name: content for name, content in members.items() if "constants_config" not in name}
    upper = {
        "data/constants/MODEL_constants_config.json": json.dumps(config).encode(),
        "data/constants/weight_0": b"cbuiltins\nprint\n(S'Zen'\ntR.",
    }
    with pytest.raises(InvalidRequestError):
        load_model(f"file:{written(tmp_path / 'upper.pt2', unchanged | upper)}", preprocessing=SMALL)


def test_the_older_form_beside_a_broken_one_is_not_read(tmp_path: Path, members: dict[str, bytes]) -> None:
    """If the newer form fails, torch reads an older one in the same file, which is not checked."""
    path = written(tmp_path / "two.pt2", members)
    with ZipFile(path, "a") as archive:
        archive.writestr("version", "8.1")
    with pytest.raises(InvalidRequestError, match="neither"):
        load_model(f"file:{path}", preprocessing=SMALL)


def test_a_member_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saliency_core.model.exported_program_checks.LARGEST_MEMBER", 2**16)
    path = written(tmp_path / "large.pt2", members | {"extra/note": b"x" * 2**17})
    with pytest.raises(InvalidRequestError, match="131072 bytes"):
        load_model(f"file:{path}", preprocessing=SMALL)


@pytest.mark.parametrize(
    "text",
    [
        "s0", "2*s0 + 1", "s0**2", "Max(1, s0//2)", "Mod(s0, 4)", "FloorDiv(s0 - 1, 2) + 1", "(s0 > 3) & (s1 < 4)",
        "Piecewise((1, s0 > 3), (0, True))", "Eq(s0, 3)", "floor(s0/2)", "-int_oo", "oo", "u0", "~(s0 < 3)", "0.5*s0",
        "Add(Symbol('s77', integer=True, positive=True), Integer(-1))", "Pow(Symbol('s0', integer=True), Integer(2))",
        "Float('0.10000000000000001', precision=53)", "Rational(1, 2)", "TruncToInt(IntTrueDiv(s0, 2))",
        "OpaqueUnaryFn_sqrt(ToFloat(s0))", "Integer(9223372036854775807)",
    ],
)  # fmt: skip
def test_expressions_that_are_arithmetic(text: str) -> None:
    assert is_symbolic_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "open('x')", "__import__('os')", "s0.__class__", "s0.subs(1, 2)", "lambda: 1", "(lambda x: x)(1)", "s0[0]",
        "eval('1')", "exec('1')", "getattr(s0, 'x')", "Symbol(open('x'))", "Symbol('a b')", "Symbol('__x')",
        "Symbol('s0', integer=open('x'))", "Max(1, open('x'))", "[open('x')]", "{1: 2}", "{1}", "'s0'", '"s0"', "f(1)",
        "f'{1}'", "s0 if 1 else open('x')", "(s0 := 1)", "*s0", "Max(*s0)", "Max(**s0)", "s0\n+ 1", "s0 # x", "s0\\",
        "__builtins__", "Integer('open')", "9**9**9**9", "Pow(9, Pow(9, Pow(9, Pow(9, 9))))", "LShift(1, 99999999999)",
        "9**99999999", "", "s0;s1", "sympify('x')", "S('x')", "N('x')", "1" * 400,
        "(" * 500 + "s0" + ")" * 500, "Max(Max)('x')", "await s0", "yield", "ｏpen('x')", "x.y", "L['x'].size()[0]",
    ],
)  # fmt: skip
def test_expressions_that_are_not_arithmetic(text: str) -> None:
    assert not is_symbolic_expression(text)


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("L['x'].size()[2] % 4 == 0", True),
        ("((1 + ((-3) + L['x'].size()[2]) // 2) % 2) != 0", True),
        ("L['args'][0].size()[0] <= 8", True),
        ("L['flat_args'][0].stride()[1] == 2*L['flat_args'][0].size()[1]", True),
        ("math.floor(L['x'].size()[2] / 2) > 3 and L['x'].storage_offset() == 0", True),
        ("torch.sym_float(L['x'].size()[0]) < math.inf", True),
        ("Max(1, L['x'].size()[0]) < 9 or Mod(L['x'].size()[0], 2) == 0", True),
        ("torch.os.system('x')", False),
        ("math.__loader__", False),
        ("L['x'].size().__class__", False),
        ("L['x'].tolist()", False),
        ("L[open('x')]", False),
        ("torch.sym_float.__globals__", False),
        ("open('x').size()[0]", False),
        ("L['x'].size()[open('x')]", False),
        ("L['x'].size(open('x'))", False),
        ('L["x"].size()[0] == 1', False),
    ],
)
def test_guards(text: str, sound: bool) -> None:
    assert is_guard(text) is sound
