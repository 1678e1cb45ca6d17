"""The former module of `jobs.MapDataset`, kept for one release. Import it from `jobs`."""

from __future__ import annotations

from jobs.store.torch_dataset import MapDataset

__all__ = ["MapDataset"]
