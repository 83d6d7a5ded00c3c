"""Templates to HTML, and a page with its figures to disk."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fastresnet import __version__
from fastresnet.atomic import explain_os_error, write_atomic
from fastresnet.report.palette import DARK, LEVELS, LIGHT, SHADES, shade
from fastresnet.report.tables import Bar

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        page: the HTML file.
        figures: the PNG files.
        notices: what is missing from the page, one line each.
    """

    page: Path
    figures: tuple[Path, ...]
    notices: tuple[str, ...]


def render(template: str, **values: Any) -> str:
    """Return a template of this folder, filled in; every value that is not Markup is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastresnet.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["bar"] = lambda value: isinstance(value, Bar)
    css = (resources.files("fastresnet.report") / "page.css").read_text("utf-8")
    return environment.get_template(template).render(
        **values, style=Markup(_colours() + css), version=__version__
    )


def _colours() -> str:
    """Return the palette and the shadings as CSS, light, and dark where the reader prefers it."""
    rules = []
    for dark, palette in ((False, LIGHT), (True, DARK)):
        lines = [f":root{{{''.join(f'--{name}:{value};' for name, value in palette.items())}}}"]
        for kind in SHADES:
            for level in range(LEVELS + 1):
                background, text = shade(kind, level, dark)
                lines.append(f".{kind}{level}{{background:{background};color:{text}}}")
        rules.append("\n".join(lines))
    return f"{rules[0]}\n@media (prefers-color-scheme: dark) {{\n{rules[1]}\n}}\n"


def write_page(folder: Path, html: str, figures: Mapping[str, bytes], notices: Sequence[str]) -> Written:
    """Write ``report.html`` and the figures to ``folder``, making it; each file is whole or as it was.

    Figures of the page that stood there, which this one does not have, are removed.

    Raises:
        UserError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, f"cannot make the folder {folder}") from error
    paths = []
    for name, png in figures.items():
        path = folder / f"{name}.png"
        _write(path, png)
        paths.append(path)
    page = folder / PAGE
    for name in _figures_of(page) - set(figures):
        with contextlib.suppress(OSError):
            (folder / f"{name}.png").unlink()
    _write(page, html.encode())
    return Written(page=page, figures=tuple(paths), notices=tuple(notices))


def _figures_of(page: Path) -> set[str]:
    """Return the names of the figures of a page of ours; empty where there is none."""
    try:
        found = re.search(r'<meta name="figures" content="([A-Za-z0-9 -]*)">', page.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return set()
    return set(found[1].split()) if found else set()


def _write(path: Path, contents: bytes) -> None:
    write_atomic(path, lambda file: file.write(contents) and None)
