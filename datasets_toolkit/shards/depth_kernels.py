"""Compiled loops of the depth codec's encoder. Decoders need none: whoever only reads compiles nothing."""

from __future__ import annotations

import numpy as np

from datasets_toolkit.compiling import compiled


@compiled()
def quantise(codes, depth, scale):  # type: ignore[no-untyped-def]
    """Depth (h x w, float32) in steps of 1 / ``scale`` (float32), rounded, into ``codes`` (h x w, uint16); known depth becomes no 0."""
    half, zero = np.float32(0.5), np.float32(0)
    for row in range(depth.shape[0]):
        source, target = depth[row], codes[row]
        for i in range(len(source)):
            code = np.int32(source[i] * scale + half)
            target[i] = max(code, np.int32(1)) if source[i] > zero else np.int32(0)


@compiled()
def split_differences(planes, codes):  # type: ignore[no-untyped-def]
    """What is stored of codes (h x w, uint16), plus 128: low bytes and high bytes into ``planes`` (2 x h x w, uint8).

    The row between two rows at the distance S, for each S that is a power of two, is stored as the difference from their mean.
    """
    height = codes.shape[0]
    for row in range(height):
        stride = row & -row  # the largest power of two in it
        low, high, code = planes[0, row], planes[1, row], codes[row]
        if row == 0:
            _split(low, high, code, code, code, 0, 0)
        elif row + stride < height:
            _split(low, high, code, codes[row - stride], codes[row + stride], 1, 1)
        else:
            _split(low, high, code, codes[row - stride], codes[row - stride], 1, 0)


@compiled()
def _split(low, high, code, above, below, uses_above, uses_below):  # type: ignore[no-untyped-def]
    """One row: ``code`` less both halves, or less ``above``, or as it is."""
    for i in range(len(code)):
        predicted = (above[i] >> 1) + (below[i] >> 1) if uses_below else (above[i] if uses_above else 0)
        value = np.int32(code[i]) - np.int32(predicted) + 128
        low[i], high[i] = value & 255, (value >> 8) & 255
