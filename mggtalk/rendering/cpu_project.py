"""Projection of sixteen Gaussians at a time: the compiled counterpart of ``ReferenceRenderer.splat``, with its letters."""

from __future__ import annotations

import numpy as np

from mggtalk.rendering.cpu_layout import CHUNK, LOG2_E, PROJECT, SLACK, TILE, VALUES, Lists, Plan, Scene
from mggtalk.rendering.simd import (
    Array,
    Mask,
    Vector,
    compiled,
    fma,
    fnma,
    mask_bits,
    maximum,
    minimum,
    select,
    splat,
    split_exponent,
    sqrt,
)
from mggtalk.rendering.simd_memory import float_bits, load, load_rows, peek, poke, store, take_next

Vectors = tuple[Vector, ...]


@compiled(inline=True)
def dot3(x: Vectors, y: Vectors) -> Vector:
    """Inner products."""
    return fma(x[0], y[0], fma(x[1], y[1], x[2] * y[2]))


@compiled(inline=True)
def log2(x: Vector) -> Vector:
    """Base 2, for positive normal x, within 2e-7: the series of ``log((1 + s) / (1 - s))``, |s| < 0.172."""
    exponent, mantissa = split_exponent(x)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = fma(square, 2 * LOG2_E / 9, splat(2 * LOG2_E / 7))
    series = fma(square, fma(square, series, 2 * LOG2_E / 5), 2 * LOG2_E / 3)
    return exponent + s * fma(square, series, 2 * LOG2_E)


@compiled(inline=True)
def camera_row(camera: Array, row: int) -> Vectors:
    """One row of the camera's rotation."""
    return splat(camera[3 * row]), splat(camera[3 * row + 1]), splat(camera[3 * row + 2])


@compiled(inline=True)
def in_camera(camera: Array, mean: Vectors) -> Vectors:
    """Means in camera space."""
    x, y, z = (dot3(camera_row(camera, 0), mean), dot3(camera_row(camera, 1), mean), dot3(camera_row(camera, 2), mean))
    return x + camera[9], y + camera[10], z + camera[11]


@compiled(inline=True)
def unit(quaternion: Vectors) -> tuple[Vectors, Vector]:
    """The quaternions over their lengths, and one over the lengths."""
    w, x, y, z = quaternion
    inverse = 1.0 / maximum(sqrt(fma(w, w, fma(x, x, fma(y, y, z * z)))), 1e-12)
    return (w * inverse, x * inverse, y * inverse, z * inverse), inverse


@compiled(inline=True)
def rotation(quaternion: Vectors) -> tuple[Vectors, Vectors, Vectors]:
    """The columns of the rotation matrices of unit quaternions w x y z."""
    w, x, y, z = quaternion
    first = (1.0 - 2.0 * fma(y, y, z * z), 2.0 * fma(x, y, w * z), 2.0 * fnma(w, y, x * z))
    second = (2.0 * fnma(w, z, x * y), 1.0 - 2.0 * fma(x, x, z * z), 2.0 * fma(y, z, w * x))
    third = (2.0 * fma(x, z, w * y), 2.0 * fnma(w, x, y * z), 1.0 - 2.0 * fma(x, x, y * y))
    return first, second, third


@compiled(inline=True)
def apply_intrinsics(camera: Array, row: int, x: Vector, y: Vector) -> Vector:
    """One row of the upper left 2 x 2 part of the intrinsics, applied to a vector."""
    return fma(x, splat(camera[12 + 3 * row]), y * camera[13 + 3 * row])


@compiled(inline=True)
def clamped(camera: Array, tangent: Vectors) -> Vectors:
    """The tangents where the Jacobian is taken."""
    x, y = minimum(maximum(tangent[0], camera[18]), camera[20]), minimum(maximum(tangent[1], camera[19]), camera[21])
    return x, y


@compiled(inline=True)
def jacobian_row(camera: Array, row: int, tangent: Vectors, per_depth: Vector) -> Vectors:
    """One row of the Jacobian J of the projection at given (clamped) tangents; ``per_depth`` is one over the depth."""
    first, second = per_depth * camera[12 + 3 * row], per_depth * camera[13 + 3 * row]
    return first, second, 0.0 - fma(first, tangent[0], second * tangent[1])


@compiled(inline=True)
def times_rotation(row: Vectors, camera: Array) -> Vectors:
    """A row vector times the camera's rotation."""
    up, middle, down = camera_row(camera, 0), camera_row(camera, 1), camera_row(camera, 2)
    first = fma(row[0], up[0], fma(row[1], middle[0], row[2] * down[0]))
    second = fma(row[0], up[1], fma(row[1], middle[1], row[2] * down[1]))
    return first, second, fma(row[0], up[2], fma(row[1], middle[2], row[2] * down[2]))


@compiled(inline=True)
def axes(row: Vectors, turn: tuple[Vectors, Vectors, Vectors], scale: Vectors) -> Vectors:
    """A row of J Q R S: what a step along each axis of the Gaussian moves in the image, pixels."""
    return dot3(row, turn[0]) * scale[0], dot3(row, turn[1]) * scale[1], dot3(row, turn[2]) * scale[2]


@compiled(inline=True)
def store_shape(plan: Plan, scene: Scene, base: int, out: Array) -> Mask:
    """The first nine numbers of 16 records to ``out``, each as a vector, then the four sides of their rectangles of tiles.

    Returns which of the 16 take part: near enough, opaque enough, not flat, and not masked.
    """
    camera = scene.camera
    point = in_camera(camera, load_rows(scene.means, base, 3))
    per_depth = 1.0 / point[2]
    tangent = (point[0] * per_depth, point[1] * per_depth)
    turn, scale = rotation(unit(load_rows(scene.quaternions, base, 4))[0]), load_rows(scene.scales, base, 3)
    anchor = clamped(camera, tangent)
    across = axes(times_rotation(jacobian_row(camera, 0, anchor, per_depth), camera), turn, scale)
    down = axes(times_rotation(jacobian_row(camera, 1, anchor, per_depth), camera), turn, scale)
    xx, xy, yy = dot3(across, across) + plan.eps2d, dot3(across, down), dot3(down, down) + plan.eps2d
    slope = xy / xx
    left = fnma(slope, xy, yy)
    a, c = sqrt((0.5 * LOG2_E) / xx), sqrt((0.5 * LOG2_E) / left)
    b = 0.0 - slope * c
    mean_x = apply_intrinsics(camera, 0, tangent[0], tangent[1]) + camera[14]
    mean_y = apply_intrinsics(camera, 1, tangent[0], tangent[1]) + camera[17]
    opacity = load(scene.opacities, base)
    log_opacity = log2(maximum(opacity, 1e-30))
    reach = maximum(log_opacity - (plan.log_alpha_min - SLACK), 0.0) * (2.0 / LOG2_E)
    store(out, 0, mean_x)
    store(out, 16, mean_y)
    store(out, 32, a)
    store(out, 48, b)
    store(out, 64, c)
    store(out, 80, log_opacity)
    store(out, 96, slope)  # of the line along which v is 0
    store(out, 112, 0.0 - b * c / fma(a, a, b * b))
    store(out, 128, point[2])
    store_range(mean_x, sqrt(reach * xx), float(plan.columns), out, 144)
    store_range(mean_y, sqrt(reach * yy), float(plan.rows), out, 176)
    return (point[2] > plan.near) & (opacity >= plan.alpha_min) & (left > 0.0)


@compiled(inline=True)
def store_range(middle: Vector, extent: Vector, tiles: float, out: Array, at: int) -> None:
    """First and end (one after the last) of the tiles with a pixel centre within ``extent`` of ``middle``; NaN gives an empty range."""
    extent = extent * 1.00001 + 0.001
    first = (middle - extent - 0.5) * (1 / TILE)
    end = (middle + extent - 0.5) * (1 / TILE) + 1.0
    store(out, at, select(first >= 0.0, minimum(first, tiles), select(first < 0.0, splat(0.0), splat(tiles))))
    store(out, at + 16, minimum(maximum(end, 0.0), tiles))


@compiled()
def project_part(part: int, plan: Plan, scene: Scene, lists: Lists) -> None:
    """Take chunks of Gaussians until none are left; write the records, rectangles and keys of those that can be seen."""
    out = lists.work[part * plan.work : (part + 1) * plan.work]
    while True:
        chunk = take_next(lists.counters, PROJECT)
        if chunk * CHUNK >= plan.points:
            break
        end, area = chunk * CHUNK, 0
        for start in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, plan.points), 16):
            base = min(start, plan.points - 16)  # the last vector may overlap the one before
            kept = mask_bits(store_shape(plan, scene, base, out))
            for lane in range(start - base, 16):
                poke(lists.rects, 2 * (base + lane), 0)
                if (kept >> np.uint32(lane)) & np.uint32(1) and scene.mask[np.uint64(base + lane)]:
                    poke(lists.rects, 2 * (base + lane) + 1, area)
                    end, area = keep(plan, scene, lists, base + lane, lane, out, end, area)
        poke(lists.visible, 2 * chunk, end - chunk * CHUNK)
        poke(lists.visible, 2 * chunk + 1, area)


@compiled(inline=True)
def keep(plan: Plan, scene: Scene, lists: Lists, index: int, lane: int, shape: Array, end: int, area: int) -> tuple[int, int]:
    """Write one Gaussian's record unless its rectangle is empty, and its key at ``end``.

    Returns where the next key goes, and ``area`` and the tiles touched.
    """
    first_column, end_column = np.int64(peek(shape, 144 + lane)), np.int64(peek(shape, 160 + lane))
    first_row, end_row = np.int64(peek(shape, 176 + lane)), np.int64(peek(shape, 192 + lane))
    if first_column >= end_column or first_row >= end_row:
        return end, area
    poke(lists.rects, 2 * index, np.uint64(first_column | (end_column << 16) | (first_row << 32) | (end_row << 48)))
    at = index * plan.stride
    for place in range(9):
        poke(lists.records, at + place, peek(shape, 16 * place + lane))
    for channel in range(plan.channels):
        poke(lists.records, at + VALUES + 1 + channel, peek(scene.features, index * plan.channels + channel))
    for channel in range(plan.channels + 1, plan.values):
        poke(lists.records, at + VALUES + channel, 0)
    poke(lists.keys, end, (np.uint64(float_bits(peek(shape, 128 + lane))) << np.uint64(32)) | np.uint64(index))
    return end + 1, area + (end_column - first_column) * (end_row - first_row)
