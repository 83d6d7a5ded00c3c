"""Where images come from: :func:`resolve` turns a value of ``--data`` into a :class:`Source`."""

from __future__ import annotations

from pathlib import Path

from fastresnet.errors import UserError, did_you_mean
from fastresnet.loaders.sources.source import DataUnavailable, Progress, Source

__all__ = ["KINDS", "DataUnavailable", "Progress", "Source", "resolve"]

KINDS = (
    "a folder or tar(.gz, .xz) of images as {train,test}/<class>/<file>.{jpg,jpeg,png}, a folder or tar of "
    "CIFAR-10's official pickles, an .npz, a folder of train.beton and test.beton, or 'shapes'"
)


def resolve(data: str | None, image_size: int | None, progress: Progress) -> Source:
    """Return the source of ``data``; None is the official CIFAR-10, downloaded once it is to be packed.

    Raises UserError if it is missing or of no known kind.
    """
    # Imported here: Pillow and urllib are not needed to name a source.
    from fastresnet.loaders.sources.arrays import ArrayFile
    from fastresnet.loaders.sources.betons import SUFFIX, BetonPair, beton_path
    from fastresnet.loaders.sources.paths import Folder, Official, Tar
    from fastresnet.loaders.sources.shapes import Shapes
    from fastresnet.loaders.sources.tree import TAR_SUFFIXES

    if data is None:
        return Official(image_size)
    if data == "shapes":
        return Shapes(image_size)
    if not data:  # which Path would take for the current folder
        raise UserError(f"the data's name is empty; give {KINDS}")
    path = Path(data).expanduser()
    name = path.name.lower()
    try:
        if path.is_dir():
            has_beton = beton_path(path, "train").is_file()
            return BetonPair(path, image_size) if has_beton else Folder(path, image_size)
        if not path.exists():
            near = did_you_mean(data, ["shapes"])
            raise UserError(f"no such data: {data}{near or ';'} give {KINDS}")
    except OSError as error:
        raise UserError(f"cannot read {data}: {error.strerror}") from error
    if name.endswith(tuple(TAR_SUFFIXES)):
        return Tar(path, image_size)
    if name.endswith(SUFFIX):
        return BetonPair(path, image_size)
    if name.endswith(".npz"):
        return ArrayFile(path, image_size)
    raise UserError(f"cannot tell from its name what {data} holds; give {KINDS}")
