"""Former place of `jobs.MapDataset`, kept for one release: import it from `jobs`."""

from __future__ import annotations

from jobs.store.torch_dataset import MapDataset

__all__ = ["MapDataset"]
