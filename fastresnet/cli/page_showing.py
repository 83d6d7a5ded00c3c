"""What the commands under ``bench`` end with: a record's page, printed and put into texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer


def show_page(page: str, mark: str, places: Iterable[Path] | None) -> None:
    """Print a page of Markdown, and put it between the marks ``mark`` of the texts at ``places``, without its heading.

    Raises:
        UserError: as :func:`fastresnet.bench.record.insert_marked`; nothing is printed then.
    """
    from fastresnet.bench.record import insert_marked

    body = page.partition("\n\n")[2] if page.startswith("# ") else page
    for place in places or ():
        insert_marked(mark, body, place)
    typer.echo(page, nl=False)
