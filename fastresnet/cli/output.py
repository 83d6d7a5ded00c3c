"""Printing that does not end a training when its reader or its terminal is gone."""

from __future__ import annotations

import errno
import signal
import sys
import time

import typer

from fastresnet.signals import ask_to_stop, discard

LIVE_EVERY_S = 0.5  # on a terminal
PRINT_EVERY_S = 20.0  # elsewhere


class Output:
    """Lines on stdout, and one that is overwritten on a terminal and printed now and then elsewhere.

    A reader that goes away, as `head` does, asks the training to stop as a signal does. A terminal that goes away does
    not: who wants that told gets SIGHUP.

    Attributes:
        live: stdout is a terminal.
        shown: the line to be overwritten.
        is_lost: nobody reads stdout any more.
    """

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.shown = ""
        self.is_lost = False
        self._due: float | None = None

    def is_due(self) -> bool:
        """Return whether the last one has stood for long enough; on a terminal the first is due at once."""
        now = time.monotonic()
        if self._due is None:
            self._due = now + (0.0 if self.live else PRINT_EVERY_S)
        return now >= self._due

    def show(self, text: str) -> None:
        """Show ``text``: on a terminal in any case, elsewhere where it is due."""
        if self.live or self.is_due():
            self._due = time.monotonic() + (LIVE_EVERY_S if self.live else PRINT_EVERY_S)
            if not self.live:
                self.print(text)
            self.overwrite(text)

    def overwrite(self, text: str) -> None:
        """Show ``text`` on a terminal, and nowhere else; the next line stays as due as it was."""
        if self.live:
            self.shown = text  # first, so that a signal in the midst of it leaves something to clear
            self._write(f"\r\x1b[K{text}")

    def clear(self) -> None:
        """Make room for a whole line."""
        if self.live and self.shown:
            self._write("\r\x1b[K")
        self.shown = ""

    def print(self, text: str) -> None:
        """Print whole lines."""
        if not self._write(f"{text}\n"):
            ask_to_stop(signal.SIGPIPE)

    def print_last(self, text: str) -> None:
        """Print what is to be known after the end: in one line on stderr, if nobody reads stdout any more."""
        if not self.is_lost:
            self._write(f"{text}\n")
        if self.is_lost:
            complain(text.replace("\n  ", " "))

    def _write(self, text: str) -> bool:
        """Return whether somebody may have read it."""
        try:
            typer.echo(text, nl=False)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            discard(sys.stdout.fileno())
            self.is_lost = True
            return error.errno == errno.EIO
        return True


def complain(text: str) -> None:
    """Print a line of ours to stderr, if somebody reads that."""
    try:
        typer.echo(f"fastresnet: {text}", err=True)
    except OSError:
        discard(sys.stderr.fileno())
