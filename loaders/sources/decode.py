"""JPEG and PNG files to square uint8 RGB arrays, with Pillow."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastresnet.errors import UserError
from fastresnet.loaders.sources.source import shown

DEFAULT_SIZE = 32  # where images have no square size in common, in pixels
SUFFIXES = (".jpg", ".jpeg", ".png")
# Pillow guesses by content: nothing but these two decoders is ever handed the user's bytes.
_FORMATS = ("JPEG", "PNG")

File = Path | io.BytesIO


def image_dimensions(file: File, path: str) -> tuple[int, int]:
    """Return (width, height) in pixels from the header of ``file``. Raises UserError naming ``path``."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return image.size
    except Exception as error:  # a hostile file can make a decoder raise anything
        raise _not_an_image(path, error) from error


def decode(file: File, path: str, image_size: int) -> NDArray[np.uint8]:
    """Return the image in ``file`` as uint8 [S, S, 3] RGB, S = ``image_size``, upright as EXIF says.

    An image of another size is scaled, antialiased, so that its shorter side is S, and cropped at the centre.
    Raises UserError naming ``path`` if it cannot be decoded.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 size for a fraction of the work.
            image.draft(None, (2 * image_size, 2 * image_size))
            upright = _to_rgb(ImageOps.exif_transpose(image))
            return np.asarray(_resize(upright, image_size))
    except Exception as error:  # a hostile file can make a decoder raise anything
        raise _not_an_image(path, error) from error


def resize_all(images: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Return uint8 [k, H, W, 3] ``images`` as [k, S, S, 3], scaled and cropped as :func:`decode` does."""
    if images.shape[1:3] == (image_size, image_size):
        return images
    return np.stack([np.asarray(_resize(Image.fromarray(image), image_size)) for image in images])


def _resize(image: Image.Image, image_size: int) -> Image.Image:
    if image.size == (image_size, image_size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _not_an_image(path: str, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError | PermissionError):
        return UserError(f"cannot read {path}: {error.strerror}")
    if isinstance(error, Image.UnidentifiedImageError) and not path.lower().endswith(SUFFIXES):
        return UserError(f"{path} is of another format (JPEG or PNG only); convert it or leave it out")
    reason = "it is no JPEG or PNG" if isinstance(error, Image.UnidentifiedImageError) else shown(str(error))
    return UserError(f"{path} is not an image that can be read ({reason}); repair it or leave it out")
