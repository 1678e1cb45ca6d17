"""Draws maps as pictures."""
