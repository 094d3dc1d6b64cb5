"""The exception that means: the user can fix this, and the message says how."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or environment: one line with the offending value and what is allowed.

    The entry scripts print the message to stderr and exit with status 2.
    """


class SaidElsewhereError(UserError):
    """The same error on a process of several, of which another one prints the line."""
