"""What the commands under ``bench`` end with: a record's page, printed and put into texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from fastresnet.errors import UserError


def check_beside_show(context: typer.Context, *fitting: str) -> None:
    """Raise UserError where what is of a measurement was typed beside ``--show``, which would leave it unused.

    Args:
        fitting: names of the parameters that fit it, beside ``--insert``.
    """
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        typed = source is not None and source.name == "COMMANDLINE"
        if typed and name not in ("show", "insert", *fitting):
            told = parameter.opts[-1] if parameter.opts[-1].startswith("-") else name.upper()
            raise UserError(f"{told} is of a measurement, and --show measures nothing; leave one of them out")


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
