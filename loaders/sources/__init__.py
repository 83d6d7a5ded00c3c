"""Where images come from: :func:`resolve` turns a value of ``--data`` into a :class:`Source`."""

from __future__ import annotations

from pathlib import Path

from fastresnet.errors import UserError
from fastresnet.loaders.sources.source import DataUnavailable, Progress, Source

__all__ = ["KINDS", "DataUnavailable", "Progress", "Source", "resolve"]

KINDS = (
    "a folder or tar(.gz, .xz) of images as {train,test}/<class>/<file>.{jpg,jpeg,png}, a folder or tar of CIFAR-10's "
    "official pickles, an .npz, or 'shapes'"
)


def resolve(data: str, image_size: int | None) -> Source:
    """Return the source of ``data``. Raises UserError if it is missing or of no known kind."""
    from fastresnet.loaders.sources.folder import ImageTree, image_folder
    from fastresnet.loaders.sources.shapes import Shapes
    from fastresnet.loaders.sources.tree import TAR_SUFFIXES, TarTree, stem_of

    if data == "shapes":
        return Shapes(image_size)
    path = Path(data).expanduser()
    if path.is_dir():
        return image_folder(path, image_size)
    if not path.exists():
        raise UserError(f"no such data: {data}; give {KINDS}")
    if path.name.lower().endswith(tuple(TAR_SUFFIXES)):
        return ImageTree(TarTree(path), stem_of(path), image_size)
    raise UserError(f"cannot tell what {data} holds; give {KINDS}")
