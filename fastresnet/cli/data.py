"""``fastresnet data``: look at a data set, pack it, check its packs, re-encode it as JPEGs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastresnet.cli.options import ImageSize
from fastresnet.cli.progress import shown_progress
from fastresnet.words import counted

if TYPE_CHECKING:
    from fastresnet.loaders.dataset import Dataset

app = typer.Typer(no_args_is_help=True, help="Look at, pack, check and re-encode data sets.")

Data = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA",
        help="A folder or tar(.gz, .xz) of images as {train,test}/<class>/<file>.jpg, a folder or tar of "
        "CIFAR-10's official pickles, an .npz, a folder of train.beton and test.beton, or 'shapes'. "
        "Left out: CIFAR-10, downloaded once.",
    ),
]


@app.command(short_help="Say what a data set holds.")
def info(
    data: Data = None,
    image_size: ImageSize = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a data set holds: images, classes, statistics, digest. Packs it if it is not packed yet."""
    dataset = _open(data, image_size)
    counts = {
        name: (int(train), int(test))
        for name, train, test in zip(dataset.class_names, *_counts(dataset), strict=True)
    }
    if as_json:
        content = {
            "name": dataset.name,
            "train_images": len(dataset.train.labels),
            "test_images": len(dataset.test.labels),
            "image_size": dataset.image_size,
            "classes": {name: {"train": train, "test": test} for name, (train, test) in counts.items()},
            "mean": dataset.mean,
            "std": dataset.std,
            "digest": dataset.digest,
            "pack": str(dataset.folder),
            "notices": dataset.notices,
        }
        typer.echo(json.dumps(content, indent=2))
        return
    size = dataset.image_size
    rows = [
        ("name", dataset.name),
        (
            "images",
            f"{len(dataset.train.labels):,} train, {len(dataset.test.labels):,} test, {size}x{size} RGB",
        ),
        ("mean", " ".join(f"{value:.4f}" for value in dataset.mean) + "  (train, of pixels in [0, 1])"),
        ("std", " ".join(f"{value:.4f}" for value in dataset.std)),
        ("digest", dataset.digest),
        ("pack", str(dataset.folder)),
        *(("notice", notice) for notice in dataset.notices),
        ("classes", f"{dataset.num_classes} (train, test images)"),
    ]
    for key, value in rows:
        typer.echo(f"{key:8} {value}")
    for name, (train, test) in counts.items():
        typer.echo(f"         {name}  {train:,}  {test:,}")


@app.command(short_help="Decode a data set into the cache.")
def pack(
    data: Data = None,
    image_size: ImageSize = None,
    to: Annotated[
        str | None, typer.Option(metavar="beton", help="Also write FFCV files: train.beton and test.beton.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder for them (default: the data set's name + -beton, here).")
    ] = None,
) -> None:
    """Decode a data set into the cache, so that training starts at once. Once done, only checks it."""
    from fastresnet.errors import UserError

    if to not in (None, "beton"):
        raise UserError(f"--to is {to!r}; the only other format is beton")
    if out is not None and to is None:
        raise UserError("--out is for --to beton; the pack itself lies in the cache")
    start = time.perf_counter()
    dataset = _open(data, image_size)
    num_images = len(dataset.train.labels) + len(dataset.test.labels)
    typer.echo(
        f"{dataset.name}: {num_images:,} images in {time.perf_counter() - start:.1f} s, in {dataset.folder}"
    )
    for notice in dataset.notices:
        typer.echo(f"notice: {notice}")
    if to is not None:
        from fastresnet.loaders.sources.betons import write_betons

        folder = out or Path(f"{dataset.name}-beton")
        write_betons(dataset, folder)
        typer.echo(f"wrote {folder}: train.beton, test.beton, classes.json; --data {folder} reads them")


@app.command(short_help="Check the hashes of packs.")
def verify(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Left out: every pack in the cache.")
    ] = None,
    image_size: ImageSize = None,
) -> None:
    """Check the hashes of a data set's pack, or of every pack in the cache. Exits 1 if one is damaged."""
    from fastresnet.errors import UserError
    from fastresnet.loaders.cache import cache_folder
    from fastresnet.loaders.dataset import find_pack, packs
    from fastresnet.loaders.pack import PackDamagedError, read_pack

    if data is None:
        folders = packs()
        if not folders:
            typer.echo(f"no packs in {cache_folder()}")
    else:
        with shown_progress() as progress:
            folders = [find_pack(data, image_size, progress)]
        if not folders[0].is_dir():
            raise UserError(f"{data} is not packed yet; fastresnet data pack {data} does it")
    damaged = 0
    for folder in folders:
        try:
            meta = read_pack(folder)[0]
            typer.echo(f"ok       {meta.name}, {sum(meta.counts.values()):,} images: {folder}")
        except PackDamagedError as error:
            damaged += 1
            typer.echo(f"damaged  {error}; it is made again when its data set is next used")
    if damaged:
        raise typer.Exit(1)


@app.command(short_help="Re-encode a data set as a tar of JPEGs.")
def jpeg(
    out: Annotated[Path, typer.Option("--to", help="The tar to write; it ends in .tar.")],
    data: Annotated[
        str | None,
        typer.Option("--from", help="The data set to re-encode (left out: the official CIFAR-10)."),
    ] = None,
    quality: Annotated[int, typer.Option(help="JPEG quality, 1 to 95.")] = 75,
) -> None:
    """Re-encode a data set as a tar of JPEGs with 4:2:0 chroma. CIFAR-10 at quality 75 gives CIFAR-10-J75."""
    from fastresnet.loaders.dataset import open_dataset
    from fastresnet.loaders.jpeg_tar import write_jpeg_tar

    with shown_progress() as progress:
        report = write_jpeg_tar(open_dataset(data, progress=progress), out, quality, progress)
        made = open_dataset(str(out), progress=progress)
    exact = (
        f" ({counted(report.num_exact, 'image')} came back exactly, left out of the mean)"
        if report.num_exact
        else ""
    )
    typer.echo(f"wrote       {out}: {report.num_images:,} images at quality {quality}")
    typer.echo(f"mean PSNR   {report.mean_psnr_db:.2f} dB{exact}")
    typer.echo(f"pixel hash  {made.digest}")
    typer.echo(f"name        {made.name}")


def _open(data: str | None, image_size: int | None) -> Dataset:
    from fastresnet.loaders.dataset import open_dataset

    with shown_progress() as progress:
        return open_dataset(data, image_size=image_size, progress=progress)


def _counts(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Return images per class, of train and of test."""
    import numpy as np

    train, test = (
        np.bincount(split.labels, minlength=dataset.num_classes).tolist()
        for split in (dataset.train, dataset.test)
    )
    return train, test
