"""The exception that means: the user can fix this, and the message says how."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or environment: one line with the offending value and what is allowed.

    The entry scripts print the message to stderr and exit with status 2.
    """


class SaidElsewhereError(UserError):
    """The same error on a process of several, of which another one prints the line."""


def first_line(error: BaseException, most: int = 160) -> str:
    """Return the first line of what an exception says, its kind where it says nothing, cut after a word at `most`."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if len(line) <= most:
        return line
    return f"{line[: most + 1].rsplit(maxsplit=1)[0][:most]} …"


def kind_and_line(error: BaseException, most: int = 160) -> str:
    """Return `ValueError: what it says in its first line`, or its kind alone where it says nothing."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error, most)}" if str(error).strip() else kind
