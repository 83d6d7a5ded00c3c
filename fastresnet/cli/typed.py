"""What was typed: the values of ``--set``, and mistakes under the names of the options that they were typed as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastresnet.errors import RefusedValue, UserError


def option_of(key: str) -> str:
    """Return the option that sets a key of a recipe or a run's config."""
    return f"--{key.removesuffix('_s').replace('_', '-')}"


def assigned(assignments: Iterable[str] | None, given: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys and values of ``--set``.

    Args:
        assignments: each as ``KEY=VALUE``.
        given: the keys that were typed as options of their own.

    Raises:
        UserError: one has no ``=``, or a key is given twice, in whatever way.
    """
    values: dict[str, str] = {}
    for assignment in assignments or ():
        key, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise UserError(
                f"--set {assignment!r} has no '='; write --set KEY=VALUE, as in --set optimizer.lr=0.1"
            )
        if key in values:
            raise UserError(f"--set {key} is given twice, as {values[key]!r} and {value!r}; give it once")
        if key in given:
            raise UserError(f"{option_of(key)} and --set {key} both set {key}; give one of them")
        values[key] = value
    return values


def listed(text: str | None) -> tuple[str, ...]:
    """Return names with commas between them, each once."""
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def listed_names(option: str, text: str, what: str, example: str) -> tuple[str, ...]:
    """Return the names that ``option`` gives, with commas between them; raises UserError where it gives none."""
    names = listed(text)
    if not names:
        raise UserError(f"{option} names no {what}; give one or more, as in {option} {example}")
    return names


def listed_archs(option: str, text: str) -> tuple[str, ...]:
    """Return the archs that ``option`` names, with commas between them; raises UserError where it names none."""
    return listed_names(option, text, "network", "resnet8")


def listed_counts(option: str, text: str, example: str, least: int = 1) -> tuple[int, ...]:
    """Return the numbers that ``option`` gives, with commas between them, each once.

    Raises:
        UserError: it gives none, or one that is no whole number of at least ``least``.
    """
    parts = listed(text)
    if not parts or not all(part.isascii() and part.isdigit() and int(part) >= least for part in parts):
        raise UserError(
            f"{option} is {text!r}; give whole numbers of at least {least} with commas between them, as in "
            f"{option} {example}"
        )
    return tuple(dict.fromkeys(map(int, parts)))


@contextmanager
def named_as_typed(given: Iterable[str]) -> Iterator[None]:
    """Name the option in a :class:`RefusedValue` of one of the keys ``given``, which were typed as options."""
    try:
        yield
    except RefusedValue as error:
        if error.key not in given or not str(error).startswith(error.key):
            raise
        raise UserError(option_of(error.key) + str(error).removeprefix(error.key)) from None
