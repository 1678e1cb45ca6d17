"""Tests the audit's mathematics: measures of maps, clusters, suspicious classes, and the texts about them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_limits

from jobs.audit.audit_finding_text import differences_text, finding_text, place_phrase
from jobs.audit.audit_schema import OBJECT_MEASURES, class_schema, cluster_schema
from jobs.audit.class_examination import examine_class
from jobs.audit.group_types import Background, ClassExamination, ClassRows
from jobs.audit.shortcut_detection import Suspicion, detect_shortcut
from jobs.audit.spectral_clustering import LANDMARKS, split_maps
from saliency_core.map_measures import CORNERS, GRID, MEASURES, Floats, density, measure, shares, shrink

CELLS = (28, 28)
CLASSES, EACH = 6, 60


def one_pixel(y: int, x: int, *, height: int = 20, width: int = 40) -> Floats:
    maps = np.zeros((1, height, width), np.float32)
    maps[0, y, x] = -3.0  # only the magnitude counts
    return maps


def noisy(rng: np.random.Generator, n: int, *, top: float = 6, bottom: float = 22) -> Floats:
    """Returns maps of objects, shares [n, 28, 28]: a noisy blob at a random place."""
    y, x = rng.uniform(top, bottom, (n, 1, 1)), rng.uniform(6, 22, (n, 1, 1))
    ys, xs = np.mgrid[: CELLS[0], : CELLS[1]]
    blob = np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / 32)
    return shares((blob * rng.gamma(1.0, 1.0, (n, *CELLS)) + 0.1 * rng.random((n, *CELLS))).astype(np.float32))


def stamped(maps: Floats, chosen: np.ndarray, *, y: int = 2, x: int = 20) -> Floats:
    """Adds a mark's pattern to the chosen maps, always at the same place, with varying strength."""
    rng = np.random.default_rng(3)
    tag = rng.random((6, 6)) * 0.02
    maps = maps.copy()
    for number in np.flatnonzero(chosen):
        maps[number, y : y + 6, x : x + 6] += tag * rng.uniform(0.5, 1.5)
    return shares(maps)


def group_of(small: Floats, *, number: int = 0, correct: float = 1.0, name: str | None = "star") -> ClassRows:
    n = len(small)
    return ClassRows(
        number=number,
        name=name,
        rows=np.arange(n, dtype=np.int64) * 3 + 5,
        small=small,
        correct=np.full(n, correct, np.float32),
        probability=np.linspace(0.5, 0.9, n, dtype=np.float32),
        sure=np.linspace(0.5, 0.9, n, dtype=np.float32),
        measures=measure(small) | {on: np.full(n, np.nan, np.float32) for on in OBJECT_MEASURES},
    )


@pytest.fixture(scope="module")
def dataset() -> Background:
    """Six classes whose maps have the same distribution."""
    small = noisy(np.random.default_rng(0), CLASSES * EACH)
    return Background(small, np.arange(CLASSES * EACH, dtype=np.int64) % CLASSES)


def assert_fits_schemas(examination: ClassExamination) -> None:
    """Checks that the lines fit the schemas, except for the rank."""
    schema = class_schema(CELLS)
    assert set(examination.line) | {"rank"} == set(schema.names)
    pa.Table.from_pylist([{"rank": 1, **examination.line}], schema=schema)
    for line in examination.clusters:
        assert set(line) == set(cluster_schema(CELLS).names)
    pa.Table.from_pylist(examination.clusters, schema=cluster_schema(CELLS))


class TestMeasures:
    def test_one_pixel_has_all_relevance(self) -> None:
        measures = measure(shares(one_pixel(0, 39)))
        assert set(measures) == set(MEASURES)
        assert measures["entropy"] == pytest.approx(0) and measures["peak"] == pytest.approx(1)
        assert measures["gini"] == pytest.approx(1, abs=2 / 800)
        assert (measures["peak_y"], measures["peak_x"]) == (pytest.approx(0.5 / 20), pytest.approx(39.5 / 40))
        assert (measures["centre_y"], measures["centre_x"]) == (measures["peak_y"], measures["peak_x"])
        assert measures["border"] == pytest.approx(1)
        assert {name: float(measures[f"corner_{name}"][0]) for name in CORNERS} == {
            name: float(name == "top_right") for name in CORNERS
        }

    def test_no_pixel_of_an_even_map_stands_out(self) -> None:
        measures = measure(shares(np.full((1, 20, 40), 7, np.float32)))
        assert measures["entropy"] == pytest.approx(1) and measures["gini"] == pytest.approx(0, abs=1e-6)
        assert measures["centre_y"] == pytest.approx(0.5, abs=1e-6) and measures["centre_x"] == pytest.approx(
            0.5, abs=1e-6
        )
        assert measures["border"] == pytest.approx(1 - 0.8**2, abs=1e-6)
        for name in CORNERS:
            assert measures[f"corner_{name}"] == pytest.approx(1 / 16, abs=1e-6)

    @pytest.mark.parametrize("name, y, x", [("top_left", 4, 9), ("bottom_left", 15, 9), ("bottom_right", 15, 30)])
    def test_corners(self, name: str, y: int, x: int) -> None:
        assert measure(shares(one_pixel(y, x)))[f"corner_{name}"] == 1
        beside = one_pixel(y + (1 if name.startswith("top") else -1), x)
        assert measure(shares(beside))[f"corner_{name}"] == 0

    def test_channels_count_together(self) -> None:
        maps = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(shares(maps), shares(np.abs(maps).sum(axis=1)), rtol=1e-6)

    @pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
    def test_maps_without_shares_have_no_measures(self, value: float) -> None:
        parts = shares(np.full((1, 8, 8), value, np.float32))
        assert np.isnan(parts).all()
        assert all(np.isnan(figure).all() for figure in measure(parts).values())

    @pytest.mark.parametrize("edge", [28, 40, 96, 224])
    def test_an_even_map_has_the_same_density_everywhere(self, edge: int) -> None:
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
        parts = split_maps(small, seed=0)
        assert parts.clusters == 2
        np.testing.assert_array_equal(parts.cluster, truth.astype(int))  # the larger cluster is the first
        left, right = parts.embedding[truth, 0], parts.embedding[~truth, 0]
        assert left.max() < right.min() or right.max() < left.min()

    def test_one_strategy_is_one_cluster(self) -> None:
        small, truth = self.blobs(240)
        parts = split_maps(small[~truth], seed=0)
        assert parts.clusters == 1 and (parts.cluster == -1).all()

    def test_a_stray_map_is_far(self) -> None:
        small, truth = self.blobs(60)
        small = np.concatenate([small[~truth], shares(np.eye(28, dtype=np.float32)[None])])
        assert split_maps(small, seed=0).distance.argmax() == len(small) - 1


class TestSuspicion:
    @pytest.mark.parametrize("part", [*(pytest.param(part, marks=pytest.mark.slow) for part in (1.0, 0.5)), 0.25])
    def test_a_planted_mark_is_ranked_first(self, dataset: Background, part: float) -> None:
        own = np.flatnonzero(dataset.classes == 4)
        marked = np.zeros(len(dataset.classes), np.bool_)
        marked[own[: round(part * len(own))]] = True
        planted = Background(stamped(dataset.small, marked), dataset.classes)
        suspicions = [detect_shortcut(planted.small[planted.classes == c], c, planted, seed=0) for c in range(CLASSES)]
        assert [suspicion.alarm for suspicion in suspicions] == [c == 4 for c in range(CLASSES)]
        assert max(range(CLASSES), key=lambda c: suspicions[c].score) == 4
        truth = marked[own]
        assert (suspicions[4].rows & truth).sum() >= 0.9 * max(truth.sum(), suspicions[4].rows.sum())
        assert suspicions[4].y == pytest.approx(5 / 28, abs=0.1) and suspicions[4].x == pytest.approx(23 / 28, abs=0.1)
        assert suspicions[4].share > 1.5 * suspicions[4].share_others

    def test_no_alarm_among_classes_that_are_drawn_alike(self, dataset: Background) -> None:
        for number in range(CLASSES):
            assert not detect_shortcut(dataset.small[dataset.classes == number], number, dataset, seed=0).alarm

    def test_no_alarm_if_only_the_place_of_a_class_differs(self, dataset: Background) -> None:
        low = noisy(np.random.default_rng(1), EACH, top=16, bottom=26)
        assert not detect_shortcut(low, 2, dataset, seed=0).alarm

    def test_a_mark_that_all_classes_have_is_no_finding(self, dataset: Background) -> None:
        marked = Background(stamped(dataset.small, np.arange(len(dataset.classes)) % 2 == 0), dataset.classes)
        suspicions = [detect_shortcut(marked.small[marked.classes == c], c, marked, seed=0) for c in (1, 3)]
        assert not any(suspicion.alarm for suspicion in suspicions)

    def test_blank_maps_of_others_do_not_count(self, dataset: Background) -> None:
        own = dataset.small[dataset.classes == 0]
        blank = np.full((5, *CELLS), np.nan, np.float32)
        more = Background(np.concatenate([dataset.small, blank]), np.append(dataset.classes, [1] * 5))
        assert detect_shortcut(own, 0, more, seed=0).score == detect_shortcut(own, 0, dataset, seed=0).score

    def test_without_other_classes_there_is_no_score(self, dataset: Background) -> None:
        alone = Background(dataset.small[:50], np.zeros(50, np.int64))
        assert np.isnan(detect_shortcut(alone.small, 0, alone, seed=0).score)


class TestExamine:
    def test_a_finding_is_a_cluster_of_its_own(self, dataset: Background) -> None:
        marked = (dataset.classes == 4) & (np.arange(len(dataset.classes)) % 4 == 0)
        planted = Background(stamped(dataset.small, marked), dataset.classes)
        group = group_of(planted.small[planted.classes == 4], number=4)
        examination = examine_class(group, planted, seed=0)
        assert_fits_schemas(examination)
        suspected = examination.clusters[examination.line["suspect"]]
        truth = marked[planted.classes == 4]
        in_cluster = examination.cluster == examination.line["suspect"]
        assert (in_cluster & truth).sum() >= 0.9 * max(in_cluster.sum(), truth.sum())
        assert suspected["count"] == examination.line["spot_rows"] == in_cluster.sum()
        assert set(suspected["examples"]) <= set(group.rows[in_cluster].tolist())
        assert "upper right" in examination.line["finding"] and suspected["differs"] in examination.line["finding"]
        assert sum(line["count"] for line in examination.clusters) == examination.line["count"] == len(group.rows)

    def test_a_finding_about_nearly_all_is_about_the_class(self, dataset: Background) -> None:
        planted = Background(stamped(dataset.small, dataset.classes == 1), dataset.classes)
        examination = examine_class(group_of(planted.small[planted.classes == 1], number=1), planted, seed=0)
        assert (
            examination.line["alarm"]
            and examination.line["suspect"] == -1
            and "All 60 maps" in examination.line["finding"]
        )

    def test_the_same_on_any_number_of_threads(self, dataset: Background) -> None:
        group = group_of(dataset.small[dataset.classes == 0])
        examinations = []
        for threads in (1, 2):
            with threadpool_limits(threads):
                examinations.append(examine_class(group, dataset, seed=0))
        assert examinations[0].line == examinations[1].line and examinations[0].clusters == examinations[1].clusters
        for name in ("cluster", "outlier", "embedding"):
            np.testing.assert_array_equal(getattr(examinations[0], name), getattr(examinations[1], name))

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
        examination = examine_class(group, dataset, seed=0)
        assert_fits_schemas(examination)
        finite = n - (kind == "blank")
        typical, atypical = examination.line["typical"], examination.line["atypical"]
        assert len(typical) + len(atypical) == min(finite, 12) or finite > 6
        assert not set(typical) & set(atypical)
        assert np.isfinite(examination.outlier).sum() == np.isfinite(examination.embedding).all(axis=1).sum() == finite
        assert examination.line["count"] == n and examination.line["clusters"] == max(1, len(examination.clusters))

    def test_wrong_rows_come_by_confidence(self, dataset: Background) -> None:
        group = group_of(dataset.small[:20], correct=0.0)
        examination = examine_class(group, dataset, seed=0)
        assert examination.line["wrong"] == group.rows[::-1][:12].tolist()
        assert examination.line["accuracy"] == 0

    def test_unknown_statistics_are_null(self, dataset: Background) -> None:
        examination = examine_class(group_of(dataset.small[:20], correct=np.nan, name=None), dataset, seed=0)
        assert (
            examination.line["accuracy"] is None
            and examination.line["pointing"] is None
            and examination.line["wrong"] == []
        )

    @pytest.mark.slow
    def test_a_class_of_many_rows(self, dataset: Background) -> None:
        small = np.tile(dataset.small, (140, 1, 1))
        examination = examine_class(group_of(small), dataset, seed=0)
        assert_fits_schemas(examination)
        assert len(examination.cluster) == len(small) == 50_400


class TestTexts:
    def test_a_place_in_the_image_is_described(self) -> None:
        assert [place_phrase(y, x) for y, x in ((0, 0), (0.5, 0.5), (1, 0.5), (0.5, 0.9), (0.9, 0.9))] == [
            "in the upper left", "in the middle", "in the lower third", "in the right third", "in the lower right",
        ]  # fmt: skip

    def test_differences_come_largest_first(self) -> None:
        own = {"corner_bottom_right": 0.41, "border": 0.5, "accuracy": 0.99, "confidence": None, "entropy": 0.7}
        rest = {"corner_bottom_right": 0.06, "border": 0.3, "accuracy": 0.81, "confidence": None, "entropy": 0.69}
        assert differences_text(own, rest) == (
            "41 % of the relevance lies in the lower right corner (rest of the class: 6 %); 50 % of the relevance "
            "lies along the border (rest of the class: 30 %); accuracy is 99 % (rest of the class: 81 %)"
        )
        assert "no statistic differs much" in differences_text(own, own)

    def test_a_finding_of_some_and_of_all(self) -> None:
        some = Suspicion(3.0, True, np.arange(10) < 4, 0.1, 0.9, 0.4, 0.05, 0.02, 0.001)
        assert finding_text(some) == (
            "4 of 10 maps of the class (40 %) show nearly the same pattern at the same place, in the upper right of "
            "the image; 0.1 % of the other classes' maps show it. A window at that place holds 40 % of the relevance "
            "of these maps, against 5 % in the rest of the class and 2 % in other classes."
        )
        whole = Suspicion(3.0, True, np.ones(10, np.bool_), 0.1, 0.9, 0.4, 0.0, 0.02, 0.0)
        assert finding_text(whole).startswith("All 10 maps") and "rest of the class" not in finding_text(whole)
        nearly = Suspicion(3.0, True, np.arange(10) < 9, 0.1, 0.9, 0.4, 0.5, 0.02, 0.0)
        assert finding_text(nearly).startswith("9 of 10 maps") and "rest of the class" not in finding_text(nearly)
