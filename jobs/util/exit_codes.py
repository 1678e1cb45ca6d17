"""Exit codes, the same for every command."""

DONE = 0
"""Every row is as expected."""
NOT_FINISHED = 1
"""The command did not finish, and printed what to run next. Also an internal error."""
REFUSED = 2
"""The configuration or the input is refused. Nothing was changed."""
IMPERFECT = 3
"""Done, but some rows are quarantined or partial."""
DAMAGED = 4
"""``verify`` found damage."""
INTERRUPTED = 130
"""Ctrl-C."""


def imperfect_code(allowed: bool) -> int:
    """Returns the code of a command that is done with some rows quarantined or partial.

    It is IMPERFECT, or DONE if that is ``allowed`` (``--allow-quarantined``), so that ``make`` continues.
    """
    return DONE if allowed else IMPERFECT
