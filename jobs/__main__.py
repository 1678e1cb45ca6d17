"""``python -m jobs`` and ``saliency``: the same program."""

from __future__ import annotations

from jobs.cli import main

if __name__ == "__main__":
    main()
