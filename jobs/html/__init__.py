"""Parts of HTML pages: tables, tiles, pictures, sprite sheets."""
