"""CIFAR-10's official pickles (Krizhevsky 2009), read without letting a pickle run anything."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastresnet.errors import UserError
from fastresnet.loaders.sources.decode import File, resize_all
from fastresnet.loaders.sources.source import Block, Contents, Progress, SplitName, check_labels, shown
from fastresnet.loaders.sources.tree import Entry, Tree

IMAGE_SIZE = 32
BATCHES: dict[SplitName, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
META = "batches.meta"
FILES = (*BATCHES["train"], *BATCHES["test"], META)
# md5 of the files as published: only they may be called CIFAR-10.
PUBLISHED_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_ROWS = 1024  # images a block
_MAX_CLASSES, _MAX_NAME = (
    1000,
    1000,
)  # and characters of a name: a pickle can name one long text any number of times


def holds_pickles(names: set[str]) -> bool:
    """Tell whether file ``names`` look like the official files."""
    return bool(names & set(BATCHES["train"]))


def pickle_contents(
    tree: Tree, entries: Sequence[Entry], stem: str, image_size: int | None, progress: Progress
) -> Contents:
    """Return the contents of the official files among ``entries``: a sample's index is its place in them.

    Raises UserError if one is missing, is no pickle of arrays, or holds something else than it should.
    """
    by_name = {entry.path.rsplit("/", 1)[-1]: entry for entry in entries}
    missing = [name for name in FILES if name not in by_name]
    if missing:
        raise UserError(f"{tree.where} lacks {missing[0]}; the official files are {', '.join(FILES)}")
    raw: dict[str, bytes] = {}
    for entry, file in tree.files([by_name[name] for name in FILES]):
        raw[entry.path.rsplit("/", 1)[-1]] = _read(file)
        progress("reading pickles", len(raw), len(FILES))
    class_names = _class_names(_load(raw[META], f"{tree.where}: {META}"), f"{tree.where}: {META}")
    batches = {
        split: [_batch(raw[name], f"{tree.where}: {name}", len(class_names)) for name in names]
        for split, names in BATCHES.items()
    }
    labels = {split: np.concatenate([batch.labels for batch in found]) for split, found in batches.items()}
    check_labels(tree.where, class_names, labels)
    differing = [
        name
        for name in FILES
        if hashlib.md5(raw[name], usedforsecurity=False).hexdigest() != PUBLISHED_MD5[name]
    ]
    notices = []
    if differing:
        notices.append(f"{differing[0]} is not CIFAR-10's official file, so the data set is called {stem!r}")
    size = image_size or IMAGE_SIZE
    if size != IMAGE_SIZE:
        notices.append(f"images are scaled from {IMAGE_SIZE}x{IMAGE_SIZE} to {size}x{size}")
    return Contents(
        name=stem if differing else "CIFAR-10",
        class_names=class_names,
        image_size=size,
        labels=labels,
        blocks=lambda progress: _blocks(batches, size, progress),
        notices=tuple(notices),
    )


class _Batch(NamedTuple):
    """One pickle: uint8 [n, 3072] channel planes, int64 [n] labels."""

    planes: NDArray[np.uint8]
    labels: NDArray[np.int64]


def _blocks(batches: dict[SplitName, list[_Batch]], size: int, progress: Progress) -> Iterator[Block]:
    total = sum(len(batch.labels) for found in batches.values() for batch in found)
    done = 0
    for split, found in batches.items():
        first = 0
        for batch in found:
            for start in range(0, len(batch.labels), _ROWS):
                planes = batch.planes[start : start + _ROWS].reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
                rows = np.arange(first + start, first + start + len(planes))
                yield Block(split, rows, resize_all(planes.transpose(0, 2, 3, 1), size))
                done += len(rows)
                progress("packing images", done, total)
            first += len(batch.labels)


def _read(file: File) -> bytes:
    if isinstance(file, io.BytesIO):
        return file.getvalue()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _class_names(meta: Any, where: str) -> tuple[str, ...]:
    names = meta.get(b"label_names") if isinstance(meta, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise UserError(f"{where} has no list label_names; get the official files again")
    if len(names) > _MAX_CLASSES or any(len(name) > _MAX_NAME for name in names):
        raise UserError(
            f"{where} has over {_MAX_CLASSES} label_names, or longer ones; get the official files again"
        )
    return tuple(name if isinstance(name, str) else name.decode("utf-8", "replace") for name in names)


def _batch(raw: bytes, where: str, num_classes: int) -> _Batch:
    content = _load(raw, where)
    planes, labels = (
        (content.get(b"data"), content.get(b"labels")) if isinstance(content, dict) else (None, None)
    )
    planes = planes.array if isinstance(planes, _Array) else None
    labels = labels.array if isinstance(labels, _Array) else labels
    if planes is None or planes.dtype != np.uint8 or planes.ndim != 2 or planes.shape[1] != 3 * IMAGE_SIZE**2:
        raise UserError(f"{where} has no uint8 array data of [n, 3072]; get the official files again")
    checked = np.empty(0, np.int64)
    # Looked at one by one: lists of lists may share their parts, and be endless once they are spread out.
    if isinstance(labels, np.ndarray) or (
        isinstance(labels, list) and all(type(each) is int for each in labels)
    ):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            checked = np.array(labels, np.int64)
    if checked.shape != (len(planes),) or (
        len(checked) and not 0 <= checked.min() <= checked.max() < num_classes
    ):
        raise UserError(
            f"{where} has no label in [0, {num_classes}) for each image; get the official files again"
        )
    return _Batch(planes, checked)


class _Dtype:
    """Stands in for numpy.dtype: no state from a pickle reaches NumPy's own setters."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        self.dtype = np.dtype(text)
        if self.dtype.kind not in "iu":
            raise ValueError(f"array of {text!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for numpy.ndarray; ``array`` holds a checked copy."""

    array: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, raw = state
        self.array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    made = _Array()
    made.__setstate__((1, shape, dtype, order == "F", raw))
    return made


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class _Refused(Exception):
    """The pickle asks for something that is neither a plain container nor an array."""


_PythonUnpickler: Any = (
    pickle._Unpickler
)  # the one whose opcodes can be chosen; its types are not stated in full


def _opcodes(*names: str) -> dict[int, Any]:
    """Return Python's own way of carrying out these opcodes, by their byte."""
    return {getattr(pickle, name)[0]: _PythonUnpickler.dispatch[getattr(pickle, name)[0]] for name in names}


class _ArraysOnly(_PythonUnpickler):
    """Python's unpickler in Python, with the opcodes that containers and arrays need, and no other.

    Keys are texts: the hash of tuples in tuples would take a time that doubles with each. State is set on our own
    stand-ins alone, which leaves our functions as they are. Bytes made from text add up to the file's length at most.
    """

    dispatch = _opcodes(
        *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE"),
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "BUILD", "GLOBAL", "STACK_GLOBAL", "REDUCE"),
        *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    )

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw), encoding="bytes")
        self._size = self._left = len(raw)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def _encode(self, text: str, encoding: str) -> bytes:
        """Stand in for codecs.encode, with which Python 3 writes bytes at protocol 2."""
        self._left -= len(text)
        if encoding != "latin1" or self._left < 0:
            raise ValueError(f"{len(text)} characters to be encoded as {encoding!r}")
        return text.encode("latin-1")

    def _byte_array(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        if size > self._size:  # Python's own would make it first, and then look for its bytes
            raise ValueError(f"{size} bytes")
        self.append(bytearray(self.read(size)))

    def _checked(self, opcode: bytes, keys: list[Any]) -> None:
        if not all(isinstance(key, bytes | str | int) for key in keys):
            raise ValueError("a dictionary's key that is no text")
        _PythonUnpickler.dispatch[opcode[0]](self)

    def _dict(self) -> None:
        self._checked(pickle.DICT, self.stack[::2])

    def _set_item(self) -> None:
        self._checked(pickle.SETITEM, self.stack[-2:-1])

    def _set_items(self) -> None:
        self._checked(pickle.SETITEMS, self.stack[::2])

    def _build(self) -> None:
        if not isinstance(self.stack[-2], _Array | _Dtype):
            raise ValueError("state of something that is no array")
        _PythonUnpickler.dispatch[pickle.BUILD[0]](self)

    dispatch |= {pickle.DICT[0]: _dict, pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items}
    dispatch |= {pickle.BUILD[0]: _build, pickle.BYTEARRAY8[0]: _byte_array}


def _load(raw: bytes, where: str) -> Any:
    try:
        loaded = _ArraysOnly(raw).load()
        if callable(loaded):  # what makes an array, by itself
            raise _Refused(str(loaded))
        return loaded
    except _Refused as error:
        raise UserError(
            f"{where} is a pickle that asks for code ({_cut(error)}); only plain containers and NumPy arrays are loaded"
        ) from error
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(
            f"{where} is truncated or no pickle of arrays ({_cut(error)}); get it again"
        ) from error


def _cut(error: Exception) -> str:
    return shown(str(error)[:200] or type(error).__name__)
