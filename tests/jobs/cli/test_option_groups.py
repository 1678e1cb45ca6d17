"""Groups of options: what a command receives for them, and their order in its help."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from jobs.cli.app import app
from jobs.cli.flags import map_style_options, row_options, with_options
from jobs.config.requested_rows import RowSelection
from saliency_core.errors import InvalidRequestError
from saliency_core.visualization.map_style import MapStyle


def received(*arguments: str) -> dict[str, Any]:
    """The arguments that a command with both groups receives."""
    values: dict[str, Any] = {}
    command_app = typer.Typer(add_completion=False)

    @command_app.command()
    @with_options(selection=row_options(n=6), style=map_style_options())
    def command(first: int = 1, *, selection: RowSelection, style: MapStyle, last: bool = False) -> int:
        values.update(first=first, selection=selection, style=style, last=last)
        return 0

    command_app(list(arguments), standalone_mode=False)
    return values


def test_without_options_groups_have_their_defaults() -> None:
    assert received() == {"first": 1, "selection": RowSelection(n=6), "style": MapStyle(), "last": False}


def test_options_become_one_object() -> None:
    values = received(
        "--first", "2", "--class", "bee", "--highest", "row", "-n", "3",
        "--cmap", "viridis", "--clip", "90", "--invert", "--blur", "1.5", "--alpha", "0.5", "--last",
    )  # fmt: skip
    assert values == {
        "first": 2,
        "selection": RowSelection(class_="bee", highest="row", n=3),
        "style": MapStyle(cmap="viridis", clip=90, invert=True, blur=1.5, alpha=0.5),
        "last": True,
    }
    assert received("--rows", "0,5,9")["selection"] == RowSelection(rows=[0, 5, 9], n=6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--rows", "0;5"), "'0;5'.*0,5,9"),
        (("--rows", "1", "--class", "ant"), "drop it"),
        (("--clip", "10"), "clip=10"),
    ],
)
def test_a_value_that_no_object_can_have_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        received(*arguments)


@pytest.mark.parametrize("name, n", [("show", 6), ("export", None)])
def test_commands_share_flags_and_defaults(name: str, n: int | None) -> None:
    command: Any = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    options = {parameter.name: parameter for parameter in command.params}
    names = list(options)
    start = names.index("rows")
    assert names[start : start + 5] == ["rows", "class_", "highest", "lowest", "n"]
    start = names.index("cmap")
    assert names[start : start + 5] == ["cmap", "clip", "invert", "blur", "alpha"]
    assert options["n"].default == n
    assert {field: options[field].default for field in ("cmap", "clip", "invert", "blur", "alpha")} == vars(MapStyle())
    assert options["invert"].secondary_opts == []
