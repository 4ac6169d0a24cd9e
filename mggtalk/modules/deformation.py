"""Deformation: expressions move points. Head pose has no part in it; it enters through the camera."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from datasets_toolkit.compiling import compiled
from mggtalk.geometry.face_model import FaceModel
from mggtalk.geometry.neck import TORN
from mggtalk.modules.layers import MLP, fourier, fourier_size
from mggtalk.streaming import can_stream, run
from mggtalk.types import PointCloud

STRETCH = 5.0
"""Largest change of a footprint in units of its size: in slivers of triangles the derivative says nothing of the surface."""
_LARGEST, _ONE, _FLAT, _SHORT, _TINY = np.float32(STRETCH), np.float32(1), np.float32(1e-4), np.float32(1e-6), np.float32(1e-8)


class Deformed(NamedTuple):
    """Positions (cm) and tangents (cm a grid step) of points under another expression."""

    positions: Float[Tensor, "b n 3"]
    tangents: Float[Tensor, "b n 2 3"]


class Still(NamedTuple):
    """What the network says of points whatever moves them: what it sees of their places, and its correction (cm) of the source."""

    places: Float[Tensor, "b n w"]
    correction: Float[Tensor, "b n 3"]


def skin(cloud: PointCloud, displacement: Float[Tensor, "b v 3"]) -> Deformed:
    """The base: points follow the vertices they are bound to, their tangents follow the derivative of the binding.

    Args:
        cloud: canonical head space.
        displacement: of every mesh vertex, cm.
    """
    index = cloud.anchors.flatten(-2)[..., None].expand(-1, -1, 3)
    moved = displacement.gather(-2, index).unflatten(-2, (-1, 3))  # b n 3 anchors 3
    positions = cloud.positions + (cloud.weights[..., None] * moved).sum(-2)
    change = cloud.weight_steps @ moved
    largest = STRETCH * cloud.tangents.norm(dim=-1, keepdim=True)
    change = change * (largest / change.norm(dim=-1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
    return Deformed(positions, cloud.tangents + change)


def carried(cloud: PointCloud, displacement: Float[Tensor, "b v 3"], correction: Float[Tensor, "b n 3"]) -> Deformed:
    """:func:`skin` with a correction (cm) of the positions that fades where the skin fades, by compiled loops without gradients."""
    given = (cloud.positions, cloud.tangents, cloud.weights, cloud.weight_steps, correction)
    made = Deformed(cloud.positions.new_empty(cloud.positions.shape), cloud.tangents.new_empty(cloud.tangents.shape))
    run(_carry, (*given, cloud.anchors, displacement), made)
    return made


@compiled()
def _carry(first, last, given, made):  # type: ignore[no-untyped-def]
    """:func:`carried` for the points from ``first`` to ``last`` (not included)."""
    positions, tangents, weights, weight_steps, correction, anchors, displacement = given
    for i in range(first, last):
        a, b, c = anchors[i, 0], anchors[i, 1], anchors[i, 2]
        u, v, w = weights[i, 0], weights[i, 1], weights[i, 2]
        for axis in range(3):
            x, y, z = displacement[a, axis], displacement[b, axis], displacement[c, axis]
            made[0][i, axis] = (positions[i, axis] + (u * x + v * y + w * z)) + (u + v + w) * correction[i, axis]
            for step in range(2):
                made[1][i, step, axis] = weight_steps[i, step, 0] * x + weight_steps[i, step, 1] * y + weight_steps[i, step, 2] * z
        for step in range(2):
            t, change = tangents[i, step], made[1][i, step]
            size = math.sqrt(t[0] * t[0] + t[1] * t[1] + t[2] * t[2])
            changed = math.sqrt(change[0] * change[0] + change[1] * change[1] + change[2] * change[2])
            share = min(_LARGEST * size / max(changed, _SHORT), _ONE)
            for axis in range(3):
                change[axis] = t[axis] + change[axis] * share


def laid(
    moved: Deformed, cloud: PointCloud, relative: Float[Tensor, "b 4 4"], shape: tuple[float, float]
) -> tuple[Deformed, Float[Tensor, "b n 4"], Float[Tensor, "b n 3"], Float[Tensor, "b n"]]:
    """Points as :func:`mggtalk.geometry.neck.bend` leaves them, by compiled loops.

    Returns:
        Points, rotations and scales of flat Gaussians there, and how much of their opacity they keep (``intact`` in that module).

    Args:
        moved: before they bend.
        cloud: says what follows the head.
        relative: takes points of the torso to canonical head space.
        shape: standard deviations along the surface in steps, and along the normal in units of the smaller of those.
    """
    given = (*moved, cloud.head_weight, cloud.head_weight_steps, relative)
    made = tuple(tensor.new_empty(tensor.shape) for tensor in moved)
    quaternions = made[0].new_empty(*made[0].shape[:2], 4)
    scales, kept = torch.empty_like(made[0]), made[0].new_empty(made[0].shape[:2])
    run(_lay, given, (*made, quaternions, scales, kept), np.array((*shape, TORN**2), np.float32))
    return Deformed(*made), quaternions, scales, kept


@compiled()
def _lay(first, last, given, made, shape):  # type: ignore[no-untyped-def]
    """:func:`laid` for the points from ``first`` to ``last`` (not included)."""
    positions, tangents, weights, steps, r = given
    means, stretched, quaternions, scales, kept = made
    for i in range(first, last):
        p, w, t, most = positions[i], weights[i], stretched[i], shape[2]
        for axis in range(3):
            resting = r[axis, 0] * p[0] + r[axis, 1] * p[1] + r[axis, 2] * p[2] + r[axis, 3]
            apart = p[axis] - resting
            means[i, axis] = resting + w * apart
            for step in range(2):
                own = tangents[i, step]
                turned = own[0] * r[axis, 0] + own[1] * r[axis, 1] + own[2] * r[axis, 2]
                t[step, axis] = own[axis] + (_ONE - w) * (turned - own[axis]) + steps[i, step] * apart
        for step in range(2):
            own, new = tangents[i, step], t[step]
            size = max(own[0] * own[0] + own[1] * own[1] + own[2] * own[2], _TINY)
            most = max(most, (new[0] * new[0] + new[1] * new[1] + new[2] * new[2]) / size)
        share = shape[2] / most
        kept[i] = share * share
        a = math.sqrt(t[0, 0] * t[0, 0] + t[0, 1] * t[0, 1] + t[0, 2] * t[0, 2])
        u = unit(t[0, 0], t[0, 1], t[0, 2], a)
        along = t[1, 0] * u[0] + t[1, 1] * u[1] + t[1, 2] * u[2]
        x, y, z = t[1, 0] - along * u[0], t[1, 1] - along * u[1], t[1, 2] - along * u[2]
        b = math.sqrt(x * x + y * y + z * z)
        q = quaternion(u, unit(x, y, z, b))
        quaternions[i, 0], quaternions[i, 1], quaternions[i, 2], quaternions[i, 3] = q
        scales[i, 0], scales[i, 1] = max(a, _FLAT) * shape[0], max(b, _FLAT) * shape[0]
        scales[i, 2] = shape[1] * min(scales[i, 0], scales[i, 1])


@compiled()
def unit(x, y, z, length):  # type: ignore[no-untyped-def]
    """A vector over its length."""
    length = max(length, _TINY)
    return x / length, y / length, z / length


@compiled()
def quaternion(u, v):  # type: ignore[no-untyped-def]
    """As ``matrix_to_quaternion``, of the rotation whose first columns are u and v."""
    n = (u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0])
    ww, xx = _ONE + u[0] + v[1] + n[2], _ONE + u[0] - v[1] - n[2]
    yy, zz = _ONE - u[0] + v[1] - n[2], _ONE - u[0] - v[1] + n[2]
    wx, wy, wz = v[2] - n[1], n[0] - u[2], u[1] - v[0]
    xy, xz, yz = v[0] + u[1], n[0] + u[2], n[1] + v[2]
    if ww >= xx and ww >= yy and ww >= zz:
        w, x, y, z = ww, wx, wy, wz
    elif xx >= yy and xx >= zz:
        w, x, y, z = wx, xx, xy, xz
    elif yy >= zz:
        w, x, y, z = wy, xy, yy, yz
    else:
        w, x, y, z = wz, xz, yz, zz
    length = math.sqrt(w * w + x * x + y * y + z * z)
    length = -length if w < np.float32(0) else length
    return w / length, x / length, y / length, z / length


class DeformationNetwork(nn.Module):
    """An MLP over position and expression that corrects the skinned base (paper, deformation network).

    The correction is the difference of what the network says of the driver's and of the source's expression, so that the same
    expression moves nothing, trained or not; and it fades where the base fades, away from the face.

    Args:
        face_model: the base.
        width: of the hidden layers.
        octaves: of the positional encoding.
        limit: largest correction of one expression, cm.
    """

    def __init__(self, face_model: FaceModel, width: int = 96, octaves: int = 4, limit: float = 1.0) -> None:
        super().__init__()
        self.face_model, self.octaves, self.limit = face_model, octaves, limit
        self.expression = nn.Linear(face_model.expression_size, 32)
        self.body = MLP((fourier_size(octaves), 32), width, 3)

    def forward(
        self,
        cloud: PointCloud,
        target: Float[Tensor, "b e"],
        source: Float[Tensor, "b e"],
        still: Still | None = None,
        displacement: Float[Tensor, "b v 3"] | None = None,
    ) -> Deformed:
        """The cloud of one expression under another.

        Args:
            cloud: canonical head space.
            target: expression that it is to have.
            source: expression that it has.
            still: may be kept from :meth:`still`.
            displacement: of the mesh's vertices from one to the other, cm, where it is known already.
        """
        if displacement is None:
            displacement = self.face_model.displacement(target - source)
        if can_stream(cloud.positions, displacement):
            return carried(cloud, displacement, self._change(cloud, target, source, still))
        base = skin(cloud, displacement)
        change = self._change(cloud, target, source, still)
        return Deformed(base.positions + cloud.weights.sum(-1, keepdim=True) * change, base.tangents)

    def still(self, cloud: PointCloud, source: Float[Tensor, "b e"]) -> Still:
        """What does not depend on the target."""
        places = self.body.lasting(fourier(cloud.positions, self.octaves))
        return Still(places, self._correction(places, source))

    def _change(self, cloud: PointCloud, target: Tensor, source: Tensor, still: Still | None) -> Tensor:
        still = self.still(cloud, source) if still is None else still
        return self._correction(still.places, target) - still.correction

    def _correction(self, places: Tensor, expression: Tensor) -> Tensor:
        return self.limit * torch.tanh(self.body(places, self.expression(expression)[:, None]))
