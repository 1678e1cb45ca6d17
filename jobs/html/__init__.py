"""Builds HTML pages: tables, tiles, pictures of maps, sprite sheets, and the folder that holds them."""
