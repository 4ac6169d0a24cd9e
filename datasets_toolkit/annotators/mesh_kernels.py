"""Compiled loops over the pixels of a crop, for depth from a face mesh and for normals from depth. Plain arrays in, plain arrays out."""

from __future__ import annotations

import math

import numpy as np

from datasets_toolkit.compiling import compiled


@compiled()
def nearest_depth(image, points, inverse_depth, triangles):  # type: ignore[no-untyped-def]
    """Write triangles into an image wherever they are nearer than what is there; 1/z is linear in the image of a plane.

    Args:
        image: s x s, float32, cm, 0 where nothing is.
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
        left = max(math.floor(min(x0, points[j, 0], points[k, 0]) - 0.5), 0)
        right = min(math.ceil(max(x0, points[j, 0], points[k, 0]) + 0.5), size)
        top = max(math.floor(min(y0, points[j, 1], points[k, 1]) - 0.5), 0)
        bottom = min(math.ceil(max(y0, points[j, 1], points[k, 1]) + 0.5), size)
        w0, w1, w2 = inverse_depth[i], inverse_depth[j] - inverse_depth[i], inverse_depth[k] - inverse_depth[i]
        for y in range(top, bottom):
            dy = y + 0.5 - y0
            for x in range(left, right):
                dx = x + 0.5 - x0
                b, c = (dx * e11 - dy * e01) / area, (dy * e00 - dx * e10) / area
                if b >= -1e-6 and c >= -1e-6 and b + c <= 1 + 1e-6:
                    depth = 1 / (w0 + b * w1 + c * w2)
                    if image[y, x] == 0 or depth < image[y, x]:
                        image[y, x] = depth


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
def head_depth(result, top, left, rays, skull, neck, start_skull, start_neck, origin_y, lowest, near, far):  # type: ignore[no-untyped-def]
    """Ray parameter at which each pixel's ray meets skull or neck first, or passes the skull most closely.

    Args:
        result: h x w, written: the part of the crop whose first pixel is (``left``, ``top``).
        top: see above.
        left: see above.
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
        y = row + top + 0.5
        for column in range(result.shape[1]):
            x = column + left + 0.5
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
def surface_normals(result, depth, known, top, left, focal, centre_x, centre_y):  # type: ignore[no-untyped-def]
    """Unit normals of back-projected depth by central differences, one-sided at the border of the array.

    Args:
        result: h x w x 3, float32, written where ``known``.
        depth: h x w, float32, cm; known everywhere.
        known: h x w, where a normal is wanted.
        top: row of the crop that the first row is.
        left: likewise its column.
        focal: pixels.
        centre_x: of the principal point, pixels.
        centre_y: likewise.
    """
    height, width = depth.shape
    for row in range(height):
        up, down = max(row - 1, 0), min(row + 1, height - 1)
        v = (row + top + 0.5 - centre_y) / focal
        v_up, v_down = (up + top + 0.5 - centre_y) / focal, (down + top + 0.5 - centre_y) / focal
        for column in range(width):
            if not known[row, column]:
                continue
            before, after = max(column - 1, 0), min(column + 1, width - 1)
            u = (column + left + 0.5 - centre_x) / focal
            u_before, u_after = (before + left + 0.5 - centre_x) / focal, (after + left + 0.5 - centre_x) / focal
            a, b = np.float64(depth[row, before]), np.float64(depth[row, after])
            c, d = np.float64(depth[up, column]), np.float64(depth[down, column])
            rx, rz = u_after * b - u_before * a, b - a
            ry = v * rz
            dy, dz = v_down * d - v_up * c, d - c
            dx = u * dz
            nx, ny, nz = dy * rz - dz * ry, dz * rx - dx * rz, dx * ry - dy * rx  # down x right points at the camera
            scale = 1 / max(math.sqrt(nx * nx + ny * ny + nz * nz), 1e-12)
            result[row, column, 0], result[row, column, 1], result[row, column, 2] = nx * scale, ny * scale, nz * scale
