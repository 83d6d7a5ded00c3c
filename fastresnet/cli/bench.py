"""``fastresnet bench``: measurements, each written as a raw record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measure on this machine, and write raw records.")


@app.command("throughput")
def throughput(
    arch: Annotated[str, typer.Option(help="An arch's name or slug.")] = "resnet24",
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    rounds: Annotated[int, typer.Option(help="How often each loop is timed, in turn.", min=1)] = 5,
    steps: Annotated[int, typer.Option(help="Timed steps of a loop in a round.", min=1)] = 4,
    data: Annotated[str, typer.Option(help="A folder, tar, .npz or 'shapes'.")] = "shapes",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    compile_: Annotated[str, typer.Option("--compile", help="on or off.")] = "off",
    out: Annotated[
        Path | None, typer.Option(help="The record [default: a dated file in bench-results].")
    ] = None,
) -> None:
    """Compare our training step with the loop a student would write, interleaved in one run."""
    from fastresnet.bench.record import write_record
    from fastresnet.bench.throughput import Plan, default_record_path, describe, measure
    from fastresnet.run import RunConfig

    plan = Plan(arch=arch, batch_size=batch_size, rounds=rounds, steps=steps)
    config = RunConfig.parse(data=data, device=device, compile=compile_)
    record = measure(plan, config, lambda text: typer.echo(text, err=True))
    path = out or default_record_path("throughput")
    write_record(path, record)
    typer.echo(describe(record))
    typer.echo(f"record     {path}")
