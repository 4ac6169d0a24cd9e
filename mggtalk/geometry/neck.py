"""The neck: points between head and torso bend instead of break."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mggtalk.geometry.cameras import invert_rigid
from mggtalk.types import Camera


def bend(
    positions: Float[Tensor, "b n 3"],
    tangents: Float[Tensor, "b n 2 3"],
    head_weight: Float[Tensor, "b n"],
    head_weight_steps: Float[Tensor, "b n 2"],
    camera: Camera,
    torso: Camera,
) -> tuple[Float[Tensor, "b n 3"], Float[Tensor, "b n 2 3"]]:
    """Blend each point between moving with the head and staying with the torso.

    In camera space a point of the head lies at ``T X`` and one of the torso at ``T_0 X``, where T and T_0 are the head poses of the
    target and of the source; a point between them at the mean of both, weighted by ``w = head_weight``. Seen from canonical space,
    which the target's camera looks at, that is ``w X + (1 - w) T^-1 T_0 X``: pose stays a matter of cameras.

    Args:
        positions: canonical head space, cm.
        tangents: of the points.
        head_weight: w.
        head_weight_steps: change of w along each tangent: what bends also stretches.
        camera: of the target.
        torso: the source's camera.
    """
    relative = invert_rigid(camera.head_to_camera) @ torso.head_to_camera
    stay = (1 - head_weight)[..., None]
    turn, shift = relative[:, None, :3, :3], relative[:, None, :3, 3]
    resting = (turn @ positions[..., None])[..., 0] + shift
    turned = tangents @ turn.mT
    apart = positions - resting
    stretched = tangents + stay[..., None] * (turned - tangents) + head_weight_steps[..., None] * apart[..., None, :]
    return resting + head_weight[..., None] * apart, stretched
