"""Checks, on a few synthetic images, that the maps of a model mean something."""
