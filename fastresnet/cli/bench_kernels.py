"""``fastresnet bench kernels``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from fastresnet.cli.options import ContinuedOut, Device, Insert, Minutes, Show
from fastresnet.cli.page_showing import check_beside_show, show_page
from fastresnet.cli.typed import listed_archs, listed_names


def kernels(
    context: typer.Context,
    arch: Annotated[
        str, typer.Option(help="Whose norms are measured: names or slugs, with commas between them.")
    ] = "resnet24",
    activation: Annotated[
        str | None,
        typer.Option(
            help="Of relu, leaky_relu, gelu, silu, with commas between them [default: the arch's own]."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step [default: 512; on a CPU 32].", min=1)
    ] = None,
    amp: Annotated[str, typer.Option(help="The activations: auto, bf16, fp16 or off.")] = "auto",
    device: Device = "auto",
    tunings: Annotated[bool, typer.Option("--tunings", help="Every tuning of the kernels, not one.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each is measured, in turn.", min=1)] = 5,
    calls: Annotated[
        int | None, typer.Option(help="Timed calls in a row, a round [default: 20; on a CPU 2].", min=1)
    ] = None,
    minutes: Minutes = None,
    out: ContinuedOut = None,
    show: Show = None,
    insert: Insert = None,
) -> None:
    """Measure the fused norms by shape against eager and Inductor: Triton's on a GPU, LLVM's on a CPU."""
    from fastresnet.arch import get_arch
    from fastresnet.bench.continued import earlier_record
    from fastresnet.bench.kernels import bench_kernels, cases_of
    from fastresnet.bench.kernels_page import to_markdown, write_page
    from fastresnet.bench.record import (
        check_insert,
        check_out,
        default_record_path,
        read_record,
        write_record,
    )
    from fastresnet.engine.machine import AMP_DTYPES, resolve_amp, resolve_device
    from fastresnet.errors import UserError
    from fastresnet.kernels.norm_act import TRITON_KERNELS

    if show is not None:
        check_beside_show(context)
        record = read_record(show, "kernels", to_markdown)
    else:
        if amp not in ("auto", *AMP_DTYPES):
            raise UserError(f"--amp is {amp!r}; it must be one of auto, {', '.join(AMP_DTYPES)}")
        started = time.monotonic()
        chosen = resolve_device(device)
        on_gpu = chosen.type == "cuda"
        if not on_gpu:
            typer.echo(
                "no GPU: eager, Inductor and LLVM's are measured, by the wall clock; Triton's kernels need one",
                err=True,
            )
        dtype = AMP_DTYPES[resolve_amp(amp, chosen)]
        size = batch_size or (512 if on_gpu else 32)
        path = out or default_record_path("kernels")
        check_out(path, ".md", ".png")
        check_insert("bench kernels", *insert or ())
        specs = [get_arch(name) for name in listed_archs("--arch", arch)]
        if activation is not None:
            names = listed_names("--activation", activation, "activation", "gelu")
            specs = [spec.replace(activation=name) for spec in specs for name in names]
        cases = [case for spec in specs for case in cases_of(spec, size, dtype)]
        record = bench_kernels(
            list(dict.fromkeys(cases)),
            device_wanted=device,
            kernels=TRITON_KERNELS if tunings else TRITON_KERNELS[:1],
            rounds=rounds,
            calls=calls or (20 if on_gpu else 2),
            earlier=earlier_record(path, "kernels", to_markdown),
            save=lambda record: write_record(path, record),
            progress=lambda line: typer.echo(line, err=True),
            out_of_time=lambda: minutes is not None and time.monotonic() - started > 60 * minutes,
        )
        write_page(record, path)
        typer.echo(f"record     {path}, and the same as .md and .png", err=True)
    show_page(to_markdown(record), "bench kernels", insert)
