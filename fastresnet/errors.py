"""Errors that are the user's to mend: one line, shown without a traceback, exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What was wrong, what is allowed, and what to do, in one line."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'X'?"`` for the nearest of ``allowed``, or an empty string."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


class ToldElsewhere(UserError):
    """A mistake that another process of the run tells the user of."""
