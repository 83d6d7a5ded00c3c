"""Errors that are the user's to mend: one line, shown without a traceback, exit code 2."""

import difflib
import math
import re
from collections.abc import Iterable


class UserError(Exception):
    """What was wrong, what is allowed, and what to do, in one line."""


class RefusedValue(UserError):
    """A value of a setting is not allowed; most messages begin with its key.

    Attributes:
        key: which, with dots; empty where several do not go together.
    """

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class Conflict(ValueError):
    """Values of a model that are each allowed do not go together.

    Attributes:
        at: the key to change, from the model that says so; what its line is found by.
    """

    def __init__(self, message: str, *at: str | int) -> None:
        super().__init__(message)
        self.at = at


def did_you_mean(name: str, allowed: Iterable[str], under: str = "") -> str:
    """Return ``"; did you mean 'X'?"`` for the nearest of ``allowed``, after ``under``, or an empty string.

    Of several that are equally near as words, it is the one whose numbers are nearest.
    """
    matcher = difflib.SequenceMatcher(b=name)
    numbers = _numbers(name)
    ranked = []
    for candidate in allowed:
        matcher.set_seq1(candidate)
        theirs = _numbers(candidate)
        apart = math.inf if len(theirs) != len(numbers) else math.dist(numbers, theirs)
        ranked.append((-matcher.ratio(), apart, candidate))
    nearest = min(ranked, key=lambda rank: rank[:2], default=None)
    return f"; did you mean {under + nearest[2]!r}?" if nearest is not None and -nearest[0] >= 0.5 else ""


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall("[0-9]{1,9}", name)]


class ToldElsewhere(UserError):
    """A mistake that another process of the run tells the user of."""
