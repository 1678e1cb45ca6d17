"""Runs the whole program on images with a planted artefact and a model that relies on it."""
