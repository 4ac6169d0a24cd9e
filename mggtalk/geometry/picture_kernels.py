"""Whole pictures by compiled loops: fast twins, without gradients, of what ``detail.py`` and ``layers.py`` say in tensors.

A row of pixels is worked through at a time, in loops simple enough to become vectors.
"""

from __future__ import annotations

import math

import numpy as np

from datasets_toolkit.compiling import compiled

_ZERO, _HALF, _ONE, _NEXT = np.float32(0), np.float32(0.5), np.float32(1), np.uint64(1)


@compiled()
def add_moved(first, last, given, made):  # type: ignore[no-untyped-def]
    """The rows from ``first`` to ``last`` (not included) of a picture and what is carried along, into ``made`` (3 h w).

    ``given`` is the picture, what is carried (3 h w each), and its motion on a coarse grid (3 c c): from how far right and down each pixel
    comes, as shares of the picture, and how much of it is kept.
    """
    picture, texture, motion = given
    height, width, cells = picture.shape[1], picture.shape[2], motion.shape[1]
    above, down = _between(cells, height)
    left, across = _between(cells, width)
    coarse, fine = np.empty((3, cells), np.float32), np.empty((3, width), np.float32)
    index, shares, moved = np.empty(width, np.uint64), np.empty((4, width), np.float32), np.empty(width, np.float32)
    for y in range(first, last):
        for k in range(3):
            _mix(motion[k, above[y]], motion[k, above[y] + 1], down[y], coarse[k])
            _spread(coarse[k], left, across, fine[k])
        _sources(fine, y, height, width, index, shares)
        for channel in range(3):
            _sample(texture[channel].reshape(-1), index, shares, width, moved)
            row, kept, out = picture[channel, y], fine[2], made[channel, y]
            for x in range(width):
                out[x] = row[x] + kept[x] * moved[x]


@compiled()
def _between(cells, length):  # type: ignore[no-untyped-def]
    """Which of ``cells`` values lies before the centre of each of ``length`` pixels, and how far that is on the way to the next one."""
    index, share = np.empty(length, np.uint64), np.empty(length, np.float32)
    for i in range(length):
        place = max((np.float32(i) + _HALF) * np.float32(cells) / np.float32(length) - _HALF, _ZERO)
        index[i] = min(int(place), cells - 2)
        share[i] = min(place - np.float32(index[i]), _ONE)
    return index, share


@compiled()
def _mix(one, other, share, made):  # type: ignore[no-untyped-def]
    for i in range(len(made)):
        made[i] = one[i] + share * (other[i] - one[i])


@compiled()
def _spread(values, index, share, made):  # type: ignore[no-untyped-def]
    for i in range(len(made)):
        one = values[index[i]]
        made[i] = one + share[i] * (values[index[i] + _NEXT] - one)


@compiled()
def _sources(motion, y, height, width, index, shares):  # type: ignore[no-untyped-def]
    """The upper left one of the four pixels that each pixel of row ``y`` is a mixture of, and how much of it each of them is.

    A pixel's share falls from 1 to 0 over its distance of one pixel, so that beyond the border there is nothing.
    """
    for x in range(width):
        column = np.float32(x) + motion[0, x] * np.float32(width)
        row = np.float32(y) + motion[1, x] * np.float32(height)
        i = np.int32(min(max(row, _ZERO), np.float32(height - 2)))
        j = np.int32(min(max(column, _ZERO), np.float32(width - 2)))
        index[x] = i * np.int32(width) + j
        u, v = column - np.float32(j), row - np.float32(i)
        left, right = max(_ONE - abs(u), _ZERO), max(_ONE - abs(u - _ONE), _ZERO)
        upper, lower = max(_ONE - abs(v), _ZERO), max(_ONE - abs(v - _ONE), _ZERO)
        shares[0, x], shares[1, x], shares[2, x], shares[3, x] = upper * left, upper * right, lower * left, lower * right


@compiled()
def _sample(pixels, index, shares, width, made):  # type: ignore[no-untyped-def]
    below = np.uint64(width)
    for x in range(len(made)):
        i = index[x]
        upper = shares[0, x] * pixels[i] + shares[1, x] * pixels[i + _NEXT]
        made[x] = upper + shares[2, x] * pixels[i + below] + shares[3, x] * pixels[i + below + _NEXT]


@compiled()
def lay_behind(first, last, given, made):  # type: ignore[no-untyped-def]
    """The rows from ``first`` to ``last`` (not included) of what lies behind a head, into ``made`` (3 h w).

    ``given`` is the torso (4 h w: colours multiplied by alpha, and alpha), the background and the source (3 h w each), by how many pixels
    the torso is moved right and down, reflected at the border (2), and the share of the source (1).
    """
    torso, background, source, moved, stillness = given
    still = stillness[0]
    height, width = torso.shape[1], torso.shape[2]
    shift_x, shift_y = math.floor(moved[0]), math.floor(moved[1])
    right, down = np.float32(moved[0] - shift_x), np.float32(moved[1] - shift_y)
    columns = np.empty(width + 1, np.uint64)
    for x in range(width + 1):
        columns[x] = _reflected(x - 1 - shift_x, width)
    row, shown = np.empty(width + 1, np.float32), np.empty((4, width), np.float32)
    for y in range(first, last):
        upper, lower = _reflected(y - 1 - shift_y, height), _reflected(y - shift_y, height)
        for channel in range(4):
            above, below, out = torso[channel, upper], torso[channel, lower], shown[channel]
            for x in range(width + 1):
                j = columns[x]
                row[x] = below[j] + down * (above[j] - below[j])
            for x in range(width):
                out[x] = row[x + 1] + right * (row[x] - row[x + 1])
        alpha = shown[3]
        for channel in range(3):
            front, back, whole, out = shown[channel], background[channel, y], source[channel, y], made[channel, y]
            for x in range(width):
                value = front[x] + (_ONE - alpha[x]) * back[x]
                out[x] = value + still * (whole[x] - value)


@compiled()
def _reflected(index, length):  # type: ignore[no-untyped-def]
    """The pixel that a pixel outside of ``length`` mirrors: the border's is its neighbour's twin (d c b a | a b c d | d c b a)."""
    index = index % (2 * length)
    return index if index < length else 2 * length - 1 - index
