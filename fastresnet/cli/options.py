"""Options and arguments that several commands spell alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's path, id, or 'last'; with ':best' after it, its best weights."
    ),
]

Compile = Annotated[str | None, typer.Option("--compile", help="auto (measured), on, whole or off.")]

# Of the commands under `bench`:
Minutes = Annotated[
    float | None, typer.Option(help="Start nothing after this; the same --out goes on.", min=0)
]
ContinuedOut = Annotated[
    Path | None,
    typer.Option(
        help="The record; a page of it goes beside it. One that exists is gone on with "
        "[default: a dated file in bench-results]."
    ),
]
Show = Annotated[Path | None, typer.Option(metavar="RECORD", help="Measure nothing; show this record again.")]
Insert = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="Also put what is shown into a marked text file.")
]
