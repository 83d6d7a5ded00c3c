"""``fastresnet predict``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastresnet.cli.options import Device, Json, Run, RunsDir
from fastresnet.cli.typed import named_as_typed
from fastresnet.errors import UserError
from fastresnet.words import dataset_shown

if TYPE_CHECKING:
    from fastresnet.inference import Network, Prediction

DEFAULT_TOP_K = 3


def predict(
    run: Run,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="JPEG or PNG files of any size, or folders.")
    ],
    top_k: Annotated[
        int | None, typer.Option(help=f"Classes to show an image [default: {DEFAULT_TOP_K}].")
    ] = None,
    device: Device = "auto",
    runs_dir: RunsDir = Path("runs"),
    as_json: Json = False,
) -> None:
    """Tell the likeliest classes of images, with their probabilities.

    A file in a folder that cannot be read is passed over, with a note on stderr, and the exit code is 1 then.
    """
    from fastresnet.inference import load, split_reference

    paths = [path for given in images for path in _images_of(given)]
    named = set(images)
    broken: dict[int, UserError] = {}

    def on_broken(place: int, error: UserError) -> None:
        if paths[place] in named:
            raise error
        broken[place] = error

    reference, weights = split_reference(run)
    network = load(reference, runs_dir=runs_dir, weights=weights, device=device)
    num_classes = min(DEFAULT_TOP_K, len(network.class_names)) if top_k is None else top_k
    with named_as_typed(["top_k"]):
        found = network.predict(paths, num_classes, on_broken)
    for error in broken.values():
        if not found:
            raise error
        typer.echo(f"note: passed over: {error}", err=True)
    paths = [path for place, path in enumerate(paths) if place not in broken]
    _show(network, paths, found, as_json)
    if broken:
        raise typer.Exit(1)


def _show(network: Network, paths: list[Path], found: list[Prediction], as_json: bool) -> None:
    """Print what was found of the images at ``paths``, as JSON or as lines."""
    if as_json:
        rows = [
            {
                "image": str(path),  # its broken UTF-8, if any, is escaped by JSON
                "top": [
                    {"label": label, "class_name": name, "probability": probability}
                    for label, name, probability in zip(
                        one.labels, one.class_names, one.probabilities, strict=True
                    )
                ],
            }
            for path, one in zip(paths, found, strict=True)
        ]
        about = {"run": network.run, "weights": network.weights, "dataset": network.dataset}
        typer.echo(json.dumps({**about, "predictions": rows}, indent=2))
        return
    on = dataset_shown(network.dataset, network.is_builtin)
    typer.echo(f"run {network.run}, {network.weights} weights, trained on {on}")
    from fastresnet.loaders.sources.source import shown

    shown_paths = [shown(str(path)) for path in paths]
    width = max(map(len, shown_paths))
    for path, one in zip(shown_paths, found, strict=True):
        ranked = zip(one.class_names, one.probabilities, strict=True)
        typer.echo(f"{path:<{width}}  " + "  ".join(f"{shown(name)} {p:.4f}" for name, p in ranked))


def _images_of(path: Path) -> list[Path]:
    """Return ``path``, or the images of a folder and those below it, in bytewise order of their paths."""
    from fastresnet.loaders.sources.decode import SUFFIXES

    if not path.is_dir():
        if not path.exists():
            raise UserError(f"no such image: {path}")
        return [path]
    found = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not found:
        raise UserError(f"{path} holds no image; give a folder of {', '.join(SUFFIXES)} files")
    return sorted(found, key=lambda file: str(file).encode("utf-8", "surrogateescape"))
