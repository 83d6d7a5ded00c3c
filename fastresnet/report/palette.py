"""The colours of pages and figures, light and dark; figures are drawn in the light ones and themed by CSS."""

from __future__ import annotations

LIGHT = {
    "page": "#fdfdfc",
    "panel": "#f3f4f2",
    "line": "#d5d8d3",
    "ink": "#1a1d1f",
    "muted": "#565d61",
    "accent": "#1d56b5",
    "good": "#0b6e4f",
    "bad": "#b3311f",
    "grid": "#e3e5e1",
    "series0": "#1f5fc4",
    "series1": "#b4530a",
    "series2": "#0f7a5a",
    "series3": "#a2307f",
    "series4": "#6b4fc0",
    "series5": "#7b5f00",
    "series6": "#0a7187",
    "series7": "#c22f36",
    "series8": "#5b6670",
    "series9": "#56701a",
}
DARK = {
    "page": "#14171a",
    "panel": "#1c2024",
    "line": "#363c42",
    "ink": "#e8eaec",
    "muted": "#a6aeb5",
    "accent": "#86b4ff",
    "good": "#5fd3a8",
    "bad": "#ff9a8a",
    "grid": "#2a2f34",
    "series0": "#74a9ff",
    "series1": "#f2a65a",
    "series2": "#4fcb9d",
    "series3": "#ee8fca",
    "series4": "#b6a1ff",
    "series5": "#d9c24c",
    "series6": "#5cc9df",
    "series7": "#ff8a85",
    "series8": "#a9b4be",
    "series9": "#b3cf57",
}
NUM_SERIES = 10
LEVELS = 20  # steps of a shading from nothing to full

# What the greatest value of each shading is, light and dark.
SHADES = {"hit": ("#0a5f9e", "#4d9de0"), "miss": ("#b23a12", "#f0804f")}


def shade(kind: str, level: int, dark: bool = False) -> tuple[str, str]:
    """Return the background of a shading's step, 0 to LEVELS, and the colour of text that is read best on it."""
    start, end = (DARK if dark else LIGHT)["page"], SHADES[kind][dark]
    share = level / LEVELS
    mixed = [round(a + (b - a) * share) for a, b in zip(_channels(start), _channels(end), strict=True)]
    background = "#{:02x}{:02x}{:02x}".format(*mixed)
    return background, max(("#000000", "#ffffff"), key=lambda text: contrast(text, background))


def level_of(share: float) -> int:
    """Return the step that shows ``share``, from 0 to 1; what is not nothing is at least the first."""
    return min(LEVELS, max(1, round(share * LEVELS))) if share > 0 else 0


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two colours, from 1 to 21 (WCAG 2.2)."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _luminance(colour: str) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in _channels(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
