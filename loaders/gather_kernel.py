"""The gather-crop-flip kernel: padded crops and mirrored rows as vector moves at raw addresses.

A pixel is 3 bytes, so a loop over pixels compiles to byte moves at a tenth of memory speed. Here 16 pixels
are one vector of 48 bytes that is loaded, perhaps mirrored by one shuffle, and stored; LLVM knows how on any
processor. Addresses are plain integers: handing arrays about would count references in the innermost loop.
All that is compiled is in this one file, because numba's disk cache notices a change of no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

_PREFETCH_IMAGES = 2  # how far ahead of the copy the next images are fetched: 2 to 4 are alike, 1 is slower
_CACHE_LINE = 64  # bytes

_BYTE = ir.IntType(8)
_INT32 = ir.IntType(32)


def _mover(num_pixels: int, how: Literal["copy", "mirror", "zero"]) -> Any:
    """Return ``move(target, source)`` over ``num_pixels`` unaligned pixels; ``zero`` ignores its source."""
    lanes = 3 * num_pixels
    vector = ir.VectorType(_BYTE, lanes)
    order = [lanes - 3 - lane + 2 * (lane % 3) for lane in range(lanes)]  # pixels reversed, colours not

    @intrinsic
    def move(typing_context: Any, target: Any, source: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            target_address, source_address = arguments
            if how == "zero":
                value = ir.Constant(vector, None)
            else:
                value = builder.load(builder.inttoptr(source_address, vector.as_pointer()), align=1)
            if how == "mirror":
                mask = ir.Constant(ir.VectorType(_INT32, lanes), order)
                value = builder.shuffle_vector(value, ir.Constant(vector, ir.Undefined), mask)
            builder.store(value, builder.inttoptr(target_address, vector.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return move


@intrinsic
def _prefetch(typing_context: Any, address: Any) -> Any:
    """Fetch the cache line at ``address`` for reading into the second-level cache.

    Not the first: the copy under way wants its few fill buffers (290 ns an image that way, 195 ns this way).
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _BYTE.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _INT32, _INT32, _INT32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, _INT32(0), _INT32(2), _INT32(1)])
        return context.get_dummy_value()

    return types.void(types.intp), generate


_copy16, _copy4, _copy1 = _mover(16, "copy"), _mover(4, "copy"), _mover(1, "copy")
_mirror16, _mirror4 = _mover(16, "mirror"), _mover(4, "mirror")
_zero16, _zero4, _zero1 = _mover(16, "zero"), _mover(4, "zero"), _mover(1, "zero")

_inlined = numba.njit(nogil=True, forceinline=True)


# Each walks in the widest vectors that fit; the last ends at the last pixel, overlapping the one before.
@_inlined
def _copy_pixels(target: int, source: int, count: int) -> None:
    """Copy ``count`` pixels."""
    k = 0
    if count >= 16:
        while k < count - 16:
            _copy16(target + 3 * k, source + 3 * k)
            k += 16
        _copy16(target + 3 * (count - 16), source + 3 * (count - 16))
    elif count >= 4:
        while k < count - 4:
            _copy4(target + 3 * k, source + 3 * k)
            k += 4
        _copy4(target + 3 * (count - 4), source + 3 * (count - 4))
    else:
        while k < count:
            _copy1(target + 3 * k, source + 3 * k)
            k += 1


@_inlined
def _mirror_pixels(target: int, source: int, count: int) -> None:
    """Copy ``count`` pixels, the last one first."""
    k = 0
    if count >= 16:
        while k < count - 16:
            _mirror16(target + 3 * (count - 16 - k), source + 3 * k)
            k += 16
        _mirror16(target, source + 3 * (count - 16))
    elif count >= 4:
        while k < count - 4:
            _mirror4(target + 3 * (count - 4 - k), source + 3 * k)
            k += 4
        _mirror4(target, source + 3 * (count - 4))
    else:
        while k < count:
            _copy1(target + 3 * (count - 1 - k), source + 3 * k)
            k += 1


@_inlined
def _zero_pixels(target: int, count: int) -> None:
    """Write ``count`` black pixels."""
    k = 0
    if count >= 16:
        while k < count - 16:
            _zero16(target + 3 * k, 0)
            k += 16
        _zero16(target + 3 * (count - 16), 0)
    elif count >= 4:
        while k < count - 4:
            _zero4(target + 3 * k, 0)
            k += 4
        _zero4(target + 3 * (count - 4), 0)
    else:
        while k < count:
            _zero1(target + 3 * k, 0)
            k += 1


_IMAGES = types.Array(types.uint8, 4, "C", readonly=True)
_SIGNATURE = types.void(
    _IMAGES,
    types.int64[::1],
    types.int64[::1],
    types.int64[::1],
    types.boolean[::1],
    types.uint8[:, :, :, ::1],
    types.intp,
    types.boolean,
)


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile ``function`` now, free of the GIL, through the disk cache where that can be written."""
    try:
        return numba.njit([_SIGNATURE], nogil=True, cache=True)(function)
    except (RuntimeError, OSError):  # no cache folder can be written, or the disk is full
        return numba.njit([_SIGNATURE], nogil=True)(function)


@_compiled
def gather_kernel(
    images: NDArray[np.uint8],
    indices: NDArray[np.int64],
    crop_y: NDArray[np.int64],
    crop_x: NDArray[np.int64],
    flips: NDArray[np.bool_],
    out: NDArray[np.uint8],
    padding: int,
    reflect: bool,
) -> None:
    """See :func:`fastresnet.loaders.gather.gather`."""
    num_images, height, width, _ = images.shape
    row_bytes = 3 * width
    first, target = np.intp(images.ctypes.data), np.intp(out.ctypes.data)
    for i in range(len(indices)):
        if not 0 <= indices[i] < num_images:
            raise IndexError("a sample index lies outside the images")
        dy, dx = crop_y[i] - padding, crop_x[i] - padding
        left = min(max(0, -dx), width)  # columns of padding on either side of the crop, before the flip
        right = min(max(0, dx), width)
        inside = max(0, width - left - right)
        flip = flips[i]
        source = first + indices[i] * height * row_bytes
        ahead = first + indices[min(i + _PREFETCH_IMAGES, len(indices) - 1)] * height * row_bytes
        for y in range(height):
            line = 0
            while line < row_bytes:
                _prefetch(ahead + line)
                line += _CACHE_LINE
            ahead += row_bytes
            row = y + dy
            if row < 0 or row >= height:
                if not reflect:
                    _zero_pixels(target, width)
                    target += row_bytes
                    continue
                row = -row if row < 0 else 2 * (height - 1) - row
            origin = source + row_bytes * row
            start = origin + 3 * max(0, dx)
            if flip:
                _mirror_pixels(target + 3 * right, start, inside)
            else:
                _copy_pixels(target + 3 * left, start, inside)
            if left:
                place = target + 3 * (width - left) if flip else target
                if not reflect:
                    _zero_pixels(place, left)
                elif flip:
                    _copy_pixels(place, origin + 3, left)
                else:
                    _mirror_pixels(place, origin + 3, left)
            elif right:
                place = target if flip else target + 3 * (width - right)
                if not reflect:
                    _zero_pixels(place, right)
                elif flip:
                    _copy_pixels(place, origin + 3 * (width - 1 - right), right)
                else:
                    _mirror_pixels(place, origin + 3 * (width - 1 - right), right)
            target += row_bytes
