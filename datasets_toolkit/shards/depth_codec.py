"""Depth maps as quantised integers, predicted from neighbouring rows, byte-shuffled and compressed with zstd.

Letters: z depth (cm), s the step (cm), q = round(z / s) as uint16, d what is stored.

Rows are coded from coarse to fine: row 0 as it is; then, for the strides 2^k, ..., 4, 2, 1, each row in the middle between two rows that
are known already, as its difference from their mean (modulo 2^16). The last rows, which have no known row below, take the one above.
A row is predicted from both sides, and half of the picture is decoded by one vector addition: a running sum along rows or columns does
one addition at a time, and takes several times as long.

Layout: ``DSZ1``, then little-endian uint32 height, uint32 width, float32 s, uint32 CRC-32 of the 16 bytes before, then one zstd frame with
checksum: the low bytes of d + 128, row by row, then the high bytes. Small differences of both signs so have high byte 0.
"""

from __future__ import annotations

import struct
import threading
import zlib
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import zstandard

from datasets_toolkit.shards.codec_checks import Buffer, CodecError, check_size, require

STEP = 0.01
"""Step in cm wherever the depth stays below 655 cm; the error is at most half a step."""
LEVEL = 3
"""Of zstd; level 9 saves 7 % and takes four times as long to write."""

Codes = npt.NDArray[np.uint16]

_HEADER, _CHECKSUM = struct.Struct("<4sIIf"), struct.Struct("<I")
_MAGIC = b"DSZ1"
_BIAS = np.uint16(128)
_contexts = threading.local()  # zstd contexts are not for two threads at once


def encode_depth(depth: npt.NDArray[np.float32]) -> bytes:
    """Depth (h x w, cm along the optical axis, 0 where unknown) in at most 65,535 steps.

    The step is :data:`STEP`, or the largest depth / 65,535 where that is more. Known depth never becomes 0.

    Raises:
        ValueError: wrong dtype or shape, or a depth that is negative or not finite.
    """
    from datasets_toolkit.shards.depth_kernels import quantise, split_differences  # a compiler, which readers do not need

    require(depth, "float32", (None, None))
    check_size(*depth.shape)
    largest = float(depth.max())
    if not (np.isfinite(largest) and float(depth.min()) >= 0):
        raise ValueError("depth must be finite and not negative; 0 stands for unknown")
    step = np.float32(max(STEP, largest / 65535))
    codes, shuffled = np.empty(depth.shape, np.uint16), np.empty((2, *depth.shape), np.uint8)
    quantise(codes, np.ascontiguousarray(depth), 1 / step)
    split_differences(shuffled, codes)
    header = _HEADER.pack(_MAGIC, *codes.shape, step)
    return header + _CHECKSUM.pack(zlib.crc32(header)) + _compressor().compress(shuffled.tobytes())


def decode_depth(data: Buffer, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """Depth (h x w, cm, 0 where unknown); ``NaN`` and negative values cannot occur.

    Args:
        data: of :func:`encode_depth`.
        out: where the depth is put, if it has this size; otherwise new memory is taken.

    Raises:
        CodecError: not of :func:`encode_depth`, damaged, cut short, or larger than is allowed.
    """
    start = _HEADER.size + _CHECKSUM.size
    if len(data) < start or data[:4] != _MAGIC or _CHECKSUM.pack(zlib.crc32(data[: _HEADER.size])) != data[_HEADER.size : start]:
        raise CodecError("not a depth map of this format, or its header is damaged; copy or build it again")
    _, height, width, step = _HEADER.unpack_from(data)
    check_size(height, width)
    if not (np.isfinite(step) and step > 0):
        raise CodecError(f"a depth map with steps of {step} cm; build it again")
    planes = np.frombuffer(_decompress(data[start:], 2 * height * width), np.uint8).reshape(2, height, width)
    codes = cv2.merge([planes[0], planes[1]]).reshape(height, 2 * width).view("<u2")
    place = out if out is not None and out.shape == codes.shape else None
    return np.multiply(_accumulate(np.subtract(codes, _BIAS, out=codes)), np.float32(step), out=place, dtype=np.float32)


def _decompress(frame: Buffer, size: int) -> bytes:
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        if declared != size:  # checked first: a frame may claim any size
            raise CodecError(f"a depth map of {declared} bytes where its header says {size}; it is damaged, copy or build it again")
        return bytes(_decompressor().decompress(frame, max_output_size=size, allow_extra_data=False))
    except zstandard.ZstdError as error:
        raise CodecError(f"a damaged depth map ({error}); copy or build it again") from error


def _strides(rows: int) -> list[int]:
    """Powers of two below ``rows``, the largest first."""
    return [1 << power for power in reversed(range((rows - 1).bit_length()))]


def _accumulate(stored: Codes) -> Codes:
    """Codes (h x w) from their differences, in place."""
    for stride in _strides(len(stored)):
        _add_prediction(stored, stride)
    return stored


def _add_prediction(codes: Codes, stride: int) -> None:
    """Add to rows stride, 3 stride, ... what rows 0, 2 stride, ... make them out to be."""
    rows, known = codes[stride :: 2 * stride], codes[:: 2 * stride]
    pairs = min(len(rows), len(known) - 1)
    half = np.right_shift(known, np.uint16(1))  # halved first, their sum stays below 2^16
    for part in (half[:pairs], half[1 : pairs + 1]):
        np.add(rows[:pairs], part, out=rows[:pairs])
    np.add(rows[pairs:], known[pairs : len(rows)], out=rows[pairs:])


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_contexts, "compressor"):
        _contexts.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)
    return cast(zstandard.ZstdCompressor, _contexts.compressor)


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_contexts, "decompressor"):
        _contexts.decompressor = zstandard.ZstdDecompressor()
    return cast(zstandard.ZstdDecompressor, _contexts.decompressor)
