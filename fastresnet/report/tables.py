"""Tables, and how numbers are written in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

DASH = "\u2013"  # an en dash, for what is not there


class Bar(NamedTuple):
    """A number with a bar beside it.

    Fields:
        text: the number as written.
        share: the bar's length, from 0 to 1.
    """

    text: str
    share: float


Value = str | Bar


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; each row's first value is its heading.

    Attributes:
        caption: what it is; read aloud, and shown.
        columns: headings.
        rows: as long as ``columns``.
        numeric: the columns, from 0, that are set flush right.
        prose: the columns, from 0, that hold sentences.
        footer: a last row of totals; empty for none.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    numeric: frozenset[int] = frozenset()
    prose: frozenset[int] = frozenset()
    footer: tuple[Value, ...] = ()


def percent(share: float | None) -> str:
    """Return 0.8012 as ``80.12%``, None as a dash."""
    return DASH if share is None else f"{share:.2%}"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number to ``digits`` decimals, None as a dash."""
    return DASH if value is None else f"{value:.{digits}f}"


def count(value: int | None) -> str:
    """Return 4935242 as ``4,935,242``, None as a dash."""
    return DASH if value is None else f"{value:,}"


def points(difference: float | None) -> str:
    """Return a difference of two shares in percentage points, with its sign."""
    return DASH if difference is None else f"{100 * difference:+.2f}"
