"""Re-encode a data set as a tar of JPEGs, as CIFAR-10-J75 was made from CIFAR-10."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastresnet.atomic import write_atomic
from fastresnet.errors import UserError
from fastresnet.loaders.dataset import Dataset
from fastresnet.loaders.sources.source import Progress

SUBSAMPLING = "4:2:0"


@dataclass(frozen=True, kw_only=True)
class JpegReport:
    """What re-encoding cost.

    Attributes:
        num_images: train and test together.
        mean_psnr_db: mean over images of the peak signal-to-noise ratio, in dB, of the images that changed.
        num_exact: images that came back bit for bit, whose ratio is infinite.
    """

    num_images: int
    mean_psnr_db: float
    num_exact: int


def write_jpeg_tar(dataset: Dataset, out: Path, quality: int, progress: Progress) -> JpegReport:
    """Write every image of ``dataset`` to the tar ``out`` as ``{train,test}/<class>/<index>.jpg``, by index.

    The same pixels, quality and libjpeg give the same bytes. Raises UserError for a quality out of [1, 95],
    an ``out`` that is no ``.tar``, a class name that cannot be a folder's, or a failed write; ``out`` is then
    as it was.
    """
    if not 1 <= quality <= 95:
        raise UserError(f"JPEG quality is {quality}; choose 1 to 95")
    if out.suffix != ".tar":
        raise UserError(f"the output is {out}; its name must end in .tar")
    for name in dataset.class_names:
        if name in ("", ".", "..") or name.startswith(".") or "/" in name or "\0" in name:
            raise UserError(f"class name {name!r} cannot name a folder; rename it in the data set")
    psnrs: list[float] = []
    total = len(dataset.train.labels) + len(dataset.test.labels)

    def write_all(archive: tarfile.TarFile) -> None:
        for split, samples in (("train", dataset.train), ("test", dataset.test)):
            digits = max(5, len(str(len(samples.labels) - 1)))
            for index, (image, label) in enumerate(zip(samples.images, samples.labels.tolist(), strict=True)):
                encoded = io.BytesIO()
                Image.fromarray(image).save(encoded, "JPEG", quality=quality, subsampling=SUBSAMPLING)
                member = tarfile.TarInfo(f"{split}/{dataset.class_names[label]}/{index:0{digits}d}.jpg")
                member.size = encoded.tell()  # owner, mode and mtime keep TarInfo's constants
                encoded.seek(0)
                archive.addfile(member, encoded)
                psnrs.append(_psnr_db(image, np.asarray(Image.open(encoded))))
                if len(psnrs) % 1000 == 0:
                    progress("encoding images", len(psnrs), total)

    def write(file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as archive:
            write_all(archive)

    write_atomic(out, write)
    changed = [psnr for psnr in psnrs if psnr != float("inf")]
    return JpegReport(
        num_images=total,
        mean_psnr_db=float(np.mean(changed)) if changed else float("inf"),
        num_exact=total - len(changed),
    )


def _psnr_db(image: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    error = float(np.mean(np.square(image.astype(np.int32) - decoded)))
    return 10.0 * float(np.log10(255.0**2 / error)) if error else float("inf")
