"""Writes rows of a store in the formats of other tools."""
