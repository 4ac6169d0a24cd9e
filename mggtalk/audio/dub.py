"""The mouth of one motion in the face of another."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.schema import BLENDSHAPES
from mggtalk.geometry.face_model import FaceModel
from mggtalk.types import Motion

NOSE_BASE, UPPER_LIP = 2, 0
"""Vertices between which the mouth's part of the face begins."""
MOUTH = tuple(name.startswith(("jaw", "mouth", "cheekPuff")) for name in BLENDSHAPES)
"""Which blendshapes belong to mouth and jaw."""


def mouth_share(face_model: FaceModel) -> Float[Tensor, " v"]:
    """How far each vertex moves with the mouth: 0 above the base of the nose, 1 below the upper lip, smooth between."""
    height = face_model.mean[:, 1]
    share = ((height[NOSE_BASE] - height) / (height[NOSE_BASE] - height[UPPER_LIP])).clamp(0, 1)
    return share * share * (3 - 2 * share)


def with_mouth(expression: Float[Tensor, "t e"], spoken: Float[Tensor, "t e"], face_model: FaceModel) -> Float[Tensor, "t e"]:
    """``expression`` with the mouth and jaw of ``spoken``.

    Blendshapes are taken by name. What the components have to add is found on the mesh: they are fitted to the displacement that has the
    one below the nose and the other above it.
    """
    size, mouth = len(BLENDSHAPES), torch.tensor(MOUTH, device=expression.device)
    blendshapes = torch.where(mouth, spoken[:, :size], expression[:, :size])
    share = mouth_share(face_model)[:, None]
    wanted = share * face_model.displacement(spoken) + (1 - share) * face_model.displacement(expression)
    return face_model.expression(wanted, blendshapes, torch.zeros_like(wanted[0]))


def dubbed(motion: Motion, spoken: Float[Tensor, "t e"], face_model: FaceModel) -> Motion:
    """A tracked motion whose mouth says something else: poses, times and upper face stay."""
    return replace(motion, expression=with_mouth(motion.expression, spoken.to(motion.expression), face_model))
