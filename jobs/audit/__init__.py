"""Audits a model by its maps: measures every map, clusters the maps of each class, and ranks suspicious classes."""
