"""Loads and serves exported projects with ViRelAy, and prints their content as JSON.

Run it in a separate environment that has ViRelAy: ViRelAy needs an older Pillow than this project.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from virelay.model import Project, Workspace
from virelay.server import Server


def shown(path: str) -> dict[str, object]:
    """Returns everything that ViRelAy can show of a project."""
    project = Project(path)
    samples = [project.get_sample(i) for i in range(len(project.dataset))]
    attributions = {}
    for i in range(len(samples)):
        try:
            found = project.get_attribution(i)
        except LookupError:
            continue
        attributions[i] = {
            "sum": found.data.sum(axis=2).tolist(),
            "label": found.labels[0].name,
            "prediction": found.prediction.tolist(),
        }
    analyses = {}
    for method in project.get_analysis_methods():
        clustering, embedding = (
            project.get_analysis_clustering_names(method)[0],
            project.get_analysis_embedding_names(method)[0],
        )
        for category in project.get_analysis_categories(method):
            found = project.get_analysis(method, category.name, clustering, embedding)
            analyses[category.human_readable_name] = {
                "index": found.attribution_indices.tolist(),
                "cluster": found.clustering.tolist(),
                "embedding": found.embedding.tolist(),
            }
    return {
        "name": project.name,
        "strategy": project.attribution_strategy,
        "images": [sample.data.tolist() for sample in samples],
        "labels": [sample.labels[0].name for sample in samples],
        "attributions": attributions,
        "analyses": analyses,
    }


def served(path: str, attribution: int) -> list[int]:
    """Requests the project, a sample, and its heat map in every colour map. Returns the HTTP status codes."""
    workspace = Workspace()
    workspace.add_project(path)
    server = Server(workspace)
    client = server.app.test_client()
    pages = ["/api/projects", "/api/projects/0", f"/api/projects/0/dataset/{attribution}/image"]
    pages += [
        f"/api/projects/0/attributions/{attribution}/heatmap?colorMap={name}&superimpose={on}"
        for name in server.color_maps
        for on in ("True", "False")
    ]
    return [client.get(page).status_code for page in pages]


if __name__ == "__main__":
    projects = [str(Path(path).absolute()) for path in sys.argv[1:]]
    os.chdir("/")  # paths in the files must be resolved against the files, not the working directory
    np.seterr(all="raise", under="ignore")
    seen = [shown(path) for path in projects]
    first = [min(map(int, one["attributions"])) for one in seen]  # type: ignore[arg-type, call-overload]
    answers = [served(path, index) for path, index in zip(projects, first, strict=True)]
    json.dump({"projects": seen, "answers": answers}, sys.stdout)
