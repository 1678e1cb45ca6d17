"""The audit's mathematics: measures of maps, splits, what is suspicious, and the words for it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_limits

from jobs.audit.audit_finding_text import differences, finding_text, place_phrase
from jobs.audit.audit_schema import ON_OBJECT, class_schema, cluster_schema
from jobs.audit.class_examination import examine
from jobs.audit.group_types import Background, Examined, Group
from jobs.audit.shortcut_detection import Suspicion, suspect
from jobs.audit.spectral_clustering import LANDMARKS, split
from saliency_core.map_measures import CORNERS, GRID, MEASURES, Floats, density, measure, shares, shrink

CELLS = (28, 28)
CLASSES, EACH = 6, 60


def one_pixel(y: int, x: int, *, height: int = 20, width: int = 40) -> Floats:
    maps = np.zeros((1, height, width), np.float32)
    maps[0, y, x] = -3.0  # its size counts, not its sign
    return maps


def noisy(rng: np.random.Generator, n: int, *, top: float = 6, bottom: float = 22) -> Floats:
    """Maps of objects: a blob somewhere, with grain. [n, 28, 28], shares."""
    y, x = rng.uniform(top, bottom, (n, 1, 1)), rng.uniform(6, 22, (n, 1, 1))
    ys, xs = np.mgrid[: CELLS[0], : CELLS[1]]
    blob = np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / 32)
    return shares((blob * rng.gamma(1.0, 1.0, (n, *CELLS)) + 0.1 * rng.random((n, *CELLS))).astype(np.float32))


def stamped(maps: Floats, where: np.ndarray, *, y: int = 2, x: int = 20) -> Floats:
    """A mark's pattern, always at one place, not always as strong."""
    rng = np.random.default_rng(3)
    tag = rng.random((6, 6)) * 0.02
    maps = maps.copy()
    for number in np.flatnonzero(where):
        maps[number, y : y + 6, x : x + 6] += tag * rng.uniform(0.5, 1.5)
    return shares(maps)


def group_of(small: Floats, *, number: int = 0, correct: float = 1.0, name: str | None = "star") -> Group:
    n = len(small)
    return Group(
        number=number,
        name=name,
        rows=np.arange(n, dtype=np.int64) * 3 + 5,
        small=small,
        correct=np.full(n, correct, np.float32),
        probability=np.linspace(0.5, 0.9, n, dtype=np.float32),
        sure=np.linspace(0.5, 0.9, n, dtype=np.float32),
        measures=measure(small) | {on: np.full(n, np.nan, np.float32) for on in ON_OBJECT},
    )


@pytest.fixture(scope="module")
def dataset() -> Background:
    """Six classes that differ in nothing."""
    small = noisy(np.random.default_rng(0), CLASSES * EACH)
    return Background(small, np.arange(CLASSES * EACH, dtype=np.int64) % CLASSES)


def fits(found: Examined) -> None:
    """The lines can be stored as the schemas say, but for the rank."""
    schema = class_schema(CELLS)
    assert set(found.line) | {"rank"} == set(schema.names)
    pa.Table.from_pylist([{"rank": 1, **found.line}], schema=schema)
    for line in found.clusters:
        assert set(line) == set(cluster_schema(CELLS).names)
    pa.Table.from_pylist(found.clusters, schema=cluster_schema(CELLS))


class TestMeasures:
    def test_one_pixel_has_all(self) -> None:
        found = measure(shares(one_pixel(0, 39)))
        assert set(found) == set(MEASURES)
        assert found["entropy"] == pytest.approx(0) and found["peak"] == pytest.approx(1)
        assert found["gini"] == pytest.approx(1, abs=2 / 800)
        assert (found["peak_y"], found["peak_x"]) == (pytest.approx(0.5 / 20), pytest.approx(39.5 / 40))
        assert (found["centre_y"], found["centre_x"]) == (found["peak_y"], found["peak_x"])
        assert found["border"] == pytest.approx(1)
        assert {name: float(found[f"corner_{name}"][0]) for name in CORNERS} == {
            name: float(name == "top_right") for name in CORNERS
        }

    def test_an_even_map_has_none_before_the_others(self) -> None:
        found = measure(shares(np.full((1, 20, 40), 7, np.float32)))
        assert found["entropy"] == pytest.approx(1) and found["gini"] == pytest.approx(0, abs=1e-6)
        assert found["centre_y"] == pytest.approx(0.5, abs=1e-6) and found["centre_x"] == pytest.approx(0.5, abs=1e-6)
        assert found["border"] == pytest.approx(1 - 0.8**2, abs=1e-6)
        for name in CORNERS:
            assert found[f"corner_{name}"] == pytest.approx(1 / 16, abs=1e-6)

    @pytest.mark.parametrize("name, y, x", [("top_left", 4, 9), ("bottom_left", 15, 9), ("bottom_right", 15, 30)])
    def test_corners(self, name: str, y: int, x: int) -> None:
        assert measure(shares(one_pixel(y, x)))[f"corner_{name}"] == 1
        beside = one_pixel(y + (1 if name.startswith("top") else -1), x)
        assert measure(shares(beside))[f"corner_{name}"] == 0

    def test_channels_count_together(self) -> None:
        maps = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(shares(maps), shares(np.abs(maps).sum(axis=1)), rtol=1e-6)

    @pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
    def test_what_has_no_shares_has_no_measures(self, value: float) -> None:
        parts = shares(np.full((1, 8, 8), value, np.float32))
        assert np.isnan(parts).all()
        assert all(np.isnan(figure).all() for figure in measure(parts).values())

    @pytest.mark.parametrize("edge", [28, 40, 96, 224])
    def test_an_even_map_is_as_dense_everywhere(self, edge: int) -> None:
        small = shrink(shares(np.ones((1, edge, edge + 3), np.float32)))
        even = density(small.ravel(), (edge, edge + 3))
        np.testing.assert_allclose(even, 1 / (edge * (edge + 3)), rtol=1e-5)

    @pytest.mark.parametrize("size", [(5, 9), (28, 28), (50, 33), (224, 224)])
    def test_shrunk_shares_are_shares(self, size: tuple[int, int]) -> None:
        parts = shares(np.random.default_rng(0).random((3, *size), np.float32))
        small = shrink(parts)
        assert small.shape[1:] == tuple(min(GRID, length) for length in size)
        np.testing.assert_allclose(small.sum(axis=(1, 2)), 1, rtol=1e-5)
        np.testing.assert_array_equal(shrink(small), small)


class TestSplit:
    def blobs(self, n: int) -> tuple[Floats, np.ndarray]:
        rng = np.random.default_rng(1)
        truth = np.arange(n) % 3 == 0
        maps = 0.1 * rng.random((n, *CELLS), np.float32)
        maps[truth, 4:12, 4:12] += rng.random((int(truth.sum()), 8, 8), np.float32) + 1
        maps[~truth, 16:24, 16:24] += rng.random((int((~truth).sum()), 8, 8), np.float32) + 1
        return shares(maps), truth

    @pytest.mark.parametrize("n", [24, 90, LANDMARKS + 400])
    def test_two_strategies_are_two_clusters(self, n: int) -> None:
        small, truth = self.blobs(n)
        found = split(small, seed=0)
        assert found.clusters == 2
        np.testing.assert_array_equal(found.cluster, truth.astype(int))  # the larger is the first
        left, right = found.embedding[truth, 0], found.embedding[~truth, 0]
        assert left.max() < right.min() or right.max() < left.min()

    def test_one_strategy_is_one(self) -> None:
        small, truth = self.blobs(240)
        found = split(small[~truth], seed=0)
        assert found.clusters == 1 and (found.cluster == -1).all()

    def test_a_stray_map_is_far(self) -> None:
        small, truth = self.blobs(60)
        small = np.concatenate([small[~truth], shares(np.eye(28, dtype=np.float32)[None])])
        assert split(small, seed=0).distance.argmax() == len(small) - 1


class TestSuspicion:
    @pytest.mark.parametrize("part", [1.0, 0.5, 0.25])
    def test_a_planted_mark_is_ranked_first(self, dataset: Background, part: float) -> None:
        own = np.flatnonzero(dataset.classes == 4)
        marked = np.zeros(len(dataset.classes), np.bool_)
        marked[own[: round(part * len(own))]] = True
        planted = Background(stamped(dataset.small, marked), dataset.classes)
        found = [suspect(planted.small[planted.classes == c], c, planted, seed=0) for c in range(CLASSES)]
        assert [one.alarm for one in found] == [c == 4 for c in range(CLASSES)]
        assert max(range(CLASSES), key=lambda c: found[c].score) == 4
        truth = marked[own]
        assert (found[4].rows & truth).sum() >= 0.9 * max(truth.sum(), found[4].rows.sum())
        assert found[4].y == pytest.approx(5 / 28, abs=0.1) and found[4].x == pytest.approx(23 / 28, abs=0.1)
        assert found[4].share > 1.5 * found[4].share_others

    def test_no_alarm_among_classes_that_differ_in_nothing(self, dataset: Background) -> None:
        for number in range(CLASSES):
            assert not suspect(dataset.small[dataset.classes == number], number, dataset, seed=0).alarm

    def test_no_alarm_where_a_class_merely_sits_elsewhere(self, dataset: Background) -> None:
        low = noisy(np.random.default_rng(1), EACH, top=16, bottom=26)
        assert not suspect(low, 2, dataset, seed=0).alarm

    def test_a_mark_that_all_classes_have_is_no_finding(self, dataset: Background) -> None:
        every = Background(stamped(dataset.small, np.arange(len(dataset.classes)) % 2 == 0), dataset.classes)
        found = [suspect(every.small[every.classes == c], c, every, seed=0) for c in (1, 3)]
        assert not any(one.alarm for one in found)

    def test_blank_maps_of_others_do_not_count(self, dataset: Background) -> None:
        own = dataset.small[dataset.classes == 0]
        blank = np.full((5, *CELLS), np.nan, np.float32)
        more = Background(np.concatenate([dataset.small, blank]), np.append(dataset.classes, [1] * 5))
        assert suspect(own, 0, more, seed=0).score == suspect(own, 0, dataset, seed=0).score

    def test_without_others_nothing_is_unusual(self, dataset: Background) -> None:
        alone = Background(dataset.small[:50], np.zeros(50, np.int64))
        assert np.isnan(suspect(alone.small, 0, alone, seed=0).score)


class TestExamine:
    def test_a_finding_is_a_cluster_of_its_own(self, dataset: Background) -> None:
        marked = (dataset.classes == 4) & (np.arange(len(dataset.classes)) % 4 == 0)
        planted = Background(stamped(dataset.small, marked), dataset.classes)
        group = group_of(planted.small[planted.classes == 4], number=4)
        found = examine(group, planted, seed=0)
        fits(found)
        suspected = found.clusters[found.line["suspect"]]
        truth = marked[planted.classes == 4]
        told = found.cluster == found.line["suspect"]
        assert (told & truth).sum() >= 0.9 * max(told.sum(), truth.sum())
        assert suspected["count"] == found.line["spot_rows"] == told.sum()
        assert set(suspected["examples"]) <= set(group.rows[told].tolist())
        assert "upper right" in found.line["finding"] and suspected["differs"] in found.line["finding"]
        assert sum(line["count"] for line in found.clusters) == found.line["count"] == len(group.rows)

    def test_a_finding_about_nearly_all_is_about_the_class(self, dataset: Background) -> None:
        planted = Background(stamped(dataset.small, dataset.classes == 1), dataset.classes)
        found = examine(group_of(planted.small[planted.classes == 1], number=1), planted, seed=0)
        assert found.line["alarm"] and found.line["suspect"] == -1 and "All 60" in found.line["finding"]

    def test_the_same_on_any_number_of_threads(self, dataset: Background) -> None:
        group = group_of(dataset.small[dataset.classes == 0])
        found = []
        for threads in (1, 2):
            with threadpool_limits(threads):
                found.append(examine(group, dataset, seed=0))
        assert found[0].line == found[1].line and found[0].clusters == found[1].clusters
        for name in ("cluster", "outlier", "embedding"):
            np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))

    @pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
    @pytest.mark.parametrize("kind", ["varied", "identical", "one pixel", "blank"])
    def test_small_and_strange_classes(self, dataset: Background, n: int, kind: str) -> None:
        small = dataset.small[:n]
        if kind == "identical":
            small = np.repeat(small[:1], n, axis=0)
        elif kind == "one pixel":
            small = np.zeros_like(small)
            small[:, 3, 3] = 1
        elif kind == "blank":
            small = np.where(np.arange(n)[:, None, None] == 0, np.nan, small).astype(np.float32)
        group = group_of(small)
        found = examine(group, dataset, seed=0)
        fits(found)
        seen = n - (kind == "blank")
        typical, atypical = found.line["typical"], found.line["atypical"]
        assert len(typical) + len(atypical) == min(seen, 12) or seen > 6
        assert not set(typical) & set(atypical)
        assert np.isfinite(found.outlier).sum() == np.isfinite(found.embedding).all(axis=1).sum() == seen
        assert found.line["count"] == n and found.line["clusters"] == max(1, len(found.clusters))

    def test_the_wrong_ones_most_confident_first(self, dataset: Background) -> None:
        group = group_of(dataset.small[:20], correct=0.0)
        found = examine(group, dataset, seed=0)
        assert found.line["wrong"] == group.rows[::-1][:12].tolist()
        assert found.line["accuracy"] == 0

    def test_unknown_figures_are_null(self, dataset: Background) -> None:
        found = examine(group_of(dataset.small[:20], correct=np.nan, name=None), dataset, seed=0)
        assert found.line["accuracy"] is None and found.line["pointing"] is None and found.line["wrong"] == []

    @pytest.mark.slow
    def test_a_class_of_many_rows(self, dataset: Background) -> None:
        small = np.tile(dataset.small, (140, 1, 1))
        found = examine(group_of(small), dataset, seed=0)
        fits(found)
        assert len(found.cluster) == len(small) == 50_400


class TestWords:
    def test_place(self) -> None:
        assert [place_phrase(y, x) for y, x in ((0, 0), (0.5, 0.5), (1, 0.5), (0.5, 0.9), (0.9, 0.9))] == [
            "in the upper left", "in the middle", "in the lower half", "in the right half", "in the lower right",
        ]  # fmt: skip

    def test_differences_are_told_largest_first(self) -> None:
        own = {"corner_bottom_right": 0.41, "border": 0.5, "accuracy": 0.99, "confidence": None, "entropy": 0.7}
        rest = {"corner_bottom_right": 0.06, "border": 0.3, "accuracy": 0.81, "confidence": None, "entropy": 0.69}
        assert differences(own, rest) == (
            "41 % of the relevance in the lower right corner, 6 % in the rest of the class; 50 % of the relevance "
            "along the border, 30 % in the rest of the class; accuracy 99 % against 81 %"
        )
        assert "no figure" in differences(own, own)

    def test_a_finding_of_some_and_of_all(self) -> None:
        some = Suspicion(3.0, True, np.arange(10) < 4, 0.1, 0.9, 0.4, 0.05, 0.02, 0.001)
        assert finding_text(some).startswith(
            "4 of 10 maps (40 %) show nearly the same pattern at one place in the upper right"
        )
        assert "5 % in the rest of the class" in finding_text(some)
        every = Suspicion(3.0, True, np.ones(10, np.bool_), 0.1, 0.9, 0.4, 0.0, 0.02, 0.0)
        assert finding_text(every).startswith("All 10 maps") and "rest of the class" not in finding_text(every)
        nearly = Suspicion(3.0, True, np.arange(10) < 9, 0.1, 0.9, 0.4, 0.5, 0.02, 0.0)
        assert finding_text(nearly).startswith("9 of 10 maps") and "rest of the class" not in finding_text(nearly)
