"""Count reasons of rows without the names of the rows' files, so that equal causes are counted together."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAMELESS = "the file"
_RETRY = "run `saliency retry`"


def replace_names(reason: str, names: Iterable[str | None]) -> str:
    """The reason with ``NAMELESS`` instead of each of the names, if the name stands there as a whole.

    A name that is a part of a longer path, or of a word, stays: what is left of the path would name another file.
    """
    for name in sorted(filter(None, names), key=len, reverse=True):
        if name in reason:
            reason = re.sub(rf"(?<![\w/~#%@.\\-]){re.escape(name)}(?![\w/~#%@\\-]|\.\w)", NAMELESS, reason)
    return reason


def reword_for_explained(reason: str) -> str:
    """The reason why the image of a row that has maps cannot be read again.

    `saliency retry` takes up rows without maps, so it would do nothing for this one: the command that reads the image
    is what to run again.
    """
    return reason.replace(_RETRY, "run this command again")
