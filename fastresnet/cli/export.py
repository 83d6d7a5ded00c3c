"""``fastresnet export``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fastresnet.cli.options import Json, Run, RunsDir


def export(
    run: Run,
    to: Annotated[str, typer.Option(help="safetensors, onnx or torch-export.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write; an earlier export is replaced, nothing else "
            "[default: <arch>-<id> here, named by its format]."
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: Json = False,
) -> None:
    """Write a run's network to a file for other programs, having checked that it gives the same logits."""
    from fastresnet.export import INPUT, OUTPUT, find_format
    from fastresnet.export import export as write
    from fastresnet.inference import load, split_reference

    chosen = find_format(to)  # said at once, before anything is loaded
    reference, weights = split_reference(run)
    network = load(reference, runs_dir=runs_dir, weights=weights, device="cpu")
    path = out or Path(f"{network.spec.slug}-{network.run.rsplit('-', 1)[-1]}{chosen.suffix}")
    done = write(network, to, path)
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=2))
        return
    typer.echo(f"{done.path}: {done.num_bytes:,} bytes, run {network.run}, {weights} weights")
    typer.echo(
        f"checked: the same logits for {done.num_images} images of noise, to within {done.difference:.1g}"
    )
    size = f"{network.image_size}, {network.image_size}"
    takes = "normalised images" if to == "safetensors" else "images in [0, 1], which it normalises"
    typer.echo(f"takes    {INPUT}: float32 [B, 3, {size}], {takes}")
    typer.echo(f"gives    {OUTPUT}: float32 [B, {len(network.class_names)}]")
