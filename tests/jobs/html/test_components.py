"""Tests the components of a report's pages: texts, numbers, tiles, pictures, scatter plots."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.audit.report.scatter import MAX_DOTS, draw_scatter
from jobs.html.components import format_value
from jobs.html.map_pictures import mean_picture
from jobs.html.site import Site
from jobs.html.sprite_sheet import ACROSS, SpriteSheet
from jobs.util.formatting import escape_invisible
from tests.support.reports import Recorder


def test_invisible_characters_are_escaped() -> None:
    assert escape_invisible("a\nb\x00\u202ec\u2066\ud800 \u200d") == "a\\nb\\x00\\u202ec\\u2066\\ud800 \u200d"
    assert escape_invisible("שלום <b>") == "שלום <b>"


def test_numbers_are_formatted_by_kind() -> None:
    formatted = [format_value(1234, "count"), format_value(0.975, "percent"), format_value(1.0, "percent")]
    assert formatted == ["1,234", "97.5 %", "100 %"]
    assert [format_value(0.12345), format_value(None)] == ["0.123", "–"]
    assert format_value(float("nan"), "percent") == "–"


def test_every_tile_is_at_its_place_in_its_sheet() -> None:
    sheets, shades = SpriteSheet("many", 16), [(3 * n, 250 - 3 * n, 90) for n in range(ACROSS * ACROSS + 5)]
    tiles = [sheets.add(np.full((9, 9, 3), shade, np.uint8), "") for shade in shades]
    files = {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in sheets.files().items()}
    assert len(files) == 2
    for tile, shade in zip(tiles, shades, strict=True):
        pixel = files[tile.src][16 * tile.y + 8, 16 * tile.x + 8]
        assert np.abs(pixel.astype(int) - shade).max() <= 4


def test_a_tile_that_is_not_square_keeps_its_proportions() -> None:
    sheets = Recorder()
    sheets.add(np.full((10, 40, 3), 255, np.uint8), "")
    tile = np.asarray(Image.open(io.BytesIO(next(iter(sheets.files().values())))))
    assert (tile[64, [4, 124]] > 250).all() and (tile[[8, 120], 64] < 140).all()


def test_a_mean_map_runs_from_black_to_white() -> None:
    mean = np.zeros((4, 4), np.float32)
    mean[:, 3] = 0.25
    picture = mean_picture(mean.ravel(), (4, 4))
    assert picture[:, 0].max() < 20 and picture[:, -1].min() > 240
    assert not np.array_equal(mean_picture(mean.ravel(), (4, 4), spot=(0.5, 0.2)), picture)
    assert mean_picture(np.zeros(16), (4, 4)).max() < 20


def test_a_scatter_plot_draws_a_limited_number_of_rows() -> None:
    def rows(n: int) -> pa.Table:
        embedding = np.random.default_rng(0).normal(size=(2, n))
        return pa.table({"embed_x": embedding[0], "embed_y": embedding[1], "cluster": [0] * n, "correct": [True] * n})

    assert draw_scatter(rows(2), suspect=-1) is None
    drawn = draw_scatter(rows(MAX_DOTS + 7), suspect=0)
    assert drawn is not None and (drawn.drawn, drawn.rows) == (MAX_DOTS, MAX_DOTS + 7)
    assert drawn.layers[0].path.count("M") == MAX_DOTS and drawn.layers[0].suspect


def test_a_page_that_is_not_a_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a file name"):
        Site(str(tmp_path)).write("classes/../../run.json", b"")
    assert not list(tmp_path.iterdir())
