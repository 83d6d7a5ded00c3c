"""What every source of images gives to the packer: :class:`Source`, :class:`Contents`, :class:`Block`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastresnet.errors import UserError

if TYPE_CHECKING:
    from fastresnet.loaders.sources.tree import Entry, Tree

SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, SplitName] = ("train", "test")


class DataUnavailable(UserError):
    """No data was named, and CIFAR-10 could be neither found nor downloaded.

    Attributes:
        reason: why not, and how to get it; the message adds the other way out, the built-in images.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}, or train on the built-in images with --data shapes")
        self.reason = reason


# Called by the packing thread as progress(stage, done, total): ``done`` of ``total`` (0: not
# known yet) of ``stage``, such as "decoding images", are behind us.
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def shown(text: str) -> str:
    """Return ``text`` fit for one line of a terminal: control characters and broken UTF-8 escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class Block(NamedTuple):
    """Some samples of one split, in any order.

    Fields:
        split: which split they belong to.
        rows: int64 [k], their sample indices.
        images: uint8 [k, S, S, 3], RGB.
    """

    split: SplitName
    rows: NDArray[np.int64]
    images: NDArray[np.uint8]


class ImageFiles(NamedTuple):
    """Where the images of a source lie, one a file.

    Fields:
        tree: the folder or tar.
        entries: each split's files, by sample index.
        all_of_size: every image is a square of the contents' image size as it lies.
    """

    tree: Tree
    entries: dict[SplitName, list[Entry]]
    all_of_size: bool


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A source looked through but not yet decoded.

    Attributes:
        name: what figures measured on it are called.
        class_names: a name per label.
        image_size: S, the side of every image in ``blocks``, in pixels.
        labels: int64 [N] per split, by sample index.
        notices: what the user should know about how it was read.
        files: the image files themselves, where a file is an image; for loaders that decode.
        blocks: decodes; yields every sample once. Raises UserError naming a file that is no image.
    """

    name: str
    class_names: tuple[str, ...]
    image_size: int
    labels: dict[SplitName, NDArray[np.int64]]
    blocks: Callable[[Progress], Iterator[Block]]
    notices: tuple[str, ...] = ()
    files: ImageFiles | None = None


class Source(Protocol):
    """One value of ``--data``, resolved."""

    @property
    def stem(self) -> str:
        """File or folder name without suffixes; names the pack's folder."""

    def fingerprint(self, progress: Progress) -> str:
        """Return a text that changes whenever the contents may have."""

    def scan(self, progress: Progress) -> Contents:
        """Look through the source. Raises UserError for anything that is not a usable data set."""


def check_labels(
    where: str, class_names: tuple[str, ...], labels: dict[SplitName, NDArray[np.int64]]
) -> None:
    """Raise UserError unless both splits hold samples, of two classes or more, test's all known to train."""
    for split in SPLITS:
        if not len(labels[split]):
            raise UserError(f"{where} has no {split} images; both train and test are needed")
    trained = np.unique(labels["train"])
    if len(trained) < 2:
        raise UserError(
            f"{where} has one class only ({class_names[int(trained[0])]!r}); training needs two or more"
        )
    for label in np.setdiff1d(np.unique(labels["test"]), trained):
        raise UserError(
            f"class {class_names[int(label)]!r} of {where} is in test but not in train; "
            "add train images of it or leave it out of test"
        )
