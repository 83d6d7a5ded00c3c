"""Which file a memory-mapped array is a view of: what a process that inherits nothing needs to map it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def mapped_file(array: NDArray[np.uint8]) -> tuple[Path, int] | None:
    """Return (path, offset in bytes) of the file that C-ordered ``array`` is mapped from, or None."""
    base: object = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    # A memmap that is not itself the mapping (a copy, or what arithmetic made) has no file name or another base.
    while isinstance(base, np.memmap) and isinstance(base.base, np.memmap):
        base = base.base
    if not isinstance(base, np.memmap) or base.filename is None or not array.flags.c_contiguous:
        return None
    return Path(base.filename), base.offset + array.ctypes.data - base.ctypes.data
