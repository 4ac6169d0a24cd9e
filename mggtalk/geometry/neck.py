"""Head and torso: the torso follows where the head goes, not how it turns, and the neck between them bends instead of breaking."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mggtalk.geometry.cameras import invert_rigid
from mggtalk.types import Camera

PIVOT = (0.0, -6.6, -1.7)
"""The point of the head (canonical, cm) that moves least when heads turn: least squares over the tracked clips of the face model."""
FOLLOW = 0.8
"""How much of the pivot's movement the torso takes part in."""
SUNK = 3.0
"""How far (cm) what rests lies behind the surface that continues the chin; or a chin that goes over it would not hide it."""
TORN = 1.3
"""How far a footprint may be stretched by bending before it begins to fade."""


def torso_camera(camera: Camera, source: Camera) -> Camera:
    """The source's camera, moved as the torso moves when the head goes from the pose of ``source`` to that of ``camera``.

    Only across the image: the torso is a picture, and keeps its size.
    """
    pivot = torch.tensor(PIVOT, device=source.head_to_camera.device, dtype=source.head_to_camera.dtype)
    difference = camera.head_to_camera - source.head_to_camera
    moved = FOLLOW * (difference[..., :2, :3] @ pivot + difference[..., :2, 3])
    still = torch.zeros_like(source.head_to_camera)
    still[..., :2, 3] = moved
    return Camera(intrinsics=camera.intrinsics, head_to_camera=source.head_to_camera + still)


def bend(
    positions: Float[Tensor, "b n 3"],
    tangents: Float[Tensor, "b n 2 3"],
    head_weight: Float[Tensor, "b n"],
    head_weight_steps: Float[Tensor, "b n 2"],
    camera: Camera,
    torso: Camera,
) -> tuple[Float[Tensor, "b n 3"], Float[Tensor, "b n 2 3"]]:
    """Blend each point between moving with the head and resting on the torso.

    In camera space a point of the head lies at ``T X`` and one of the torso at ``T_0 X``, where T and T_0 are the poses of the
    target's head and torso; a point between them at the mean of both, weighted by ``w = head_weight``. Seen from canonical space,
    which the target's camera looks at, that is ``w X + (1 - w) T^-1 T_0 X``: pose stays a matter of cameras.

    Args:
        positions: canonical head space, cm.
        tangents: of the points.
        head_weight: w.
        head_weight_steps: change of w along each tangent: what bends also stretches.
        camera: of the target.
        torso: the camera of the torso, see :func:`torso_camera`.
    """
    relative = invert_rigid(camera.head_to_camera) @ torso.head_to_camera
    stay = (1 - head_weight)[..., None]
    turn, shift = relative[:, None, :3, :3], relative[:, None, :3, 3]
    resting = (turn @ positions[..., None])[..., 0] + shift
    turned = tangents @ turn.mT
    apart = positions - resting
    stretched = tangents + stay[..., None] * (turned - tangents) + head_weight_steps[..., None] * apart[..., None, :]
    return resting + head_weight[..., None] * apart, stretched


def intact(tangents: Float[Tensor, "b n 2 3"], stretched: Float[Tensor, "b n 2 3"]) -> Float[Tensor, "b n"]:
    """How much of its opacity a point keeps that bending has stretched by s: (:data:`TORN` / s)^4, at most 1.

    Skin does not stretch like that: where a head goes far, the neck slides below the collar, and a picture of the neck, which rests with
    the torso, shows better than splats drawn out into stripes. Hair does.

    Args:
        tangents: before points bent.
        stretched: after it, from :func:`bend`.
    """
    return (TORN**2 / squared_stretch(tangents, stretched).clamp(min=TORN**2)).square()


def squared_stretch(tangents: Float[Tensor, "b n 2 3"], moved: Float[Tensor, "b n 2 3"]) -> Float[Tensor, "b n"]:
    """The square of how many times as long a footprint's side is as it was, the larger of its two; 0 where there is no footprint."""
    return (moved.square().sum(-1) / tangents.square().sum(-1).clamp(min=1e-8)).amax(-1)
