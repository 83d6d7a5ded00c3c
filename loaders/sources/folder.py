"""Images as ``{train,test}/<class>/<file>``, in a folder or in a tar."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastresnet.errors import UserError
from fastresnet.loaders.sources.decode import DEFAULT_SIZE, SUFFIXES, File, decode, image_dimensions
from fastresnet.loaders.sources.source import (
    SPLITS,
    Block,
    Contents,
    ImageFiles,
    Progress,
    SplitName,
    check_labels,
    shown,
)
from fastresnet.loaders.sources.tree import Entry, Tree, as_bytes
from fastresnet.words import counted

LAYOUT = "{train,test}/<class>/<file>.{jpg,jpeg,png}"
_CHUNK = 256  # images decoded at a time
# Below this many bytes a file, threads lose more handing the interpreter over than they gain in decoding.
_WORTH_A_THREAD = 8192


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The images of a tree: per split, the entries by sample index and the label of each."""

    class_names: tuple[str, ...]
    entries: dict[SplitName, list[Entry]]
    labels: dict[SplitName, list[int]]
    notices: tuple[str, ...]


def lay_out(where: str, entries: Iterable[Entry]) -> Layout:
    """Sort ``entries`` into splits and classes. Raises UserError if they do not follow :data:`LAYOUT`.

    A sample's index is its rank among its split's paths, sorted as bytes; so is a class's label among the
    classes. One folder around everything (as ``tar czf photos.tgz photos/`` makes) is looked through.
    """
    seen = [entry for entry in entries if not _hidden(entry.path)]
    images = [entry for entry in seen if entry.path.lower().endswith(SUFFIXES)]
    if not images:
        raise UserError(f"{where} holds no .jpg, .jpeg or .png images; expected {LAYOUT}")
    root = _common_root(images)
    paths = [(entry.path[len(root) :].split("/"), entry) for entry in images]
    found: dict[SplitName, list[tuple[bytes, str, Entry]]] = {"train": [], "test": []}
    elsewhere: dict[str, int] = {}
    for parts, entry in paths:
        if parts[0] not in SPLITS:
            elsewhere[parts[0]] = elsewhere.get(parts[0], 0) + 1
        elif len(parts) != 3:
            raise UserError(
                f"{where}: image {shown(entry.path)} is not at {LAYOUT}; move it into a class's folder"
            )
        else:
            found[parts[0]].append((as_bytes("/".join(parts)), parts[1], entry))
    if not (found["train"] and found["test"]):
        raise UserError(_wrong_layout(where, found, [parts for parts, _ in paths]))
    class_names = tuple(sorted({name for rows in found.values() for _, name, _ in rows}, key=as_bytes))
    for name in class_names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: class folder {name!r} is not named in {_encoding(name)}") from None
    label_of = {name: label for label, name in enumerate(class_names)}
    for rows in found.values():
        rows.sort()
    return Layout(
        class_names=class_names,
        entries={split: [entry for _, _, entry in rows] for split, rows in found.items()},
        labels={split: [label_of[name] for _, name, _ in rows] for split, rows in found.items()},
        notices=_left_out(seen, root, elsewhere),
    )


def _encoding(name: str) -> str:
    """Return which encoding a class folder's name is not in, and what to do."""
    try:
        as_bytes(name).decode()
    except UnicodeDecodeError:
        return "UTF-8; rename it"
    return "the locale's encoding; set PYTHONUTF8=1, or a locale of UTF-8 such as LC_ALL=C.UTF-8"


def _hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _common_root(images: Sequence[Entry]) -> str:
    """Return the prefix ``"<folder>/"`` if one folder holds every image, in train/ or test/; else ``""``."""
    tops = {entry.path.split("/")[0] for entry in images}
    if len(tops) == 1 and not tops & set(SPLITS):
        root = tops.pop() + "/"
        if any(entry.path.startswith(f"{root}{split}/") for entry in images for split in SPLITS):
            return root
    return ""


def _wrong_layout(
    where: str,
    found: dict[SplitName, list[tuple[bytes, str, Entry]]],
    paths: list[list[str]],
) -> str:
    missing = " or ".join(f"{split}/" for split in SPLITS if not found[split])
    message = f"{where} has no images in {missing}; expected {LAYOUT}"
    tops = sorted({parts[0] for parts in paths if len(parts) > 1} - set(SPLITS))
    some = shown(", ".join(tops[:3])) + (", ..." if len(tops) > 3 else "")
    if not found["train"] and not found["test"] and all(len(parts) == 2 for parts in paths):
        return f"{message}; it has class folders ({some}) directly: put them under train/ and test/"
    return message + (f"; what it has instead is {some}" if tops else "")


def _left_out(seen: Sequence[Entry], root: str, elsewhere: dict[str, int]) -> tuple[str, ...]:
    notices = []
    others = [entry.path for entry in seen if not entry.path.lower().endswith(SUFFIXES)]
    others = sorted(path for path in others if path[len(root) :].startswith(("train/", "test/")))
    if others:
        notices.append(
            f"left out {counted(len(others), 'file')} not named .jpg, .jpeg or .png (first: {shown(others[0])})"
        )
    if elsewhere:
        folders = shown(", ".join(sorted(elsewhere)[:3]))
        notices.append(
            f"left out {counted(sum(elsewhere.values()), 'image')} outside train/ and test/ (in {folders})"
        )
    return tuple(notices)


def image_contents(
    tree: Tree, entries: Sequence[Entry], stem: str, image_size: int | None, progress: Progress
) -> Contents:
    """Return the contents of the images among ``entries`` of ``tree``.

    ``image_size`` forces the side S; None keeps one square size that all share, else scales to 32. Raises
    UserError for a wrong layout, too few classes, or a file that is no image.
    """
    layout = lay_out(tree.where, entries)
    labels = {split: np.array(layout.labels[split], np.int64) for split in SPLITS}
    check_labels(tree.where, layout.class_names, labels)
    size, notice = _settle_size(tree, layout, image_size, progress)
    return Contents(
        name=stem,
        class_names=layout.class_names,
        image_size=size,
        labels=labels,
        blocks=lambda progress: _blocks(tree, layout, size, progress),
        notices=(*layout.notices, *notice),
        files=ImageFiles(tree, layout.entries, all_of_size=not notice),
    )


def _settle_size(
    tree: Tree, layout: Layout, wanted: int | None, progress: Progress
) -> tuple[int, tuple[str, ...]]:
    """Return S and what to tell the user; reads headers up to the first image that settles it."""
    every = [entry for split in SPLITS for entry in layout.entries[split]]
    common = wanted
    for done, (entry, file) in enumerate(tree.files(every)):
        width, height = image_dimensions(file, f"{tree.where}: {shown(entry.path)}")
        common = common or width
        if (width, height) != (common, common):
            size = wanted or DEFAULT_SIZE
            return size, (
                f"images of other sizes (such as {shown(entry.path)}, {width}x{height}) are scaled to a shorter "
                f"side of {size} and cropped to {size}x{size}",
            )
        if done % 1000 == 0:
            progress("reading sizes", done, len(every))
    assert common is not None
    return common, ()


def _blocks(tree: Tree, layout: Layout, size: int, progress: Progress) -> Iterator[Block]:
    rank = {entry: (split, row) for split in SPLITS for row, entry in enumerate(layout.entries[split])}
    mean_bytes = sum(entry.size for entry in rank) / len(rank)
    workers = (os.cpu_count() or 1) if mean_bytes > _WORTH_A_THREAD else 1

    def decode_chunk(files: list[tuple[Entry, File]]) -> list[Block]:
        decoded: dict[SplitName, list[tuple[int, NDArray[np.uint8]]]] = {"train": [], "test": []}
        for entry, file in files:
            split, row = rank[entry]
            decoded[split].append((row, decode(file, f"{tree.where}: {shown(entry.path)}", size)))
        return [
            Block(split, np.array([row for row, _ in rows], np.int64), np.stack([image for _, image in rows]))
            for split, rows in decoded.items()
            if rows
        ]

    done = 0
    waiting: deque[Future[list[Block]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for files in _chunks(tree.files(rank)):
                waiting.append(pool.submit(decode_chunk, files))
                while len(waiting) > workers + 1:
                    yield from waiting.popleft().result()
                done += len(files)
                progress("decoding images", done, len(rank))
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _chunks(files: Iterator[tuple[Entry, File]]) -> Iterator[list[tuple[Entry, File]]]:
    chunk: list[tuple[Entry, File]] = []
    for item in files:
        chunk.append(item)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
