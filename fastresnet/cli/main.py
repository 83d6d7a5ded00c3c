"""The ``fastresnet`` command: its sub-commands, and how errors reach the user."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from fastresnet import __version__
from fastresnet.atomic import explain_os_error
from fastresnet.cli import (
    archs,
    bench,
    data,
    doctor,
    evaluate,
    export,
    predict,
    recipes,
    report,
    sweep,
    train,
)
from fastresnet.cli.launched import leave, over_ranks, refuse_ranks
from fastresnet.cli.output import complain
from fastresnet.errors import ToldElsewhere, UserError
from fastresnet.signals import Stopped, raise_stopped
from fastresnet.torchrun import read_launch

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train small-image residual networks fast, and measure it. Every command has --help.",
)
app.command("train")(over_ranks(train.train))
app.command("eval")(evaluate.evaluate)
app.command("sweep")(sweep.sweep)
app.command("report")(report.report)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("archs")(archs.archs)
app.command("recipes")(recipes.recipes)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastresnet {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in (None, "train"):
        refuse_ranks(str(context.invoked_subcommand))


def main() -> None:
    """Run the command line and exit: 0, 2 after a mistake of the user's, 128 + a signal's number."""
    raise_stopped()
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except ToldElsewhere:
        leave(2)
    except UserError as error:
        _fail(str(error))
    except Stopped as stopped:
        if read_launch().rank == 0:
            complain(f"{stopped}; nothing was left half-written")
        leave(128 + stopped.signum)
    except BrokenPipeError:
        _say_no_more()  # the reader of our output has gone
        sys.exit(141)
    except OSError as error:
        _say_no_more()  # into a file on a full disk, perhaps
        what = (
            f"cannot use {error.filename}"
            if error.filename
            else "cannot write what is printed, or read a file"
        )
        _fail(str(explain_os_error(error, what)))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        if read_launch().rank:  # all ranks were started with the same words
            leave(2)
        _fail(f"{error.format_message().rstrip('.')}; see --help")
    sys.exit(code if isinstance(code, int) else 0)


def _say_no_more() -> None:
    """Throw away what is printed from now on, and what could not be written yet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> None:
    with contextlib.suppress(OSError):
        typer.echo(f"fastresnet: error: {' '.join(message.split())}", err=True)
    leave(2)
