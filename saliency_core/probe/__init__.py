"""Checks, on a few synthetic images, that the saliency maps of a model are meaningful."""
