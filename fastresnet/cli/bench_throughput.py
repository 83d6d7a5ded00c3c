"""``fastresnet bench throughput``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from fastresnet.cli.options import Amp, ContinuedOut, Data, Device, Insert, Minutes, Show
from fastresnet.cli.page_showing import check_beside_show, show_page
from fastresnet.cli.typed import listed_archs, listed_counts, listed_names, named_as_typed


def throughput(
    context: typer.Context,
    arch: Annotated[str, typer.Option(help="Names or slugs, with commas between them.")] = "resnet24",
    batch_size: Annotated[str, typer.Option(help="Images a step; several with commas.")] = "128",
    rounds: Annotated[int, typer.Option(help="How often each row is timed, in turn.", min=1)] = 5,
    steps: Annotated[
        int | None, typer.Option(help="Timed steps of a row in a round [default: 40; on a CPU 4].", min=1)
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            help="Of student, channels-last, amp, compile, kernels, step, convs, graphs, fastresnet [default: all]."
        ),
    ] = None,
    data: Data = None,
    device: Device = "auto",
    amp: Amp = "auto",
    compile_: Annotated[
        str | None, typer.Option("--compile", help="auto, on, whole or off [default: on; on a CPU off].")
    ] = None,
    minutes: Minutes = None,
    out: ContinuedOut = None,
    show: Show = None,
    insert: Insert = None,
) -> None:
    """Compare the loop a student would write with ours, one change at a time, interleaved in one run."""
    from fastresnet.atomic import write_atomic
    from fastresnet.bench.continued import earlier_record
    from fastresnet.bench.ladder import ROWS
    from fastresnet.bench.record import (
        check_insert,
        check_out,
        default_record_path,
        read_record,
        write_record,
    )
    from fastresnet.bench.throughput import Plan, measure
    from fastresnet.bench.throughput_page import to_markdown
    from fastresnet.engine.machine import resolve_device
    from fastresnet.run import RunConfig

    if show is not None:
        check_beside_show(context)
        record = read_record(show, "throughput", to_markdown)
    else:
        started = time.monotonic()
        on_gpu = resolve_device(device).type == "cuda"
        plan = Plan(
            archs=listed_archs("--arch", arch),
            batch_sizes=listed_counts("--batch-size", batch_size, "128,512"),
            rounds=rounds,
            steps=steps or (40 if on_gpu else 4),
            rows=ROWS if rows is None else listed_names("--rows", rows, "row", "student,fastresnet"),
        )
        compiling = compile_ or ("on" if on_gpu else "off")
        with named_as_typed(("device", "amp", "compile")):
            config = RunConfig.parse(data=data, device=device, amp=amp, compile=compiling)
        path = out or default_record_path("throughput")
        check_out(path, ".md")
        check_insert("bench throughput", *insert or ())
        record = measure(
            plan,
            config,
            lambda text: typer.echo(text, err=True),
            earlier=earlier_record(path, "throughput", to_markdown),
            save=lambda record: write_record(path, record),
            out_of_time=lambda: minutes is not None and time.monotonic() - started > 60 * minutes,
        )
        write_record(path, record)
        write_atomic(path.with_suffix(".md"), lambda file: file.write(to_markdown(record).encode()))
        typer.echo(f"record     {path}, and the same as .md", err=True)
    show_page(to_markdown(record), "bench throughput", insert)
