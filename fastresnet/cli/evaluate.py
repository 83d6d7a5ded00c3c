"""``fastresnet eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastresnet.cli.options import Device, Json, Run, RunsDir
from fastresnet.words import counted, dataset_shown


def evaluate(
    run: Run,
    data: Annotated[
        str | None, typer.Option(help="Another data set with the same classes [default: the run's own].")
    ] = None,
    split: Annotated[str, typer.Option(help="test, train, or val where the run has one.")] = "test",
    tta: Annotated[
        bool, typer.Option("--tta", help="Also with TTA: the recipe's, flip where it has none.")
    ] = False,
    device: Device = "auto",
    runs_dir: RunsDir = Path("runs"),
    as_json: Json = False,
) -> None:
    """Evaluate a run's weights, exactly over all samples."""
    from fastresnet.cli.progress import shown_progress
    from fastresnet.evaluation import evaluate_run

    with shown_progress() as progress:
        found = evaluate_run(
            run, runs_dir=runs_dir, data=data, split=split, tta=tta, device=device, progress=progress
        )
    if as_json:
        typer.echo(json.dumps(found.model_dump(), indent=2))
        return
    on = dataset_shown(found.dataset, found.is_builtin)
    images = counted(found.num_samples, f"{split} image")
    typer.echo(f"run {found.run}, {found.weights} weights, {images} of {on}")
    typer.echo(f"{split} accuracy on {on}: {found.accuracy:.4f} (loss {found.loss:.4f}), no TTA")
    if found.accuracy_tta is not None:
        typer.echo(f"{split} accuracy on {on} with {found.tta} TTA: {found.accuracy_tta:.4f}")
