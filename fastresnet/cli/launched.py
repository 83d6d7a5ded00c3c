"""Commands under torchrun: every rank starts the command, rank 0 does what it says, the others train along."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

from fastresnet.errors import ToldElsewhere, UserError
from fastresnet.torchrun import read_launch

P = ParamSpec("P")


def over_ranks(command: Callable[P, None]) -> Callable[P, None]:
    """Return a command that trains, for the ranks that torchrun starts as for a process by itself."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if read_launch().is_alone:
            command(*args, **kwargs)
            return
        # torch would tell of every connection to a rank that is gone, with a stack; it reads this once, now
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from fastresnet.engine.fit import Interrupted
        from fastresnet.engine.session import joined
        from fastresnet.training import follow

        with joined() as session:
            if session.ranks.is_first:
                command(*args, **kwargs)
                return
            try:
                follow()
            except Interrupted as interrupted:
                sys.exit(128 + interrupted.signum)

    return run


def refuse_ranks(command: str) -> None:
    """Raise UserError if torchrun has started several of a command that does not train."""
    launch = read_launch()
    if launch.world_size > 1:
        told = ToldElsewhere if launch.rank else UserError
        raise told(f"`fastresnet {command}` is for one process; start it without torchrun")


def leave(code: int) -> NoReturn:
    """Exit; over several ranks without the interpreter's teardown.

    It would wait for what a rank that is gone still holds up, and gloo's threads may outlive it, upon which the
    process aborts.
    """
    try:
        is_alone = read_launch().world_size == 1
    except UserError:  # half of what torchrun sets: no rank has met another
        is_alone = True
    if not is_alone:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
