"""Starts the command line for ``python -m jobs`` and ``saliency``."""

from __future__ import annotations

import sys

from jobs.util.exit_codes import REFUSED
from jobs.util.hidden_modules import describe_hidden_module

try:
    from jobs.cli.app import main
except Exception as error:
    message = describe_hidden_module(error)
    if message is None:
        raise
    sys.stderr.write(f"refused: {message}\n")
    sys.exit(REFUSED)

if __name__ == "__main__":
    main()
