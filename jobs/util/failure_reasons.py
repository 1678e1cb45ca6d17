"""Rewords the reasons of failed rows: without file names, so that equal causes are counted together."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAMELESS = "the file"
_RETRY = "run `saliency retry`"


def replace_names(reason: str, names: Iterable[str | None]) -> str:
    """Returns the reason with ``NAMELESS`` in place of each name that stands there as a whole.

    A name that is a part of a longer path, or of a word, stays: the rest of the path would name another file.
    """
    for name in sorted(filter(None, names), key=len, reverse=True):
        if name in reason:
            reason = re.sub(rf"(?<![\w/~#%@.\\-]){re.escape(name)}(?![\w/~#%@\\-]|\.\w)", NAMELESS, reason)
    return reason


def reword_for_explained(reason: str) -> str:
    """Returns the reason for a row that has maps and whose image cannot be read again.

    `saliency retry` processes rows without maps only, so the reason names the present command instead.
    """
    return reason.replace(_RETRY, "run this command again")
