"""Colours of points under an expression and a pose: those of the source where lids close and where light falls otherwise."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.compiling import compiled
from mggtalk.geometry.lids import DRAWN, TAUT, Lids, drawn
from mggtalk.geometry.light import shaded
from mggtalk.modules.children import BLOCK, exponentials
from mggtalk.streaming import can_stream, run
from mggtalk.types import PointCloud

_ZERO, _ONE, _TINY, _TAUT, _RANGE = (np.float32(value) for value in (0, 1, 1e-8, TAUT, DRAWN - TAUT))


def colours(
    cloud: PointCloud, lids: Lids, tangents: Float[Tensor, "b n 2 3"], change: Float[Tensor, "b 2 v 3"] | None, visible: int
) -> tuple[Float[Tensor, "b n 3"], Float[Tensor, "b n k 3"]]:
    """Colours of points, and at the places of their children; by compiled loops where nobody asks for gradients.

    Args:
        cloud: with the colours of the source.
        lids: of the cloud.
        tangents: under the expression of the target.
        change: of the light, from :meth:`mggtalk.geometry.light.FaceLight.change`; None where light changes nothing.
        visible: how many of the points, the first, are seen in the source; the others are mirrored.
    """
    if can_stream(cloud.colour, cloud.child_colour, tangents):
        made = tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (cloud.colour, cloud.child_colour))
        fields = tangents.new_zeros(len(tangents), 2, 0, 3) if change is None else change
        given = (cloud.colour, cloud.child_colour, cloud.anchors, cloud.weights, fields, *lids, cloud.tangents, tangents)
        run(_colour, given, made, visible)
        return made[0], made[1]
    lid = drawn(lids, cloud.tangents, tangents)
    colour, children = torch.lerp(cloud.colour, lids.colour, lid), torch.lerp(cloud.child_colour, lids.colour[..., None, :], lid[..., None])
    if change is None:
        return colour, children
    light = shaded(change, cloud, visible)
    return colour * light, children * light[..., None, :]


@compiled()
def _colour(first, last, given, made, visible):  # type: ignore[no-untyped-def]
    """:func:`colours` for the points from ``first`` to ``last`` (not included)."""
    colour, children, anchors, weights, fields, lid_share, lid_colour, before, after = given
    light = np.zeros(3 * BLOCK, np.float32)
    for start in range(first, last, BLOCK):
        end = min(start + BLOCK, last)
        if fields.shape[1]:
            for i in range(start, end):
                field, at = fields[0 if i < visible else 1], 3 * (i - start)
                one, two, three = field[anchors[i, 0]], field[anchors[i, 1]], field[anchors[i, 2]]
                for axis in range(3):
                    light[at + axis] = one[axis] * weights[i, 0] + two[axis] * weights[i, 1] + three[axis] * weights[i, 2]
        else:
            light[:] = _ZERO
        exponentials(light, 3 * (end - start))
        for i in range(start, end):
            lid, at = _ZERO, 3 * (i - start)
            if lid_share[i] > _ZERO:
                stretch = math.sqrt(max(_stretch(before[i, 0], after[i, 0]), _stretch(before[i, 1], after[i, 1]), _TINY))
                lid = lid_share[i] * min(max((stretch - _TAUT) / _RANGE, _ZERO), _ONE)
            for axis in range(3):
                shade, bright = lid_colour[i, axis], light[at + axis]
                made[0][i, axis] = (colour[i, axis] + lid * (shade - colour[i, axis])) * bright
                for k in range(children.shape[1]):
                    made[1][i, k, axis] = (children[i, k, axis] + lid * (shade - children[i, k, axis])) * bright


@compiled()
def _stretch(before, after):  # type: ignore[no-untyped-def]
    """As :func:`mggtalk.geometry.neck.squared_stretch`, of one side of a footprint."""
    new = after[0] * after[0] + after[1] * after[1] + after[2] * after[2]
    return new / max(before[0] * before[0] + before[1] * before[1] + before[2] * before[2], _TINY)
