"""Compiled loops of the densification on a CPU: every child of a Gaussian in one pass, and the gradients of all it is made of.

They say what ``Densifier.moved`` and ``corrected`` (:mod:`mggtalk.modules.gaussians`) say, and are tested against them. Plain arrays in
and out, float32, one row for each parent. Letters: o offset, r rotation, l logit of a child's correction; u0, u1, n the unit tangents and
their normal; w the opacity that the source shows, z the logit of it with the parent's correction.
"""

from __future__ import annotations

import math

import numpy as np

from datasets_toolkit.compiling import compiled

NUMBERS = 13
"""Of a child's correction: offset 3, colour 3, log scale 3, rotation 3, logit 1."""
HALF, ONE, TWO, FOUR = np.float32(0.5), np.float32(1), np.float32(2), np.float32(4)
CLEAR, FULL = np.float32(1e-4), np.float32(1 - 1e-4)
SHORT = np.float32(1e-8)
LEAST, MOST = np.float32(math.log(1e-4 / (1 - 1e-4))), np.float32(math.log((1 - 1e-4) / 1e-4))


@compiled()
def logit(x):  # type: ignore[no-untyped-def]
    """As ``torch.logit(x, 1e-4)``."""
    x = min(max(x, CLEAR), FULL)
    return math.log(x / (ONE - x))


@compiled()
def sigmoid(x):  # type: ignore[no-untyped-def]
    """As ``torch.sigmoid``."""
    return ONE / (ONE + math.exp(-x))


@compiled()
def tanh(x):  # type: ignore[no-untyped-def]
    """As ``torch.tanh``, to 1e-7 absolute."""
    return ONE - TWO / (math.exp(TWO * x) + ONE)


@compiled()
def directions(t):  # type: ignore[no-untyped-def]
    """Lengths of two tangents, the unit tangents and their cross product."""
    a = math.sqrt(t[0, 0] * t[0, 0] + t[0, 1] * t[0, 1] + t[0, 2] * t[0, 2])
    b = math.sqrt(t[1, 0] * t[1, 0] + t[1, 1] * t[1, 1] + t[1, 2] * t[1, 2])
    i, j = ONE / max(a, SHORT), ONE / max(b, SHORT)
    u = (t[0, 0] * i, t[0, 1] * i, t[0, 2] * i)
    v = (t[1, 0] * j, t[1, 1] * j, t[1, 2] * j)
    return a, b, u, v, cross(u, v)


@compiled()
def cross(a, b):  # type: ignore[no-untyped-def]
    """Cross product of two triples."""
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


@compiled()
def product(a, b):  # type: ignore[no-untyped-def]
    """Hamilton product of two quaternions w x y z."""
    return (
        a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3],
        a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2],
        a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1],
        a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0],
    )


@compiled()
def turned(raw):  # type: ignore[no-untyped-def]
    """The unit quaternion of a rotation (three numbers), and the length that it was divided by."""
    x, y, z = HALF * raw[0], HALF * raw[1], HALF * raw[2]
    length = math.sqrt(ONE + x * x + y * y + z * z)
    return (ONE / length, x / length, y / length, z / length), length


@compiled()
def opacity_of(shown, shift, correction):  # type: ignore[no-untyped-def]
    """A child's opacity: what the source shows, with the parent's correction of the logit and then its own."""
    if shown <= CLEAR:
        return shown
    z = logit(shown) + shift
    w = sigmoid(z)
    return sigmoid(min(max(z, LEAST), MOST) + correction) if w > CLEAR else w


@compiled()
def opacity_gradients(shown, shift, correction, change):  # type: ignore[no-untyped-def]
    """Gradients of :func:`opacity_of` to its arguments, given the one to its result."""
    zero = np.float32(0)
    if shown <= CLEAR:
        return change, zero, zero
    z = logit(shown) + shift
    w = sigmoid(z)
    of_correction = zero
    if w > CLEAR:
        final = sigmoid(min(max(z, LEAST), MOST) + correction)
        of_correction = change * final * (ONE - final)
        of_shift = of_correction if w <= FULL else zero
    else:
        of_shift = change * w * (ONE - w)
    return (of_shift / (shown * (ONE - shown)) if shown <= FULL else zero), of_shift, of_correction


@compiled()
def unit_gradients(gradient, unit, length, tangent, change):  # type: ignore[no-untyped-def]
    """Gradient to a tangent, given those to its unit vector and to its length (``change``)."""
    dot = unit[0] * gradient[0] + unit[1] * gradient[1] + unit[2] * gradient[2] if length > SHORT else np.float32(0)
    i, j = ONE / max(length, SHORT), change / length if length > np.float32(0) else np.float32(0)
    return (
        (gradient[0] - unit[0] * dot) * i + tangent[0] * j,
        (gradient[1] - unit[1] * dot) * i + tangent[1] * j,
        (gradient[2] - unit[2] * dot) * i + tangent[2] * j,
    )


@compiled()
def make_children(first, last, numbers, given, made):  # type: ignore[no-untyped-def]
    """Children of the parents from ``first`` to ``last``.

    Args:
        first: parent.
        last: parent, not included.
        numbers: steps (k x 2) of the children; largest offset, largest opacity and share of the parent's scale (3).
        given: corrections (n x k x 13); parents' means, quaternions, scales, opacities, features; base opacities and features; tangents
            (n x 2 x 3); colours (n x k x 3) and opacities (n x k) that the source shows.
        made: means, quaternions, scales, opacities and features of the children (n x k x ...), written.
    """
    steps, limits = numbers
    means, quaternions, scales, opacities, features = made
    raw, mean, quaternion, scale, opacity, feature, base_opacity, base_feature, tangents, colour, shown = given
    limit, opaque, share = limits[0], limits[1], limits[2]
    for i in range(first, last):
        t = tangents[i]
        a, b, _, _, n = directions(t)
        size = HALF * (a + b)
        shift = logit(opacity[i]) - logit(base_opacity[i])
        own = (quaternion[i, 0], quaternion[i, 1], quaternion[i, 2], quaternion[i, 3])
        for k in range(raw.shape[1]):
            c = raw[i, k]
            right, down = steps[k, 0] + limit * tanh(c[0]), steps[k, 1] + limit * tanh(c[1])
            out = size * limit * tanh(c[2])
            for axis in range(3):
                means[i, k, axis] = mean[i, axis] + right * t[0, axis] + down * t[1, axis] + out * n[axis]
                features[i, k, axis] = colour[i, k, axis] + (feature[i, axis] - base_feature[i, axis]) + c[3 + axis]
                scales[i, k, axis] = scale[i, axis] * share * math.exp(min(max(c[6 + axis], -FOUR), TWO))
            q = product(own, turned(c[9:12])[0])
            quaternions[i, k, 0], quaternions[i, k, 1], quaternions[i, k, 2], quaternions[i, k, 3] = q[0], q[1], q[2], q[3]
            opacities[i, k] = opacity_of(min(shown[i, k], opaque), shift, c[12])


@compiled()
def make_gradients(first, last, numbers, given, of_children, gradients):  # type: ignore[no-untyped-def]
    """Gradients of all that is given, for the parents from ``first`` to ``last``.

    Args:
        first: parent.
        last: parent, not included.
        numbers: as :func:`make_children`.
        given: likewise.
        of_children: gradients of means, quaternions, scales, opacities and features of the children.
        gradients: of ``given``, written.
    """
    steps, limits = numbers
    raw, _, quaternion, scale, opacity, _, base_opacity, _, tangents, _, shown = given
    g_mean, g_quaternion, g_scale, g_opacity, g_feature = of_children
    d_raw, d_mean, d_quaternion, d_scale, d_opacity, d_feature, d_base_opacity, d_base_feature, d_tangents, d_colour, d_shown = gradients
    limit, opaque, share = limits[0], limits[1], limits[2]
    zero = np.float32(0)
    for i in range(first, last):
        t = tangents[i]
        a, b, u, v, n = directions(t)
        size = HALF * (a + b)
        shift = logit(opacity[i]) - logit(base_opacity[i])
        own = (quaternion[i, 0], quaternion[i, 1], quaternion[i, 2], quaternion[i, 3])
        back = (own[0], -own[1], -own[2], -own[3])
        d_shift, d_size = zero, zero
        dq0, dq1, dq2, dq3 = zero, zero, zero, zero
        dn0, dn1, dn2 = zero, zero, zero
        for axis in range(3):
            d_mean[i, axis], d_feature[i, axis], d_scale[i, axis] = zero, zero, zero
            d_tangents[i, 0, axis], d_tangents[i, 1, axis] = zero, zero
        for k in range(raw.shape[1]):
            c, d, g = raw[i, k], d_raw[i, k], g_mean[i, k]
            t0, t1, t2 = tanh(c[0]), tanh(c[1]), tanh(c[2])
            right, down, out = steps[k, 0] + limit * t0, steps[k, 1] + limit * t1, limit * t2
            along = g[0] * n[0] + g[1] * n[1] + g[2] * n[2]
            d[0] = (g[0] * t[0, 0] + g[1] * t[0, 1] + g[2] * t[0, 2]) * limit * (ONE - t0 * t0)
            d[1] = (g[0] * t[1, 0] + g[1] * t[1, 1] + g[2] * t[1, 2]) * limit * (ONE - t1 * t1)
            d[2] = along * size * limit * (ONE - t2 * t2)
            d_size += out * along
            dn0, dn1, dn2 = dn0 + out * size * g[0], dn1 + out * size * g[1], dn2 + out * size * g[2]
            for axis in range(3):
                d_mean[i, axis] += g[axis]
                d_tangents[i, 0, axis] += right * g[axis]
                d_tangents[i, 1, axis] += down * g[axis]
                d[3 + axis] = g_feature[i, k, axis]
                d_feature[i, axis] += g_feature[i, k, axis]
                d_colour[i, k, axis] = g_feature[i, k, axis]
                stretch = c[6 + axis]
                change = share * math.exp(min(max(stretch, -FOUR), TWO)) * g_scale[i, k, axis]
                d_scale[i, axis] += change
                d[6 + axis] = change * scale[i, axis] if -FOUR <= stretch <= TWO else zero
            h, length = turned(c[9:12])
            gq = (g_quaternion[i, k, 0], g_quaternion[i, k, 1], g_quaternion[i, k, 2], g_quaternion[i, k, 3])
            gp = product(gq, (h[0], -h[1], -h[2], -h[3]))
            dq0, dq1, dq2, dq3 = dq0 + gp[0], dq1 + gp[1], dq2 + gp[2], dq3 + gp[3]
            gh = product(back, gq)
            dot = h[0] * gh[0] + h[1] * gh[1] + h[2] * gh[2] + h[3] * gh[3]
            for axis in range(3):
                d[9 + axis] = HALF * (gh[1 + axis] - h[1 + axis] * dot) / length
            of_shown, of_shift, d[12] = opacity_gradients(min(shown[i, k], opaque), shift, c[12], g_opacity[i, k])
            d_shift += of_shift
            d_shown[i, k] = of_shown if shown[i, k] <= opaque else zero
        d_quaternion[i, 0], d_quaternion[i, 1], d_quaternion[i, 2], d_quaternion[i, 3] = dq0, dq1, dq2, dq3
        x, y = opacity[i], base_opacity[i]
        d_opacity[i] = d_shift / (x * (ONE - x)) if CLEAR <= x <= FULL else zero
        d_base_opacity[i] = -d_shift / (y * (ONE - y)) if CLEAR <= y <= FULL else zero
        dn = (dn0, dn1, dn2)
        of_right = unit_gradients(cross(v, dn), u, a, t[0], HALF * d_size)
        of_down = unit_gradients(cross(dn, u), v, b, t[1], HALF * d_size)
        for axis in range(3):
            d_base_feature[i, axis] = -d_feature[i, axis]
            d_tangents[i, 0, axis] += of_right[axis]
            d_tangents[i, 1, axis] += of_down[axis]
