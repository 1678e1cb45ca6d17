"""Runs audits, and writes made-up audits with plausible content for the report's tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from jobs.audit.audit_command import audit
from jobs.audit.audit_schema import (
    AUDIT_JSON,
    CLASSES,
    CLUSTERS,
    ROWS,
    Audit,
    audit_folder,
    class_schema,
    cluster_schema,
)
from jobs.audit.audit_schema import row_schema as schema_of_rows
from jobs.storage.object_store import open_output, put
from jobs.store.store_reader import open_store
from saliency_core.map_measures import CORNERS, MEASURES, measure, shares, shrink
from tests.conftest import said

CORNER_PLACES = {"top_left": (0.12, 0.12), "top_right": (0.12, 0.88), "bottom_left": (0.88, 0.12)}
MOST_ROWS = 12


def run_audit(out: Path | str, **keys: object) -> tuple[int, str]:
    """Runs an audit without a report. Returns the exit code and the printed text."""
    return said(audit, str(out), **{"runner": "inline", "report": False, **keys})


def write_audit(out: str, array: str, *, alarms: int = 1, names: dict[int, str] | None = None) -> Audit:
    """Writes an audit with real measures and made-up findings.

    Every class of at least ten rows has two clusters. The ``alarms`` classes with the most relevance in a corner are
    findings.
    """
    store = open_store(out)
    target = store.array(array).spec.target
    lines = store.lines().select(["row", "label", f"{target}__status", f"{target}__class", f"{target}__probability"])
    table = {name: np.array(lines[name].to_pylist(), object) for name in lines.column_names}
    mapped = np.flatnonzero(table[f"{target}__status"] == "ok")
    parts = shares(store.maps(array, mapped))
    small, measures = shrink(parts), measure(parts)
    cells = small.shape[1:]
    flat = np.nan_to_num(small.reshape(len(small), -1))
    classes = np.array([-1 if number is None else number for number in table[f"{target}__class"][mapped]], np.int64)
    predicted = np.array(store.lines(mapped, ["predicted__class"])[0].to_pylist(), object)
    sure_of = np.array(store.lines(mapped, ["predicted__probability"])[0].to_pylist(), object)
    labels = table["label"][mapped]
    correct = np.array(
        [None if a is None or b is None else a == b for a, b in zip(labels, predicted, strict=True)], object
    )
    probability = table[f"{target}__probability"][mapped]
    n = len(mapped)
    cluster, outlier, embed = np.full(n, -1), np.zeros(n), np.zeros((n, 2))
    class_lines: list[dict[str, object]] = []
    clusters: list[dict[str, object]] = []

    def statistics(own: np.ndarray) -> dict[str, object]:
        hits = [value for value in correct[own] if value is not None]
        probabilities = [value for value in probability[own] if value is not None]
        mean = flat[own].mean(axis=0)
        return {
            "count": len(own),
            "accuracy": float(np.mean(hits)) if hits else None,
            "confidence": float(np.mean(probabilities)) if probabilities else None,
            "spread": float(np.abs(flat[own] - mean).sum(axis=1).mean() / 2),
            **{name: float(np.nanmean(values[own])) for name, values in measures.items()},
            "pointing": None,
            "inside": None,
            "mean_map": mean.tolist(),
        }

    for number in np.unique(classes).tolist():
        own = np.flatnonzero(classes == number)
        distance = np.abs(flat[own] - flat[own].mean(axis=0)).sum(axis=1)
        outlier[own] = distance / max(1e-9, float(np.median(distance)))
        order = own[np.argsort(distance, kind="stable")]
        if len(own) >= 3:
            embed[own] = PCA(2, random_state=0).fit_transform(flat[own])
        line: dict[str, object] = {
            "class": number, "class_name": (names or {}).get(number, (store.run.class_names or {number: None})[number]),
            **statistics(own), "alarm": False, "suspect": -1, "spot_y": None, "spot_x": None, "spot_rows": 0,
            "finding": None,
            "eigengap": 0.1, "clusters": 1,
            "typical": mapped[order[:MOST_ROWS]].tolist(), "atypical": mapped[order[::-1][:MOST_ROWS]].tolist(),
            "wrong": mapped[own[correct[own] == False]][:MOST_ROWS].tolist(),  # noqa: E712
        }  # fmt: skip
        corner = max(CORNERS, key=lambda name: line[f"corner_{name}"])  # type: ignore[arg-type, return-value]
        line["score"] = line[f"corner_{corner}"]
        if len(own) >= 10:
            cluster[own] = KMeans(2, n_init=2, random_state=0).fit_predict(flat[own])
            line["clusters"], line["eigengap"] = 2, 0.4
            inside = measures[f"corner_{corner}"]
            means = [float(inside[own[cluster[own] == k]].mean()) for k in (0, 1)]
            line["suspect"] = int(np.argmax(means))
            for k in (0, 1):
                group = own[cluster[own] == k]
                clusters.append(
                    {
                        "class": number, "cluster": k, **statistics(group),
                        "differs": f"{means[k]:.0%} of its relevance lies in the {corner.replace('_', ' ')} corner, "
                        f"{means[1 - k]:.0%} of the rest's.",
                        "examples": mapped[group[np.argsort(-inside[group])][:MOST_ROWS]].tolist(),
                    }
                )  # fmt: skip
            line["spot_rows"] = int((cluster[own] == line["suspect"]).sum())
        line["spot_y"], line["spot_x"] = CORNER_PLACES.get(corner, (0.88, 0.88))
        line["finding"] = (
            f"{line['spot_rows']} of {len(own)} rows have unusual relevance in the {corner.replace('_', ' ')} corner, "
            "where the other classes have none."
        )
        class_lines.append(line)
    class_lines.sort(key=lambda line: -line["score"])  # type: ignore[operator]
    for rank, line in enumerate(class_lines, start=1):
        line["rank"], line["alarm"] = rank, rank <= alarms
        if rank > alarms:
            line |= {"finding": None, "spot_y": None, "spot_x": None, "suspect": -1}
    rows = {
        "row": mapped, "class": classes, "label": labels, "predicted": predicted, "correct": correct,
        "probability": probability, "sure": sure_of, **{name: measures[name] for name in MEASURES},
        "pointing": [None] * n, "inside": [None] * n, "cluster": cluster, "outlier": outlier,
        "embed_x": embed[:, 0], "embed_y": embed[:, 1],
    }  # fmt: skip
    spec = store.array(array).spec
    audit = Audit(
        array=array, target_spec=spec.target_spec, method_spec=spec.method_spec, cells=cells, rows=len(store),
        mapped=n, blank=int(np.isnan(parts[:, 0, 0]).sum()), classes=len(class_lines),
        alarms=min(alarms, len(class_lines)), seed=0,
        seconds={"measure": 3.0, "cluster": 2.0}, overall=statistics(np.arange(n)),
    )  # fmt: skip
    files, prefix = open_output(out), audit_folder(array)
    schema = schema_of_rows()
    columns = [pa.array(list(rows[field.name]), field.type, from_pandas=True) for field in schema]
    for name, content in (
        (ROWS, pa.table(columns, schema=schema)),
        (CLASSES, pa.Table.from_pylist(class_lines, schema=class_schema(cells))),
        (CLUSTERS, pa.Table.from_pylist(clusters, schema=cluster_schema(cells))),
    ):
        sink = io.BytesIO()
        pq.write_table(content, sink)
        put(files, f"{prefix}/{name}", sink.getvalue())
    put(files, f"{prefix}/{AUDIT_JSON}", audit.model_dump_json().encode())
    return audit
