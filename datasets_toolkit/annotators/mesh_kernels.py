"""Compiled loops over the pixels of a crop, for depth from a face mesh and for normals from depth. Plain arrays in, plain arrays out."""

from __future__ import annotations

import math

import numpy as np

from datasets_toolkit.compiling import compiled


@compiled()
def nearest_depth(image, points, inverse_depth, triangles):  # type: ignore[no-untyped-def]
    """Write the depth of triangles, the nearest first; 1/z is linear in the image of a plane.

    Args:
        image: s x s, float32, written, cm; 0 on entry, and still 0 where nothing is.
        points: n x 2, pixels.
        inverse_depth: n, 1/cm.
        triangles: m x 3.
    """
    size = image.shape[0]
    for t in range(triangles.shape[0]):
        i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        x0, y0 = points[i, 0], points[i, 1]
        e00, e10 = points[j, 0] - x0, points[j, 1] - y0
        e01, e11 = points[k, 0] - x0, points[k, 1] - y0
        area = e00 * e11 - e01 * e10
        if abs(area) < 1e-9:
            continue
        # The shares of the second and third corner are b = b_x dx + b_y dy and c = c_x dx + c_y dy; inside, b, c and 1 - b - c are >= 0.
        b_x, b_y, c_x, c_y = e11 / area, -e01 / area, -e10 / area, e00 / area
        w0, w1, w2 = inverse_depth[i], inverse_depth[j] - inverse_depth[i], inverse_depth[k] - inverse_depth[i]
        top = max(math.floor(min(y0, points[j, 1], points[k, 1]) - 0.5), 0)
        bottom = min(math.ceil(max(y0, points[j, 1], points[k, 1]) + 0.5), size)
        for y in range(top, bottom):
            dy = y + 0.5 - y0
            low, high = _inside(b_x, b_y * dy, -math.inf, math.inf)
            low, high = _inside(c_x, c_y * dy, low, high)
            low, high = _inside(-b_x - c_x, 1 - (b_y + c_y) * dy, low, high)
            first, end = max(math.ceil(low + x0 - 0.5), 0), min(math.floor(high + x0 - 0.5) + 1, size)
            start, slope = w0 + (b_y * w1 + c_y * w2) * dy + (b_x * w1 + c_x * w2) * (0.5 - x0), b_x * w1 + c_x * w2
            for x in range(first, end):
                image[y, x] = max(image[y, x], np.float32(start + slope * x))
    for y in range(size):
        for x in range(size):
            image[y, x] = np.float32(1) / image[y, x] if image[y, x] > 0 else np.float32(0)


@compiled()
def _inside(slope, value, low, high):  # type: ignore[no-untyped-def]
    """The part of a range of dx in which ``slope dx + value >= -1e-6``."""
    if slope > 0:
        return max(low, (-1e-6 - value) / slope), high
    if slope < 0:
        return low, min(high, (-1e-6 - value) / slope)
    return (low, high) if value >= -1e-6 else (1.0, -1.0)


@compiled()
def join_depth(depth, mesh, labels, is_head):  # type: ignore[no-untyped-def]
    """Put the mesh's depth where there is one, and 0 outside the head.

    Args:
        depth: s x s, float32, changed.
        mesh: s x s, float32, 0 where there is no mesh.
        labels: s x s.
        is_head: 256, whether a label is a part of the head.
    """
    for row in range(depth.shape[0]):
        for column in range(depth.shape[1]):
            value = mesh[row, column] if mesh[row, column] > 0 else depth[row, column]
            depth[row, column] = value if is_head[labels[row, column]] else np.float32(0)


@compiled()
def upper_head(head, rays, origin, radii):  # type: ignore[no-untyped-def]
    """Where the rays of head pixels pass an ellipsoid's centre most closely: |x| and y (n each), in its radii, above y = -0.4.

    Args:
        head: s x s.
        rays: 3 x 3: a pixel (x, y, 1) times it is the direction, in the ellipsoid's axes.
        origin: 3, of all rays, from the ellipsoid's centre.
        radii: 3.
    """
    size = head.shape[0]
    wide, high = np.empty(head.size), np.empty(head.size)
    count = 0
    for row in range(size):
        for column in range(size):
            if head[row, column]:
                x, y = column + 0.5, row + 0.5
                dx = x * rays[0, 0] + y * rays[1, 0] + rays[2, 0]
                dy = x * rays[0, 1] + y * rays[1, 1] + rays[2, 1]
                dz = x * rays[0, 2] + y * rays[1, 2] + rays[2, 2]
                along = -(dx * origin[0] + dy * origin[1] + dz * origin[2]) / (dx * dx + dy * dy + dz * dz)
                up = (origin[1] + along * dy) / radii[1]
                if up > -0.4:
                    wide[count], high[count] = abs((origin[0] + along * dx) / radii[0]), up
                    count += 1
    return wide[:count], high[:count]


@compiled()
def head_depth(result, rays, skull, neck, start_skull, start_neck, origin_y, lowest, near, far):  # type: ignore[no-untyped-def]
    """Ray parameter at which each pixel's ray meets skull or neck first, or passes the skull most closely.

    Args:
        result: h x w, written.
        rays: 3 x 3, as for :func:`upper_head`, in canonical axes.
        skull: 3, inverse radii.
        neck: 3, inverse radii, 0 along its axis.
        start_skull: 3, the rays' origin from the skull's centre, in its radii.
        start_neck: 3, likewise.
        origin_y: height of the rays' origin, cm.
        lowest: height below which the neck counts, cm.
        near: least depth of the skull, cm.
        far: greatest depth of the skull, cm.
    """
    skull_rest = start_skull[0] ** 2 + start_skull[1] ** 2 + start_skull[2] ** 2 - 1
    neck_rest = start_neck[0] ** 2 + start_neck[1] ** 2 + start_neck[2] ** 2 - 1
    for row in range(result.shape[0]):
        y = row + 0.5
        for column in range(result.shape[1]):
            x = column + 0.5
            dx = x * rays[0, 0] + y * rays[1, 0] + rays[2, 0]
            dy = x * rays[0, 1] + y * rays[1, 1] + rays[2, 1]
            dz = x * rays[0, 2] + y * rays[1, 2] + rays[2, 2]
            sx, sy, sz = dx * skull[0], dy * skull[1], dz * skull[2]
            inverse = 1 / max(sx * sx + sy * sy + sz * sz, 1e-9)
            middle = (sx * start_skull[0] + sy * start_skull[1] + sz * start_skull[2]) * inverse
            depth = -middle - math.sqrt(max(middle * middle - skull_rest * inverse, 0.0))
            depth = min(max(depth, near), far)
            nx, ny, nz = dx * neck[0], dy * neck[1], dz * neck[2]
            inverse = 1 / max(nx * nx + ny * ny + nz * nz, 1e-9)
            middle = (nx * start_neck[0] + ny * start_neck[1] + nz * start_neck[2]) * inverse
            room = middle * middle - neck_rest * inverse
            hit = -middle - math.sqrt(max(room, 0.0))
            below = room > 0 and origin_y + hit * dy < lowest
            result[row, column] = min(depth, hit) if below else depth


@compiled()
def fill_from_nearest(depth, wanted, reach):  # type: ignore[no-untyped-def]
    """Give unknown pixels the depth of the nearest known one.

    Args:
        depth: h x w, float32, changed; 0 where unknown.
        wanted: h x w: where a pixel is to be filled; a known one lies within ``reach`` rows and columns of each.
        reach: pixels.
    """
    height, width = depth.shape
    known, offset = depth > 0, np.empty((height, width), np.int32)  # rows down to the nearest known pixel of the column
    far = np.int32(height + reach)
    for row in range(height):
        for column in range(width):
            offset[row, column] = 0 if known[row, column] else (offset[row - 1, column] - 1 if row > 0 else -far)
    for row in range(height - 2, -1, -1):
        for column in range(width):
            below = offset[row + 1, column] + 1
            offset[row, column] = below if 0 <= below < -offset[row, column] else offset[row, column]
    for row in range(height):
        for column in range(width):
            if wanted[row, column] and not known[row, column]:
                least, value = 2 * reach * reach + 1, np.float32(0)
                for other in range(max(column - reach, 0), min(column + reach + 1, width)):
                    down = offset[row, other]
                    distance = (other - column) * (other - column) + down * down
                    if distance < least and abs(down) <= reach:
                        least, value = distance, depth[row + down, other]
                depth[row, column] = value


@compiled()
def surface_normals(result, depth, known, top, left, focal, centre_x, centre_y):  # type: ignore[no-untyped-def]
    """Unit normals of back-projected depth by central differences, one-sided at the border of the array.

    With x and y in pixels from the principal point, f the focal length and z_x, z_y the slopes, a surface of depth z has the normal
    (f z_x, f z_y, -(z + x z_x + y z_y)), which faces the camera.

    Args:
        result: h x w x 3, float32, written; 0 where not ``known``.
        depth: h x w, float32, cm; known everywhere around ``known``.
        known: h x w, where a normal is wanted.
        top: row of the crop that the first row is.
        left: likewise its column.
        focal: pixels.
        centre_x: of the principal point, pixels.
        centre_y: likewise.
    """
    height, width = depth.shape
    parts = np.empty((3, width), np.float32)
    slopes = np.empty(width, np.float32)
    for row in range(height):
        up, down = max(row - 1, 0), min(row + 1, height - 1)
        x, y = np.float32(left + 0.5 - centre_x), np.float32(row + top + 0.5 - centre_y)
        slopes[1:-1] = (depth[row, 2:] - depth[row, :-2]) * np.float32(0.5)
        slopes[0], slopes[-1] = depth[row, min(1, width - 1)] - depth[row, 0], depth[row, -1] - depth[row, max(width - 2, 0)]
        share = np.float32(1 / max(down - up, 1))
        _normals_row(parts, slopes, depth[up], depth[row], depth[down], known[row], share, x, y, np.float32(focal))
        for column in range(width):
            result[row, column, 0], result[row, column, 1], result[row, column, 2] = parts[0, column], parts[1, column], parts[2, column]


@compiled(fastmath=True)
def _normals_row(parts, slopes, above, depth, below, known, share, x_0, y, focal):  # type: ignore[no-untyped-def]
    """One row of :func:`surface_normals`, one component after the other."""
    first, second, third = parts[0], parts[1], parts[2]
    for i in range(len(depth)):
        across, along, x = slopes[i], (below[i] - above[i]) * share, x_0 + np.float32(i)
        nx, ny, nz = focal * across, focal * along, -(depth[i] + x * across + y * along)
        scale = np.float32(known[i]) / math.sqrt(max(nx * nx + ny * ny + nz * nz, np.float32(1e-12)))
        first[i], second[i], third[i] = nx * scale, ny * scale, nz * scale
