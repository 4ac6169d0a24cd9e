"""What the compiled kernels share: how Gaussians, tiles and work buffers lie in memory.

A tile is 16 x 16 pixels, sixteen blocks of 4 x 4; a block is one vector. A splat is a record of float32 numbers whose first eight are its
mean (pixels), ``a b c`` of the lower triangular ``[[a, 0], [b, c]]`` that whitens offsets from the mean, so that
``log2 alpha = log2 opacity - u^2 - v^2`` with ``(u, v) = [[a, 0], [b, c]] (p - mean)``, then log2 opacity and the slopes ``dy / dx`` and
``dx / dy`` of the lines along which that falls slowest. Its values follow from place ``VALUES``: depth, then features, at least four.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy.typing as npt

VALUES = 8
TILE = 16
CHUNK = 1024  # Gaussians that a thread takes at once
BATCH = 64  # splats of a tile that are made ready at once
MOMENTS = 6
SLACK = 1e-4  # added to the reach of a splat, in units of log2 alpha: every pixel is tested when it is blended
LOG2_E = 1.4426950408889634
CAMERA = 22  # rotation (9), translation (3), the first two rows of the intrinsics (6), lowest and highest tangents (x y, x y)
PROJECT, BLEND, BLEND_BACK, PROJECT_BACK = range(4)  # counters
COUNTERS = 4


class Plan(NamedTuple):
    """Sizes and settings of one rendering."""

    width: int
    height: int
    columns: int  # of tiles
    rows: int
    points: int
    channels: int
    values: int  # of a splat: depth, features, zeros up to four
    stride: int  # of a splat's record
    gradient_stride: int  # of what a tile adds to the gradient of a splat
    for_backward: bool
    for_camera: bool  # whether the backward pass is to sum up the camera's gradient
    over_background: bool
    eps2d: float
    near: float
    alpha_min: float
    alpha_max: float
    log_alpha_min: float  # base 2
    transmittance_min: float
    work: int  # size of the part of ``Lists.work`` that a thread has


class Scene(NamedTuple):
    """The inputs of one rendering, flat float32 arrays, row by row; mask is bool."""

    means: npt.NDArray
    quaternions: npt.NDArray
    scales: npt.NDArray
    opacities: npt.NDArray
    features: npt.NDArray
    mask: npt.NDArray
    camera: npt.NDArray


class Lists(NamedTuple):
    """Splats, their order and their numbers per tile."""

    records: npt.NDArray  # float32
    rects: npt.NDArray  # uint64, two for each Gaussian: first column, end column, first row, end row of tiles, 16 bits each from the
    # lowest; and how many tiles the Gaussians before it in its chunk touch
    keys: npt.NDArray  # uint64: bits of the depth, index of the Gaussian; sorted
    spare: npt.NDArray
    visible: npt.NDArray  # int64, two for each chunk: visible Gaussians; tiles that they touch, then those of all chunks before
    histogram: npt.NDArray
    counts: npt.NDArray  # int64, of each part and tile; then where the part writes next
    starts: npt.NDArray  # int64, of each tile's members
    counters: npt.NDArray  # int64
    work: npt.NDArray  # float32, what each part may write as it likes
    masks: npt.NDArray  # uint16, the same


class Pairs(NamedTuple):
    """Splats of each tile, front to back; for the backward pass, the slot of each (slots of one Gaussian are neighbours) and its blocks."""

    members: npt.NDArray  # int32
    slots: npt.NDArray  # int32
    blocks: npt.NDArray  # uint16, which blocks of the tile each touches; filled in as far as the tile was blended


class Images(NamedTuple):
    """Flat float32 images, channel by channel: results, or their gradients."""

    image: npt.NDArray
    alpha: npt.NDArray
    depth: npt.NDArray
    background: npt.NDArray
