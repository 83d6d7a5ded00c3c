"""The ``fastresnet`` command: its sub-commands, and how errors reach the user."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

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
from fastresnet.signals import Stopped, discard, raise_stopped
from fastresnet.thread_start import bound_thread_starts
from fastresnet.torchrun import read_launch

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train small-image residual networks fast, and measure it. Every command has --help.",
)
# a summary of at most 45 characters is never cut off
app.command("train", short_help="Train a network.")(over_ranks(train.train))
app.command("eval", short_help="Evaluate a run's weights, exactly.")(evaluate.evaluate)
app.command("sweep", short_help="Train a grid of networks or settings.")(sweep.sweep)
app.command("report", short_help="Write a page about runs or a sweep.")(report.report)
app.command("predict", short_help="Tell the likeliest classes of images.")(predict.predict)
app.command("export", short_help="Write a network for other programs.")(export.export)
app.command("archs", short_help="List architectures, or show one's layers.")(archs.archs)
app.command("recipes", short_help="List the recipes, or print one.")(recipes.recipes)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.command("doctor", short_help="Show what this machine has and lacks.")(doctor.doctor)


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
    _open_closed_streams()
    raise_stopped()
    bound_thread_starts()
    try:
        code = _run()
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
        for stream in (sys.stdout, sys.stderr):
            discard(stream.fileno())  # the reader of our output has gone
        leave(141)
    except MemoryError:
        _fail("this process may have no more memory; raise its limit, close other programs, or ask for less")
    except OSError as error:
        discard(sys.stdout.fileno())  # into a file on a full disk, perhaps
        _fail(_of_file(error))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        if read_launch().rank:  # all ranks were started with the same words
            leave(2)
        if type(error).__name__ == "NoArgsIsHelpError":  # typer keeps the class to itself
            _fail(error.format_message(), whole=True)
        _fail(_told(error))
    leave(code if isinstance(code, int) else 0)


def _run() -> Any:
    """Run the command that was typed and return what it returns.

    Typer's own way of doing so exits with 1 where the reader of what is printed has gone.
    """
    command = typer.main.get_command(app)
    try:
        with command.make_context("fastresnet", sys.argv[1:]) as context:
            return command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except SystemExit as end:
        assert end.code is None or isinstance(end.code, int)
        return end.code


def _open_closed_streams() -> None:
    """Open the null device in place of each standard stream that is closed, as by ``>&-``.

    Python has None for such a stream, and a file that is opened later would take its place: what a library
    prints would go into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _of_file(error: OSError) -> str:
    """Return what failed; of a file in the cache folder, how another folder is chosen."""
    from fastresnet.loaders.cache import cache_folder, disk_errors

    if not error.filename:
        return str(explain_os_error(error, "cannot write what is printed, or read a file"))
    if Path(os.fsdecode(error.filename)).is_relative_to(cache_folder()):
        try:
            with disk_errors("keeping files"):
                raise error
        except UserError as told:
            return str(told)
    return str(explain_os_error(error, f"cannot use {error.filename}"))


def _told(error: Any) -> str:
    """Return what Typer says of a mistake; of a value, the option, the value and what it must be."""
    cause, param = error.__cause__, getattr(error, "param", None)
    if getattr(error, "possibilities", None) and error.ctx is not None:
        hidden = {name for option in error.ctx.command.params if option.hidden for name in option.opts}
        error.possibilities = [name for name in error.possibilities if name not in hidden]
    if param is None or not hasattr(cause, "errors"):
        return f"{error.format_message().rstrip('.')}; see --help"
    from fastresnet.toml_model import requirement, shown_value

    (first, *_) = cause.errors()
    name = param.opts[0] if param.opts[0].startswith("-") else param.metavar or param.name
    value = shown_value(first["input"])
    shown = value if "parsing" in first["type"] else value.strip("'")  # a number, though it was typed
    return f"{name} is {shown}; {requirement(first)}"


def _fail(message: str, whole: bool = False) -> NoReturn:
    """Print one line, or all of ``message`` as it stands, and exit with 2."""
    with contextlib.suppress(OSError):
        line = f"fastresnet: error: {' '.join(message.split())}"
        typer.echo(message if whole else line, err=True)
    leave(2)
