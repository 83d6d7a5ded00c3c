"""Options and arguments that several commands spell alike."""

from __future__ import annotations

from typing import Annotated

import typer

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's path, id, or 'last'; with ':best' after it, its best weights."
    ),
]
