"""The former module of `jobs.open_store` and `jobs.Store`, kept for one release. Import them from `jobs`."""

from __future__ import annotations

from jobs.store.store_reader import Store, open_store

__all__ = ["Store", "open_store"]
