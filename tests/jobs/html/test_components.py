"""The parts of a report's pages: words, figures, tiles, pictures, scatters."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.audit.report.scatter import MOST, scatter
from jobs.html.components import figure
from jobs.html.map_pictures import mean_picture
from jobs.html.site import Site
from jobs.html.sprite_sheet import ACROSS, SpriteSheet
from jobs.util.formatting import escape_invisible
from tests.support.reports import Recorder


def test_what_is_put_out_is_text() -> None:
    assert escape_invisible("a\nb\x00\u202ec\u2066\ud800 \u200d") == "a\\nb\\x00\\u202ec\\u2066\\ud800 \u200d"
    assert escape_invisible("שלום <b>") == "שלום <b>"


def test_figures_are_read_as_they_are_meant() -> None:
    told = [figure(1234, "count"), figure(0.975, "percent"), figure(1.0, "percent"), figure(0.12345), figure(None)]
    assert told == ["1,234", "97.5 %", "100 %", "0.123", "–"]
    assert figure(float("nan"), "percent") == "–"


def test_every_tile_is_where_it_is_said_to_be() -> None:
    sheets, shades = SpriteSheet("many", 16), [(3 * n, 250 - 3 * n, 90) for n in range(ACROSS * ACROSS + 5)]
    tiles = [sheets.add(np.full((9, 9, 3), shade, np.uint8), "") for shade in shades]
    files = {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in sheets.files().items()}
    assert len(files) == 2
    for tile, shade in zip(tiles, shades, strict=True):
        seen = files[tile.src][16 * tile.y + 8, 16 * tile.x + 8]
        assert np.abs(seen.astype(int) - shade).max() <= 4


def test_a_tile_that_is_not_square_keeps_its_proportions() -> None:
    sheets = Recorder()
    sheets.add(np.full((10, 40, 3), 255, np.uint8), "")
    seen = np.asarray(Image.open(io.BytesIO(next(iter(sheets.files().values())))))
    assert (seen[64, [4, 124]] > 250).all() and (seen[[8, 120], 64] < 140).all()


def test_a_mean_map_runs_from_nothing_to_its_strongest() -> None:
    mean = np.zeros((4, 4), np.float32)
    mean[:, 3] = 0.25
    picture = mean_picture(mean.ravel(), (4, 4))
    assert picture[:, 0].max() < 20 and picture[:, -1].min() > 240
    assert not np.array_equal(mean_picture(mean.ravel(), (4, 4), spot=(0.5, 0.2)), picture)
    assert mean_picture(np.zeros(16), (4, 4)).max() < 20


def test_a_scatter_draws_no_more_than_can_be_seen_and_says_so() -> None:
    def rows(n: int) -> pa.Table:
        places = np.random.default_rng(0).normal(size=(2, n))
        return pa.table({"embed_x": places[0], "embed_y": places[1], "cluster": [0] * n, "correct": [True] * n})

    assert scatter(rows(2), suspect=-1) is None
    drawn = scatter(rows(MOST + 7), suspect=0)
    assert drawn is not None and (drawn.drawn, drawn.of) == (MOST, MOST + 7)
    assert drawn.layers[0].path.count("M") == MOST and drawn.layers[0].suspect


def test_a_name_that_would_never_be_swept_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no name"):
        Site(str(tmp_path)).put("classes/../../run.json", b"")
    assert not list(tmp_path.iterdir())
