"""Workers of a sweep in processes of their own, which start in milliseconds and can be killed."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from fastresnet.run import RunConfig

# Processes are forked from one that has imported all of this and computed nothing.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["sweep_processes", "fastresnet.sweep", "optuna.storages", "sqlalchemy.dialects.sqlite"]
)


def config(data: Path) -> RunConfig:
    """Return a machine that gives the same bits in every process."""
    return RunConfig(
        data=str(data), device="cpu", threads=1, compile="off", loader="numba", save_every_s=0.05
    )


def work(sweep_file: Path, data: Path, sweeps_dir: Path, log: Path) -> None:
    """Work on a sweep until it is done."""
    from fastresnet.sweep import SweepOptions, SweepRun
    from fastresnet.sweep_spec import load_sweep

    with open(log, "a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    options = SweepOptions(sweeps_dir=sweeps_dir, config=config(data), heartbeat_s=1)
    SweepRun(load_sweep(str(sweep_file)), options).run()
    sys.stdout.flush()


def start(*args: Any) -> Any:
    """Start a worker with the arguments of :func:`work`."""
    process = _CONTEXT.Process(target=work, args=args)
    process.start()
    return process
