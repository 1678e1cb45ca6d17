"""The store's format on disk, version 1: keys, records, arrays, reading."""
