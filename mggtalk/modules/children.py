"""Gaussians by compiled loops, on a CPU: the fast twins of what :mod:`mggtalk.modules.gaussians` says in tensors.

Children come with gradients; bases, corrected Gaussians and, faster, children without, for streams of frames.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from datasets_toolkit.compiling import compiled
from mggtalk.modules.children_kernels import CLEAR, FOUR, FULL, HALF, ONE, SHORT, TWO, cross, make_children, make_gradients, product
from mggtalk.streaming import can_stream, in_parts, run
from mggtalk.types import Gaussians

BLOCK = 64
"""Rows whose exponentials are taken together, where vectors are full."""
LIMIT, LOG2_E, TO_WHOLE = np.float32(87), np.float32(math.log2(math.e)), np.float32(1.5 * 2.0**23)
LN_2, LN_2_REST = np.float32(355 / 512), np.float32(math.log(2) - 355 / 512)  # the first with few enough bits that its multiples are exact
S3, S4, S5, S6, S7 = (np.float32(1 / math.factorial(power)) for power in range(3, 8))


def children(
    raw: Float[Tensor, "b n k 13"],
    parents: Gaussians,
    base: Gaussians,
    tangents: Float[Tensor, "b n 2 3"],
    colour: Float[Tensor, "b n k 3"],
    opacity: Float[Tensor, "b n k"],
    steps: Float[Tensor, "k 2"],
    limits: tuple[float, float, float],
) -> Gaussians:
    """All children, ``n k`` of them, differentiable once; arguments as ``Densifier.moved``.

    Args:
        raw: corrections: offset 3, colour 3, log scale 3, rotation 3, logit 1.
        parents: decoded Gaussians.
        base: before the decoder corrected them.
        tangents: of the parents.
        colour: that the source shows at the children's places.
        opacity: likewise.
        steps: of the children, in tangents.
        limits: largest offset in steps, largest opacity, scale of a child in units of its parent's.
    """
    own = (parents.means, parents.quaternions, parents.scales, parents.opacities, parents.features, base.opacities, base.features)
    given = (raw, *own, tangents, colour, opacity)
    make = _children if can_stream(*given) else _Children.apply
    means, quaternions, scales, opacities, features = make(steps, limits, *given)
    shown = (opacity > 1 / 255) & parents.mask[..., None]
    return Gaussians(
        means=means.flatten(1, 2),
        quaternions=quaternions.flatten(1, 2),
        scales=scales.flatten(1, 2),
        opacities=opacities.flatten(1, 2),
        features=features.flatten(1, 2),
        mask=shown.flatten(1, 2),
    )


class _Children(torch.autograd.Function):
    """:func:`make_children` and :func:`make_gradients`."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, limits: tuple[float, float, float], *given: Tensor) -> tuple[Tensor, ...]:
        """Means, quaternions, scales, opacities and features (b n k ...)."""
        given = tuple(tensor.contiguous() for tensor in given)
        ctx.save_for_backward(steps, *given)
        ctx.limits = limits
        children = given[0].shape[:3]
        made = tuple(given[0].new_empty(*children, *size) for size in ((3,), (4,), (3,), (), (3,)))
        in_parts(make_children, len(given[0].flatten(0, 1)), _numbers(steps, limits), _arrays(given), _arrays(made))
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_children: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all tensors but the steps."""
        steps, *given = ctx.saved_tensors
        gradients = tuple(torch.empty_like(tensor) for tensor in given)
        arrays = _arrays(tuple(given)), _arrays(tuple(tensor.contiguous() for tensor in of_children)), _arrays(gradients)
        in_parts(make_gradients, len(given[0].flatten(0, 1)), _numbers(steps, ctx.limits), *arrays)
        return None, None, *gradients


def _children(steps: Tensor, limits: tuple[float, float, float], *given: Tensor) -> tuple[Tensor, ...]:
    """As :class:`_Children`, faster and without gradients."""
    made = tuple(given[0].new_empty(*given[0].shape[:3], *size) for size in ((3,), (4,), (3,), (), (3,)))
    run(_stream_children, given, made, _numbers(steps, limits))
    return made


def corrections(base: Gaussians, correction: Float[Tensor, "b n 10"]) -> Gaussians:
    """As :func:`mggtalk.modules.gaussians.corrected`, without gradients."""
    given = (base.quaternions, base.scales, base.opacities, base.features)
    made = tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in given)
    run(_correct, (*given, correction), made)
    quaternions, scales, opacities, features = made
    return Gaussians(means=base.means, quaternions=quaternions, scales=scales, opacities=opacities, features=features, mask=base.mask)


def _numbers(steps: Tensor, limits: tuple[float, float, float]) -> tuple[Any, Any]:
    return steps.numpy(), np.array(limits, np.float32)


def _arrays(tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Views with one row for each parent."""
    return tuple(tensor.detach().flatten(0, 1).numpy() for tensor in tensors)


@compiled()
def exponentials(values, count):  # type: ignore[no-untyped-def]
    """``e^x`` of the first ``count`` values, in place, within 2e-7 of itself; x is clamped to +- 87.

    A loop that compilers turn into vectors: ``2^n e^r`` with ``|r| <= ln 2 / 2``, by the series of e^r to its eighth term.
    """
    for i in range(count):
        x = values[i]
        x = LIMIT if x > LIMIT else x  # NaN stays NaN
        x = -LIMIT if x < -LIMIT else x
        shifted = x * LOG2_E + TO_WHOLE
        whole = shifted - TO_WHOLE
        r = (x - whole * LN_2) - whole * LN_2_REST
        series = ((((r * S7 + S6) * r + S5) * r + S4) * r + S3) * r + HALF
        series = (series * r + ONE) * r + ONE
        power = np.int32((np.float32(shifted).view(np.int32) + np.int32(127)) << np.int32(23))
        values[i] = series * power.view(np.float32)


@compiled()
def odds(x):  # type: ignore[no-untyped-def]
    """``exp(-logit(x))``, of an opacity that is clamped as logits are."""
    x = min(max(x, CLEAR), FULL)
    return (ONE - x) / x


@compiled()
def _correct(first, last, given, made):  # type: ignore[no-untyped-def]
    """:func:`corrections` for the points from ``first`` to ``last`` (not included)."""
    quaternions, scales, opacities, features, correction = given
    powers = np.empty(4 * BLOCK, np.float32)
    for start in range(first, last, BLOCK):
        end = min(start + BLOCK, last)
        for i in range(start, end):
            c, at = correction[i], 4 * (i - start)
            for axis in range(3):
                powers[at + axis] = min(max(c[3 + axis], -FOUR), TWO)
            powers[at + 3] = -c[9]
        exponentials(powers, 4 * (end - start))
        for i in range(start, end):
            c, q, at = correction[i], quaternions[i], 4 * (i - start)
            for axis in range(3):
                made[1][i, axis] = scales[i, axis] * powers[at + axis]
                made[3][i, axis] = features[i, axis] + c[axis]
            turn = product((q[0], q[1], q[2], q[3]), turning(c[6], c[7], c[8]))
            made[0][i, 0], made[0][i, 1], made[0][i, 2], made[0][i, 3] = turn[0], turn[1], turn[2], turn[3]
            made[2][i] = ONE / (ONE + odds(opacities[i]) * powers[at + 3]) if opacities[i] > CLEAR else opacities[i]


@compiled()
def turning(x, y, z):  # type: ignore[no-untyped-def]
    """The unit quaternion along (1, x / 2, y / 2, z / 2)."""
    x, y, z = HALF * x, HALF * y, HALF * z
    share = ONE / math.sqrt(ONE + x * x + y * y + z * z)
    return share, x * share, y * share, z * share


@compiled()
def _stream_children(first, last, given, made, numbers):  # type: ignore[no-untyped-def]
    """As :func:`make_children`: logarithms cancel, and exponentials are taken together."""
    raw, mean, quaternion, scale, opacity, feature, base_opacity, base_feature, tangents, colour, shown = given
    means, quaternions, scales, opacities, features = made
    (steps, limits), count = numbers, raw.shape[1]
    limit, opaque, share = limits[0], limits[1], limits[2]
    powers = np.empty(7 * count * BLOCK, np.float32)
    for start in range(first, last, BLOCK):
        end, at = min(start + BLOCK, last), 0
        for i in range(start, end):
            for k in range(count):
                c = raw[i, k]
                for axis in range(3):
                    powers[at + axis] = TWO * c[axis]
                    powers[at + 3 + axis] = min(max(c[6 + axis], -FOUR), TWO)
                powers[at + 6] = -c[12]
                at += 7
        exponentials(powers, at)
        at = 0
        for i in range(start, end):
            t, q = tangents[i], (quaternion[i, 0], quaternion[i, 1], quaternion[i, 2], quaternion[i, 3])
            a = math.sqrt(t[0, 0] * t[0, 0] + t[0, 1] * t[0, 1] + t[0, 2] * t[0, 2])
            b = math.sqrt(t[1, 0] * t[1, 0] + t[1, 1] * t[1, 1] + t[1, 2] * t[1, 2])
            n = cross((t[0, 0], t[0, 1], t[0, 2]), (t[1, 0], t[1, 1], t[1, 2]))
            out = limit * HALF * (a + b) / (max(a, SHORT) * max(b, SHORT))
            own = odds(opacity[i]) / odds(base_opacity[i])
            for k in range(count):
                c = raw[i, k]
                right = steps[k, 0] + limit * (ONE - TWO / (powers[at] + ONE))
                down = steps[k, 1] + limit * (ONE - TWO / (powers[at + 1] + ONE))
                up = out * (ONE - TWO / (powers[at + 2] + ONE))
                for axis in range(3):
                    means[i, k, axis] = mean[i, axis] + right * t[0, axis] + down * t[1, axis] + up * n[axis]
                    features[i, k, axis] = colour[i, k, axis] + (feature[i, axis] - base_feature[i, axis]) + c[3 + axis]
                    scales[i, k, axis] = scale[i, axis] * share * powers[at + 3 + axis]
                turn = product(q, turning(c[9], c[10], c[11]))
                quaternions[i, k, 0], quaternions[i, k, 1], quaternions[i, k, 2], quaternions[i, k, 3] = turn
                opacities[i, k] = stream_opacity(min(shown[i, k], opaque), own, powers[at + 6])
                at += 7


@compiled()
def stream_opacity(shown, own, correction):  # type: ignore[no-untyped-def]
    """As ``opacity_of``, of the exponentials of both corrections' negatives."""
    if shown <= CLEAR:
        return shown
    faint = odds(shown) * own
    opacity = ONE / (ONE + faint)
    return ONE / (ONE + min(max(faint, odds(FULL)), odds(CLEAR)) * correction) if opacity > CLEAR else opacity
