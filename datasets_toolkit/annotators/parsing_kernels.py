"""Compiled loops over the pixels of a crop, for parsing by polygons and colours. Plain arrays in, plain arrays out."""

from __future__ import annotations

import math

import numpy as np

from datasets_toolkit.compiling import compiled


@compiled()
def add_polygon(steps, corners, lines, top):  # type: ignore[no-untyped-def]
    """What each edge of a polygon adds to all pixels right of it, exact along ``lines`` lines a pixel.

    Args:
        steps: h x (w + 2), written; its first row is row ``top`` of the picture.
        corners: n x 2, pixels of the picture.
        lines: per pixel.
        top: see above.
    """
    height, width = steps.shape[0], steps.shape[1] - 2
    for i in range(corners.shape[0]):
        j = (i + 1) % corners.shape[0]
        x0, y0, x1, y1 = corners[i, 0], corners[i, 1], corners[j, 0], corners[j, 1]
        if y0 == y1:
            continue
        first = min(max(math.ceil(min(y0, y1) * lines - 0.5), top * lines), (top + height) * lines)
        last = min(max(math.ceil(max(y0, y1) * lines - 0.5), top * lines), (top + height) * lines)
        sign, slope = (1.0 if y1 > y0 else -1.0) / lines, (x1 - x0) / (y1 - y0)
        for line in range(first, last):
            x = min(max(x0 + ((line + 0.5) / lines - y0) * slope, 0.0), float(width))
            column = int(x)
            steps[line // lines - top, column] += sign * (column + 1 - x)
            steps[line // lines - top, column + 1] += sign * (x - column)


@compiled()
def coverage(result, steps, top, left, right):  # type: ignore[no-untyped-def]
    """Running sums of ``steps`` along the rows, as shares in [0, 1], into ``result``: rows from ``top``, columns ``left`` to ``right``."""
    for row in range(steps.shape[0]):
        total = 0.0
        for column in range(left, right):
            total += steps[row, column]
            result[row + top, column] = min(abs(total), 1.0)


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
def extent(mask, a, b):  # type: ignore[no-untyped-def]
    """Greatest difference of ``a x + b y`` between pixels of a mask (h x w); 0 where it is empty."""
    low, high = np.inf, -np.inf
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            if mask[row, column]:
                value = a * column + b * row
                low, high = min(low, value), max(high, value)
    return max(high - low, 0.0)


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
def find_seeds(seeds, person, face, top, left, plane, half):  # type: ignore[no-untyped-def]
    """Mark where the anatomy leaves no doubt: 1 hair, 2 cheek, 3 torso; 0 elsewhere.

    Args:
        seeds: h x w, uint8, written: the part of the crop whose first pixel is (``left``, ``top``).
        person: h x w.
        face: h x w.
        top: see above.
        left: see above.
        plane: 2 x 3: (x, y, 1) of a pixel to cm to the person's left and up from the middle of the face.
        half: of the face's height, cm.
    """
    for row in range(seeds.shape[0]):
        y = row + top + 0.5
        for column in range(seeds.shape[1]):
            x = column + left + 0.5
            side = plane[0, 0] * x + plane[0, 1] * y + plane[0, 2]
            up = plane[1, 0] * x + plane[1, 1] * y + plane[1, 2]
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
def _ramp(value, low, high):  # type: ignore[no-untyped-def]
    """0 below ``low``, 1 above ``high``, linear between."""
    return min(max((value - low) / (high - low), 0.0), 1.0)


@compiled()
def add_priors(scores, top, left, plane, half, floor):  # type: ignore[no-untyped-def]
    """Add to the log densities of hair, skin and torso what the place says, and take the best from all, down to ``floor``.

    Args:
        scores: 3 x h x w, float32, changed: the part of the crop whose first pixel is (``left``, ``top``).
        top: see above.
        left: see above.
        plane: as for :func:`find_seeds`.
        half: likewise.
        floor: least score.
    """
    for row in range(scores.shape[1]):
        y = row + top + 0.5
        for column in range(scores.shape[2]):
            x = column + left + 0.5
            side = abs(plane[0, 0] * x + plane[0, 1] * y + plane[0, 2])
            up = plane[1, 0] * x + plane[1, 1] * y + plane[1, 2]
            below, beside = _ramp(-up, 1.0 * half, 2.0 * half), _ramp(side, 0.55 * half, 1.3 * half)
            far = _ramp(-up, 1.6 * half, 2.4 * half)
            torso = 9 * below + 4 * beside * _ramp(-up, 0.6 * half, 1.1 * half) - 14 * _ramp(up, -0.8 * half, -0.4 * half)
            hair = 8 * _ramp(up, 0.3 * half, 0.9 * half) - 4 * _ramp(-up, 1.2 * half, 2.4 * half)
            skin = -6 * beside - 4 * far + 2 * (1 - beside) * _ramp(-up, 0.8 * half, 1.0 * half)
            hair, skin, torso = hair + scores[0, row, column], skin + scores[1, row, column], torso + scores[2, row, column]
            best = max(hair, skin, torso)
            scores[0, row, column] = max(hair - best, floor)
            scores[1, row, column] = max(skin - best, floor)
            scores[2, row, column] = max(torso - best, floor)


@compiled()
def name_regions(labels, smooth, person, face, top, left, plane, half, names):  # type: ignore[no-untyped-def]
    """Write the best class of each pixel of the person; skin is ear, neck or face by its place.

    Args:
        labels: h x w, uint8, written: the part of the crop whose first pixel is (``left``, ``top``).
        smooth: 3 x h x w, filtered scores of hair, skin and torso.
        person: h x w.
        face: h x w.
        top: see above.
        left: see above.
        plane: as for :func:`find_seeds`.
        half: likewise.
        names: labels of hair, skin, torso, left ear, right ear and neck.
    """
    for row in range(labels.shape[0]):
        y = row + top + 0.5
        for column in range(labels.shape[1]):
            if face[row, column]:
                labels[row, column] = names[1]
            elif person[row, column]:
                hair, skin, torso = smooth[0, row, column], smooth[1, row, column], smooth[2, row, column]
                if hair >= skin and hair >= torso:
                    labels[row, column] = names[0]
                elif torso > skin:
                    labels[row, column] = names[2]
                else:
                    x = column + left + 0.5
                    side = plane[0, 0] * x + plane[0, 1] * y + plane[0, 2]
                    up = plane[1, 0] * x + plane[1, 1] * y + plane[1, 2]
                    if abs(side) > 6 and up > -0.6 * half and up < 0.5 * half:
                        labels[row, column] = names[3] if side > 0 else names[4]
                    else:
                        labels[row, column] = names[5] if up < -0.35 * half else names[1]
