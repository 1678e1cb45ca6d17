"""Exit codes, the same for every command."""

DONE = 0
"""Every row as expected."""
NOT_FINISHED = 1
"""What to run next is printed; also an internal error."""
REFUSED = 2
"""Bad configuration or input; nothing was touched."""
IMPERFECT = 3
"""Done, but some rows are quarantined or partial."""
DAMAGED = 4
"""``verify`` found damage."""
INTERRUPTED = 130
"""Ctrl-C."""


def imperfect_code(allowed: bool) -> int:
    """The code of a command that is done, if some rows are quarantined or partial: IMPERFECT, or DONE if that is
    ``allowed`` (``--allow-quarantined``), so that ``make`` goes on."""
    return DONE if allowed else IMPERFECT
