"""Compiled loops over the pixels of a crop, for parsing by polygons and colours. Plain arrays in, plain arrays out."""

from __future__ import annotations

import math

import numpy as np

from datasets_toolkit.compiling import compiled


@compiled()
def add_polygon(steps, corners, lines, top, left):  # type: ignore[no-untyped-def]
    """What each edge of a polygon adds to all pixels right of it, exact along ``lines`` lines a pixel.

    Args:
        steps: h x (w + 2), written: the part of the picture whose first pixel is (``left``, ``top``).
        corners: n x 2, pixels of the picture.
        lines: per pixel.
        top: see above.
        left: see above.
    """
    height, width = steps.shape[0], steps.shape[1] - 2
    for i in range(corners.shape[0]):
        j = (i + 1) % corners.shape[0]
        x0, y0, x1, y1 = corners[i, 0] - left, corners[i, 1] - top, corners[j, 0] - left, corners[j, 1] - top
        if y0 == y1:
            continue
        first = min(max(math.ceil(min(y0, y1) * lines - 0.5), 0), height * lines)
        last = min(max(math.ceil(max(y0, y1) * lines - 0.5), 0), height * lines)
        sign, slope = (1.0 if y1 > y0 else -1.0) / lines, (x1 - x0) / (y1 - y0)
        for line in range(first, last):
            x = min(max(x0 + ((line + 0.5) / lines - y0) * slope, 0.0), float(width))
            column = int(x)
            steps[line // lines, column] += sign * (column + 1 - x)
            steps[line // lines, column + 1] += sign * (x - column)


@compiled()
def bounds(corners, size):  # type: ignore[no-untyped-def]
    """First and end of the rows, then of the columns, that a polygon (n x 2, pixels) touches in a picture of that size."""
    low, high = np.full(2, float(size)), np.zeros(2)
    for i in range(corners.shape[0]):
        for axis in range(2):
            low[axis], high[axis] = min(low[axis], corners[i, axis]), max(high[axis], corners[i, axis])
    top, bottom = max(math.floor(low[1]), 0), min(math.ceil(high[1]), size)
    left, right = max(math.floor(low[0]), 0), min(math.ceil(high[0]), size)
    return top, max(bottom, top), left, max(right, left)


@compiled()
def cover(result, corners, lines):  # type: ignore[no-untyped-def]
    """Raise the pixels of ``result`` (s x s, float32) to the share of them in [0, 1] that a polygon (n x 2, pixels) covers."""
    top, bottom, left, right = bounds(corners, result.shape[0])
    steps = np.zeros((bottom - top, right - left + 2))
    add_polygon(steps, corners, lines, top, left)
    for row in range(bottom - top):
        total = 0.0
        for column in range(right - left):
            total += steps[row, column]
            result[row + top, column + left] = max(result[row + top, column + left], min(abs(total), 1.0))


@compiled()
def fill(labels, corners, lines, label):  # type: ignore[no-untyped-def]
    """Give pixels of ``labels`` (s x s) that a polygon (n x 2, pixels) covers by more than half a label."""
    top, bottom, left, right = bounds(corners, labels.shape[0])
    steps = np.zeros((bottom - top, right - left + 2))
    add_polygon(steps, corners, lines, top, left)
    for row in range(bottom - top):
        total = 0.0
        for column in range(right - left):
            total += steps[row, column]
            if abs(total) > 0.5:
                labels[row + top, column + left] = label


@compiled()
def fill_rings(labels, points, rings, ends, names, lines):  # type: ignore[no-untyped-def]
    """:func:`fill` for several polygons, one over the other.

    Args:
        labels: s x s, changed.
        points: n x 2, pixels.
        rings: the corners of all polygons, as indices of points.
        ends: k, where each polygon ends in ``rings``.
        names: k, their labels.
        lines: per pixel.
    """
    first = 0
    for k in range(len(ends)):
        fill(labels, points[rings[first : ends[k]]], lines, names[k])
        first = ends[k]


@compiled(fastmath=True)
def colour_distances(result, planes, centres, inverses):  # type: ignore[no-untyped-def]
    """Minus half the squared Mahalanobis distance of each colour to each component.

    Args:
        result: k x n, float32, written.
        planes: 3 x n, float32.
        centres: k x 3, float32.
        inverses: k x 3 x 3, float32, of the covariances.
    """
    first, second, third = planes[0], planes[1], planes[2]
    for k in range(centres.shape[0]):
        c0, c1, c2, line = centres[k, 0], centres[k, 1], centres[k, 2], result[k]
        a, b, c = np.float32(-0.5) * inverses[k, 0, 0], np.float32(-0.5) * inverses[k, 1, 1], np.float32(-0.5) * inverses[k, 2, 2]
        d, e, f = -inverses[k, 0, 1], -inverses[k, 0, 2], -inverses[k, 1, 2]
        for i in range(len(line)):
            x, y, z = first[i] - c0, second[i] - c1, third[i] - c2
            line[i] = x * (a * x + d * y + e * z) + y * (b * y + f * z) + c * z * z


@compiled()
def colour_moments(samples, centres):  # type: ignore[no-untyped-def]
    """How many samples (n x 3, uint8) are nearest to each of the centres (k x 3), their sums (k x 3) and products (k x 3 x 3)."""
    count, total, products = np.zeros(len(centres), np.int64), np.zeros((len(centres), 3)), np.zeros((len(centres), 3, 3))
    for i in range(len(samples)):
        best, least = 0, np.float32(np.inf)
        for k in range(len(centres)):
            distance = np.float32(0)
            for axis in range(3):
                offset = np.float32(samples[i, axis]) - centres[k, axis]
                distance += offset * offset
            if distance < least:
                best, least = k, distance
        count[best] += 1
        for axis in range(3):
            total[best, axis] += samples[i, axis]
            for other in range(3):
                products[best, axis, other] += np.float64(samples[i, axis]) * samples[i, other]
    return count, total, products


@compiled()
def find_seeds(seeds, person, face, plane, half):  # type: ignore[no-untyped-def]
    """Mark where the anatomy leaves no doubt: 1 hair, 2 cheek, 3 torso; 0 elsewhere.

    Args:
        seeds: h x w, uint8, written.
        person: h x w.
        face: h x w.
        plane: 2 x 3: (x, y, 1) of a pixel to cm to the person's left and up from the middle of the face.
        half: of the face's height, cm.
    """
    for row in range(seeds.shape[0]):
        for column in range(seeds.shape[1]):
            side, up = _place(plane, row, column)
            seed = 0
            if face[row, column]:
                seed = 2 if abs(up) < 0.6 * half else 0
            elif person[row, column]:
                if up > 0.6 * half and side * side + up * up < (2.0 * half) ** 2:
                    seed = 1
                elif up < -1.75 * half and abs(side) > 0.3 * half:
                    seed = 3
            seeds[row, column] = seed


@compiled()
def _place(plane, row, column):  # type: ignore[no-untyped-def]
    """Where a pixel's centre lies in the plane of the face, cm to the person's left and up."""
    x, y = column + 0.5, row + 0.5
    return plane[0, 0] * x + plane[0, 1] * y + plane[0, 2], plane[1, 0] * x + plane[1, 1] * y + plane[1, 2]


@compiled()
def _ramp(value, low, high):  # type: ignore[no-untyped-def]
    """0 below ``low``, 1 above ``high``, linear between."""
    return min(max((value - low) / (high - low), 0.0), 1.0)


@compiled()
def leads(result, scores, plane, half, floor):  # type: ignore[no-untyped-def]
    """By how much hair and torso lead over skin, once the place has had its say.

    Args:
        result: 2 x h x w, float32, written.
        scores: 3 x h x w, float32, log densities of hair, skin and torso.
        plane: as for :func:`find_seeds`.
        half: likewise.
        floor: no class falls further behind the best one.
    """
    for row in range(scores.shape[1]):
        for column in range(scores.shape[2]):
            side, up = _place(plane, row, column)
            side = abs(side)
            below, beside = _ramp(-up, 1.0 * half, 2.0 * half), _ramp(side, 0.55 * half, 1.3 * half)
            far = _ramp(-up, 1.6 * half, 2.4 * half)
            torso = 9 * below + 4 * beside * _ramp(-up, 0.6 * half, 1.1 * half) - 14 * _ramp(up, -0.8 * half, -0.4 * half)
            hair = 8 * _ramp(up, 0.3 * half, 0.9 * half) - 4 * _ramp(-up, 1.2 * half, 2.4 * half)
            skin = -6 * beside - 4 * far + 2 * (1 - beside) * _ramp(-up, 0.8 * half, 1.0 * half)
            hair, skin, torso = hair + scores[0, row, column], skin + scores[1, row, column], torso + scores[2, row, column]
            least = max(hair, skin, torso) + floor
            skin = max(skin, least)
            result[0, row, column], result[1, row, column] = max(hair, least) - skin, max(torso, least) - skin


@compiled()
def apply_lines(matte, labels, grey, lines, plane, half, names):  # type: ignore[no-untyped-def]
    """Evaluate lines in the brightness, interpolated between the rows of a grid: the matte, and the label where it is above a half.

    Args:
        matte: s x s, float32, written; the haze that a guided filter leaves at both ends is cut off.
        labels: s x s, uint8, written; skin is ear, neck or face by its place.
        grey: s x s, uint8.
        lines: 6 x g x s, float32: slope and offset of the matte, of the lead of hair over skin, and of that of torso.
        plane: as for :func:`find_seeds`.
        half: likewise.
        names: labels of background, hair, torso, left ear, right ear, neck and face.
    """
    size, grid = matte.shape[0], lines.shape[1]
    values, face = np.empty((6, size), np.float32), np.empty(7, np.float32)
    face[2], face[3], face[4:] = plane[0, 0], plane[1, 0], np.array([-0.6, 0.5, -0.35]) * half
    for row in range(size):
        place = min(max((row + 0.5) * grid / size - 0.5, 0.0), grid - 1.0)
        above = min(int(place), grid - 2)
        for k in range(6):
            _blend(values[k], lines[k, above], lines[k, above + 1], np.float32(place - above))
        face[0], face[1] = _place(plane, row, 0)
        _apply_row(matte[row], labels[row], grey[row], values, face, names)


@compiled(fastmath=True)
def _blend(result, above, below, share):  # type: ignore[no-untyped-def]
    for i in range(len(result)):
        result[i] = above[i] + share * (below[i] - above[i])


@compiled(fastmath=True)
def _apply_row(matte, labels, grey, lines, face, names):  # type: ignore[no-untyped-def]
    """One row of :func:`apply_lines`; everything the loop needs has a name of its own, so that the compiler can use vectors."""
    zero, one, threshold, widest = np.float32(0), np.float32(1), np.float32(0.5), np.float32(6)
    side_0, up_0, side_1, up_1, ear_low, ear_high, neck_high = face[0], face[1], face[2], face[3], face[4], face[5], face[6]
    nothing, hair, torso, left_ear, right_ear, neck, skin = names[0], names[1], names[2], names[3], names[4], names[5], names[6]
    line_0, line_1, line_2, line_3, line_4, line_5 = lines[0], lines[1], lines[2], lines[3], lines[4], lines[5]
    for i in range(len(matte)):
        guide = np.float32(grey[i]) * np.float32(1 / 255)
        alpha = (line_0[i] * guide + line_1[i] - np.float32(0.1)) * np.float32(1.25)
        hair_lead, torso_lead = line_2[i] * guide + line_3[i], line_4[i] * guide + line_5[i]
        side, up = side_0 + np.float32(i) * side_1, up_0 + np.float32(i) * up_1
        label = neck if up < neck_high else skin
        ear = left_ear if side > zero else right_ear
        label = ear if (abs(side) > widest) & (up > ear_low) & (up < ear_high) else label
        label = torso if torso_lead > zero else label
        label = hair if (hair_lead >= zero) & (hair_lead >= torso_lead) else label
        matte[i] = min(max(alpha, zero), one)
        labels[i] = label if alpha > threshold else nothing
