"""Slugs: one line of text for any :class:`~fastresnet.arch.ArchSpec`, and back.

``n{N}-b{B}-c{C}[-f{F}][-k{K}][-p{P}][-stem{kernel}[x{channels}]][-bottleneck|-plain]``
``[-leaky_relu|-gelu|-silu][-maxpool][-headmax][-dh{p}][-db{p}][-ds{p}]``. B, C, F and K are one value or N values with
commas; a single C doubles a stage, a single B, F or K repeats. Left out: F=3, K=1, global pooling, a 3x3 stem as wide
as the first stage, basic blocks, ReLU, maps halved by stride, the head's pool an average, no dropout (before the head
``dh``, inside blocks ``db``, after stages ``ds``).
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, get_args

from fastresnet.arch import MAX_STAGES, Activation, ArchSpec, Dropout
from fastresnet.errors import UserError

_WORDS = {
    "bottleneck": ("block", "bottleneck"),
    "plain": ("block", "plain"),
    "maxpool": ("down", "maxpool"),
    "headmax": ("head_pool", "max"),
}  # other words are activations
_TOKEN = re.compile(
    r"(?P<key>[nbcfkp])(?P<ints>\d{1,6}(?:,\d{1,6})*)"
    r"|stem(?P<stem>\d{1,6})(?:x(?P<stem_channels>\d{1,6}))?"
    r"|d(?P<place>[hbs])(?P<rate>\d*\.?\d+)"
    r"|(?P<word>" + "|".join((*_WORDS, *get_args(Activation))) + ")"
)
_PLACES = {"h": "head", "b": "block", "s": "stage"}
_FORM = (
    "n{N}-b{B}-c{C} with any of -f{F} -k{K} -p{P} -stem{kernel}[x{channels}] -bottleneck -plain "
    "-{activation} -maxpool -headmax -dh{p} -db{p} -ds{p}"
)


def looks_like_slug(text: str) -> bool:
    """Return whether ``text`` was meant as a slug, right or wrong: it starts as ``n4-``."""
    return re.match(r"n\d+(-|$)", text) is not None


def format_slug(spec: ArchSpec) -> str:
    """Return the canonical slug: what is at its default is left out, and the parts are in one order."""
    parts = [f"n{spec.num_stages}", "b" + _values(spec.blocks)]
    doubling = tuple(spec.channels[0] << i for i in range(spec.num_stages))
    parts.append("c" + (str(spec.channels[0]) if spec.channels == doubling else _list(spec.channels)))
    if set(spec.kernels) != {3}:
        parts.append("f" + _values(spec.kernels))
    if set(spec.shortcut_kernels) != {1}:
        parts.append("k" + _values(spec.shortcut_kernels))
    if spec.pool is not None:
        parts.append(f"p{spec.pool}")
    if spec.stem_channels is not None:
        parts.append(f"stem{spec.stem}x{spec.stem_channels}")
    elif spec.stem != 3:
        parts.append(f"stem{spec.stem}")
    if spec.block != "basic":
        parts.append(spec.block)
    if spec.activation != "relu":
        parts.append(spec.activation)
    if spec.down != "stride":
        parts.append(spec.down)
    if spec.head_pool != "average":
        parts.append("headmax")
    for letter, place in _PLACES.items():
        if rate := getattr(spec.dropout, place):
            # Decimal writes 1e-05 as 0.00001: an exponent's minus would read as a separator
            parts.append(f"d{letter}{Decimal(repr(rate)):f}")
    return "-".join(parts)


def parse_slug(text: str) -> ArchSpec:
    """Return the spec that ``text`` describes; the parts may come in any order.

    Raises:
        UserError: a part that is not of the form, given twice or missing; lists of unequal lengths; or a
            value that :class:`ArchSpec` refuses.
    """
    given: dict[str, Any] = {}
    for part in text.split("-"):
        match = _TOKEN.fullmatch(part)
        if match is None:
            raise UserError(f"slug {text!r}: cannot read {part!r}; the form is {_FORM}")
        key, value = _read(match)
        if key in given:
            raise UserError(f"slug {text!r}: {part!r} gives again what an earlier part gave")
        given[key] = value
    for key in "nbc":
        if key not in given:
            raise UserError(f"slug {text!r}: {key} is missing; the form is {_FORM}")
    for key in "np":
        if len(given.get(key, (0,))) != 1:
            raise UserError(f"slug {text!r}: {key} takes one value")
    stages = given["n"][0]
    if not 1 <= stages <= MAX_STAGES:
        raise UserError(f"slug {text!r}: n is {stages}; it must be 1 to {MAX_STAGES}")
    for key in "bcfk":
        values = given.get(key, (0,))
        if len(values) not in (1, stages):
            meaning = "doubles a stage" if key == "c" else "repeats"
            raise UserError(
                f"slug {text!r}: {key} has {len(values)} values for n{stages}; "
                f"give {stages}, or 1, which {meaning}"
            )

    def spread(key: str, usual: int) -> tuple[int, ...]:
        values: tuple[int, ...] = given.get(key, (usual,))
        return values if len(values) == stages else values * stages

    width = given["c"]
    stem, stem_channels = given.get("stem", (3, None))
    try:
        return ArchSpec(
            blocks=spread("b", 1),
            channels=width if len(width) == stages else tuple(width[0] << i for i in range(stages)),
            kernels=spread("f", 3),
            shortcut_kernels=spread("k", 1),
            pool=given.get("p", (None,))[0],
            stem=stem,
            stem_channels=stem_channels,
            block=given.get("block", "basic"),
            activation=given.get("activation", "relu"),
            down=given.get("down", "stride"),
            head_pool=given.get("head_pool", "average"),
            dropout=Dropout(**{place: given.get("d" + letter, 0.0) for letter, place in _PLACES.items()}),
        )
    except UserError as error:
        raise UserError(f"slug {text!r}: {error}") from None


def _read(match: re.Match[str]) -> tuple[str, Any]:
    found = {name: text for name, text in match.groupdict().items() if text is not None}
    if "key" in found:
        return found["key"], tuple(int(number) for number in found["ints"].split(","))
    if "stem" in found:
        width = found.get("stem_channels")
        return "stem", (int(found["stem"]), None if width is None else int(width))
    if "place" in found:
        return "d" + found["place"], float(found["rate"])
    word = found["word"]
    return _WORDS.get(word, ("activation", word))


def _list(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))


def _values(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else _list(values)
