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
RunsDir = Annotated[Path, typer.Option(help="Where run folders lie.")]
SweepsDir = Annotated[Path, typer.Option(help="Where sweep folders lie.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# Of what trains; with None as default where the command tells what was typed from what was not.
Data = Annotated[
    str | None, typer.Option(help="A folder, tar, .npz or 'shapes' [default: CIFAR-10, downloaded once].")
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Scale images to this many pixels a side [default: their own size if square, else 32]."
    ),
]
LimitTrain = Annotated[int | None, typer.Option(help="Train on this many images only.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every draw [default: 0].")]
SaveEvery = Annotated[float | None, typer.Option(help="Seconds between checkpoints [default: 60].")]
_DEVICE = typer.Option(help="auto, cpu, cuda or cuda:N.")
Device = Annotated[str, _DEVICE]
DeviceIfTyped = Annotated[str | None, _DEVICE]
Loader = Annotated[str | None, typer.Option(help="auto, resident, numba, torch, ffcv or dali.")]
Amp = Annotated[str | None, typer.Option(help="auto, bf16, fp16 or off.")]
Compile = Annotated[str | None, typer.Option("--compile", help="auto (measured), on, whole or off.")]
Kernels = Annotated[str | None, typer.Option(help="auto (measured), triton, llvm, inductor or eager.")]
Convs = Annotated[
    str | None, typer.Option(help="3x3 convolutions: auto (measured), direct, winograd or amx (a CPU).")
]
Graphs = Annotated[str | None, typer.Option(help="CUDA graphs: auto (measured), on or off.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; 0 for all.")]

# Of the commands under `bench`:
Parallel = Annotated[
    int,
    typer.Option(
        help="Most trainings at once, where that is faster a run, which is measured first; marked as throughput.",
        min=1,
        max=64,
    ),
]
FirstSeed = Annotated[
    int,
    typer.Option(
        help="Of the runs; others than those that chose a schedule or a factor confirm it.", min=0, max=999
    ),
]
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
