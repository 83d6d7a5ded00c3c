"""How counts and data sets are named wherever they are shown."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return ``number`` of ``noun``, which takes an s unless there is one of it: 1 epoch, 2,000 epochs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def dataset_shown(name: str, is_builtin: bool) -> str:
    """Return a data set's name as every figure on it must say it."""
    return f"{name} (drawn images, not photographs)" if is_builtin else name
