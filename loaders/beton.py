"""FFCV's file format, version 2: written from a split, and a user's own read, both without ffcv.

A header, a descriptor a field, a row of metadata a sample, the images in pages, and a table of what lies where. All
numbers are little-endian. Layouts: ffcv 1.0.2, ``ffcv/types.py`` and ``ffcv/writer.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastresnet.atomic import write_atomic
from fastresnet.errors import UserError
from fastresnet.loaders.protocol import Split
from fastresnet.loaders.sources.source import shown

VERSION = 2
_HEADER = np.dtype(
    [("version", "<u2"), ("num_fields", "<u2"), ("page", "<u4"), ("num_samples", "<u8"), ("table", "<u8")],
    align=True,
)
_FIELD = np.dtype([("kind", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", (1024,))], align=True)
_PLACE = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
_BYTES = np.dtype([("pointer", "<u8"), ("size", "<u8")])
_INT, _RGB = 1, 2  # kinds of field
_METADATA: dict[int, np.dtype[np.void] | str] = {
    **{0: "<f8", _INT: "<i8", _RGB: _IMAGE, 3: _BYTES, 4: "<u8", 5: _BYTES, 6: "<u8"},
}
_JPEG, _RAW = 0, 1  # modes of an image
_PAGE = 1 << 23  # bytes; ffcv's own default


@dataclass(frozen=True, kw_only=True)
class Beton:
    """A .beton file's images and labels, by sample index.

    Attributes:
        path: the file.
        image_field, other_fields: the names of the images' field and of all others, the labels' too.
        heights, widths: int64 [N], in pixels.
        is_jpeg: bool [N]; the others are raw.
        pointers, sizes: int64 [N], where each image's bytes lie.
        labels: int64 [N].
    """

    path: Path
    image_field: str
    other_fields: tuple[str, ...]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    is_jpeg: NDArray[np.bool_]
    pointers: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def square_size(self) -> int | None:
        """The side of every image, if all are squares of one size."""
        sides = {*self.heights.tolist(), *self.widths.tolist()}
        return sides.pop() if len(sides) == 1 else None


def _bad(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is no .beton file that can be read ({reason}); write it again")


def read_beton(path: Path) -> Beton:
    """Return what ``path`` holds.

    Raises:
        UserError: it is missing, truncated, of another version, or has not one image and one label field.
    """
    try:
        data = np.memmap(path, np.uint8, "r")
        header = data[: _HEADER.itemsize].view(_HEADER)[0]
        if header["version"] != VERSION:
            raise _bad(path, f"version {header['version']}, expected {VERSION}")
        start = _HEADER.itemsize
        fields = data[start : start + int(header["num_fields"]) * _FIELD.itemsize].view(_FIELD)
        names = [bytes(field["name"]).split(b"\0")[0].decode("ascii", "replace") for field in fields]
        kinds = [int(field["kind"]) for field in fields]
        images, labels = ([i for i, kind in enumerate(kinds) if kind == wanted] for wanted in (_RGB, _INT))
        if len(images) != 1 or len(labels) != 1 or set(kinds) - _METADATA.keys():
            held = ", ".join(
                f"{name} (type {kind})" for name, kind in list(zip(names, kinds, strict=True))[:8]
            )
            held += ", ..." if len(kinds) > 8 else ""
            raise UserError(
                f"{path} must have one image field and one integer label field; it has {shown(held)}"
            )
        start += fields.nbytes
        row = np.dtype([("", _METADATA[kind]) for kind in kinds], align=True)
        rows = data[start : start + int(header["num_samples"]) * row.itemsize].view(row)
        table = data[int(header["table"]) :].view(_PLACE)
        meta = rows[f"f{images[0]}"]
        pointers = meta["pointer"].astype(np.int64)
        order = np.argsort(table["pointer"], kind="stable")
        places = order[np.searchsorted(table["pointer"][order], pointers).clip(0, len(order) - 1)]
        sizes = table["size"][places].astype(np.int64)
        known = table["pointer"][places].astype(np.int64) == pointers
        inside = (pointers >= 0) & (sizes >= 0) & (pointers <= len(data) - sizes)
        if len(rows) != header["num_samples"] or not known.all() or not inside.all():
            raise _bad(path, "it is truncated")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, IndexError) as error:
        raise _bad(path, "it is truncated") from error
    heights, widths = meta["height"].astype(np.int64), meta["width"].astype(np.int64)
    is_jpeg = meta["mode"] == _JPEG
    if (~is_jpeg & (sizes != heights * widths * 3)).any():
        raise _bad(path, "a raw image has another size than its height and width say")
    if not (heights.all() and widths.all()):
        raise _bad(path, "an image has no pixels")
    return Beton(
        path=path,
        image_field=names[images[0]],
        other_fields=tuple(name for number, name in enumerate(names) if number != images[0]),
        heights=heights,
        widths=widths,
        is_jpeg=is_jpeg,
        pointers=pointers,
        sizes=sizes,
        labels=rows[f"f{labels[0]}"].astype(np.int64),
    )


def write_beton(split: Split, path: Path) -> None:
    """Write every image of ``split``, members or not, to ``path``: raw, by sample index, fields image and label.

    Raises:
        UserError: the file cannot be written; ``path`` is then as it was.
    """
    num_images, height, width, _ = split.images.shape
    image_bytes = height * width * 3
    page = _PAGE
    while page < image_bytes:
        page *= 2
    per_page = page // image_bytes  # no image lies across two pages: ffcv's process cache reads pages
    row = np.dtype([("", _IMAGE), ("", "<i8")], align=True)
    start = _HEADER.itemsize + 2 * _FIELD.itemsize + num_images * row.itemsize
    first = -(-start // page) * page
    numbers = np.arange(num_images)
    rows = np.zeros(num_images, row)
    rows["f0"]["mode"], rows["f0"]["width"], rows["f0"]["height"] = _RAW, width, height
    rows["f0"]["pointer"] = first + numbers // per_page * page + numbers % per_page * image_bytes
    rows["f1"] = split.labels[:num_images]
    table = np.zeros(num_images, _PLACE)
    table["sample"], table["pointer"], table["size"] = numbers, rows["f0"]["pointer"], image_bytes
    num_pages = -(-num_images // per_page)
    header = np.array([(VERSION, 2, page, num_images, first + num_pages * page)], _HEADER)
    fields = np.zeros(2, _FIELD)
    for field, kind, name in zip(fields, (_RGB, _INT), (b"image", b"label"), strict=True):
        field["kind"] = kind
        field["name"][: len(name)] = np.frombuffer(name, np.uint8)

    def write(file: BinaryIO) -> None:
        for part in (header, fields, rows):
            file.write(part.tobytes())
        for number in range(num_pages):
            file.seek(first + number * page)
            file.write(np.ascontiguousarray(split.images[number * per_page : (number + 1) * per_page]).data)
        file.truncate(first + num_pages * page)
        file.seek(0, 2)
        file.write(table.tobytes())

    write_atomic(path, write)


def holds(beton: Beton, split: Split) -> bool:
    """Return whether ``beton`` holds, raw, just the images and labels of ``split``; reads every byte of it."""
    count, height, width, _ = split.images.shape
    if len(beton.labels) != count or beton.square_size != height or height != width or beton.is_jpeg.any():
        return False
    data = np.asarray(np.memmap(beton.path, np.uint8, "r"))
    same_labels = np.array_equal(beton.labels, split.labels)
    pixels = split.images.reshape(count, -1)
    size = pixels.shape[1]
    return same_labels and all(
        np.array_equal(data[pointer : pointer + size], pixels[number])
        for number, pointer in enumerate(beton.pointers.tolist())
    )
