"""Symmetric Gaussian prediction: two decoders and the densification, each a correction of a base Gaussian.

The base of a point: the source pixel's colour, scales from the pixel's footprint on the surface, orientation from its tangents, opacity
from the matte. Letters: K children a parent; t0, t1 the tangents of a point (cm a grid step).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from mggtalk.geometry.cameras import invert_rigid, matrix_to_quaternion, multiply_quaternions
from mggtalk.geometry.head_points import CHILD_STEPS
from mggtalk.geometry.neck import bend, intact
from mggtalk.modules.children import children, corrections
from mggtalk.modules.deformation import Deformed, laid
from mggtalk.modules.layers import MLP, fourier, fourier_size
from mggtalk.streaming import can_compile, can_stream
from mggtalk.types import Camera, Gaussians, PointCloud

SPREAD = 0.5
"""Standard deviation of a Gaussian in units of the step to its neighbour."""
THICKNESS = 0.15
"""Scale along the normal in units of the smaller tangent scale."""
OPAQUE = 0.99
"""Largest base opacity. Blending stops before transmittance would fall to 1e-4, so behind what hides all but a tenth, an opacity of 0.999
would no longer be blended, and that tenth of the background would shine through a head."""
CORRECTIONS = 10
"""Numbers that correct a Gaussian: colour 3, log scale 3, rotation 3, opacity 1."""


def base_gaussians(
    deformed: Deformed, colour: Float[Tensor, "b n 3"], opacity: Float[Tensor, "b n"], mask: Tensor, spread: float = SPREAD
) -> Gaussians:
    """Flat Gaussians over the footprints of the points.

    The frame is t0, what of t1 is orthogonal to it, and their normal (Gram-Schmidt: smooth where eigenvectors are not).
    """
    right, down = deformed.tangents.unbind(-2)
    first = normalize(right, dim=-1, eps=1e-8)
    across = down - (down * first).sum(-1, keepdim=True) * first
    second = normalize(across, dim=-1, eps=1e-8)
    frame = torch.stack([first, second, torch.linalg.cross(first, second)], -1)
    sides = torch.stack([right.norm(dim=-1), across.norm(dim=-1)], -1).clamp(min=1e-4) * spread
    scales = torch.cat([sides, THICKNESS * sides.amin(-1, keepdim=True)], -1)
    return Gaussians(
        means=deformed.positions,
        quaternions=matrix_to_quaternion(frame),
        scales=scales,
        opacities=opacity.clamp(max=OPAQUE),
        features=colour,
        mask=mask,
    )


def posed(moved: Deformed, cloud: PointCloud, camera: Camera, torso: Camera) -> tuple[Deformed, Gaussians, Float[Tensor, "b n"]]:
    """Moved points bent between a head and its torso, their base Gaussians, and how much of their opacity they may keep.

    See :func:`mggtalk.geometry.neck.bend` and :func:`mggtalk.geometry.neck.intact`; the Gaussians keep all of it.
    """
    if can_stream(*moved, cloud.head_weight, camera.head_to_camera, torso.head_to_camera):
        relative = invert_rigid(camera.head_to_camera) @ torso.head_to_camera
        deformed, quaternions, scales, kept = laid(moved, cloud, relative, (SPREAD, THICKNESS))
        base = Gaussians(
            means=deformed.positions,
            quaternions=quaternions,
            scales=scales,
            opacities=cloud.opacity.clamp(max=OPAQUE),
            features=cloud.colour,
            mask=cloud.mask,
        )
        return deformed, base, kept
    deformed = Deformed(*bend(*moved, cloud.head_weight, cloud.head_weight_steps, camera, torso))
    base = base_gaussians(deformed, cloud.colour, cloud.opacity, cloud.mask)
    return deformed, base, intact(moved.tangents, deformed.tangents)


def corrected(base: Gaussians, correction: Float[Tensor, "b n k"]) -> Gaussians:
    """Apply corrections: colours add, scales multiply, rotations compose, opacities add as logits. Zero changes nothing."""
    if can_stream(base.means, correction):
        return corrections(base, correction)
    colour, log_scale, rotation, logit = correction.split([3, 3, 3, 1], -1)
    half = torch.cat([torch.ones_like(logit), 0.5 * rotation], -1)
    opacity = torch.sigmoid(torch.logit(base.opacities, 1e-4) + logit[..., 0])
    return Gaussians(
        means=base.means,
        quaternions=multiply_quaternions(base.quaternions, normalize(half, dim=-1)),
        scales=base.scales * log_scale.clamp(-4, 2).exp(),
        opacities=torch.where(base.opacities > 1e-4, opacity, base.opacities),
        features=base.features + colour,
        mask=base.mask,
    )


def parameters(gaussians: Gaussians) -> Float[Tensor, "b n 11"]:
    """What a network reads of Gaussians: colour, log scales, rotation and opacity."""
    return torch.cat(
        [gaussians.features, gaussians.scales.clamp(min=1e-4).log() / 3, gaussians.quaternions, gaussians.opacities[..., None]], -1
    )


class GaussianDecoder(nn.Module):
    """Corrects the base Gaussians of points from identity features and deformed positions.

    The visible decoder (SGP, stage one) sees just that; the decoder of the mirrored points (stage two) also sees the stage-one
    Gaussians of their counterparts (``extra`` numbers each).
    """

    def __init__(self, channels: int = 32, extra: int = 0, width: int = 96, octaves: int = 4) -> None:
        super().__init__()
        self.octaves = octaves
        self.body = MLP((channels, fourier_size(octaves) + extra), width, CORRECTIONS)

    def forward(
        self,
        base: Gaussians,
        features: Float[Tensor, "b n c"],
        counterpart: Float[Tensor, "b n x"] | None = None,
        lasting: Float[Tensor, "b n w"] | None = None,
    ) -> Gaussians:
        """The Gaussians of the points of ``base``; ``lasting`` may be kept from ``body.lasting(features)``."""
        places = fourier(base.means, self.octaves)
        changing = places if counterpart is None else torch.cat([places, counterpart], -1)
        correction = self.body(self.body.lasting(features) if lasting is None else lasting, changing)
        return corrected(base, correction.to(base.means.dtype))  # which under autocast has fewer digits


class Densifier(nn.Module):
    """Each Gaussian becomes the parent of K children with their own offsets and parameters (paper, densification).

    The base: the children share out the parent's footprint, each with the colour and opacity that the source shows at its place, and
    with the parent's own correction of them.

    Args:
        channels: of the identity features.
        width: of the hidden layers.
        limit: largest correction of an offset, in steps.
        spread: standard deviation of a child in units of the distance to its siblings.
    """

    steps: Float[Tensor, "k 2"]

    def __init__(self, channels: int = 32, width: int = 96, limit: float = 1.0, spread: float = 0.4) -> None:
        super().__init__()
        self.limit, self.spread = limit, spread
        self.count = len(CHILD_STEPS)
        self.body = MLP((channels, 11), width, self.count * (3 + CORRECTIONS))
        self.register_buffer("steps", torch.tensor(CHILD_STEPS), persistent=False)

    def forward(
        self,
        parents: Gaussians,
        base: Gaussians,
        tangents: Float[Tensor, "b n 2 3"],
        colour: Float[Tensor, "b n k 3"],
        opacity: Float[Tensor, "b n k"],
        features: Float[Tensor, "b n c"],
        lasting: Float[Tensor, "b n w"] | None = None,
    ) -> Gaussians:
        """The children, ``n k`` of them.

        Args:
            parents: decoded Gaussians.
            base: what they were before the decoder corrected them.
            tangents: of the parents.
            colour: that the source shows at the children's places.
            opacity: likewise.
            features: identity features of the parents.
            lasting: may be kept from :meth:`lasting`.
        """
        lasting = self.lasting(features) if lasting is None else lasting
        raw = self.body(lasting, parameters(parents)).to(tangents.dtype).unflatten(-1, (self.count, 3 + CORRECTIONS))
        if can_compile(raw, parents.means, tangents, colour, opacity):
            limits = (self.limit, OPAQUE, 0.5 * self.spread / SPREAD)
            return children(raw, parents, base, tangents, colour, opacity, self.steps, limits)
        return self.moved(raw, parents, base, tangents, colour, opacity)

    def lasting(self, features: Float[Tensor, "b n c"]) -> Float[Tensor, "b n w"]:
        """What depends on identity features alone."""
        return self.body.lasting(features)

    def colours(self, colour: Float[Tensor, "b n 3"], child_colour: Float[Tensor, "b n k 3"]) -> Float[Tensor, "b m 3"]:
        """Those that the bases of the children have, of points with these colours."""
        return child_colour.flatten(1, 2)

    def moved(
        self,
        raw: Float[Tensor, "b n k 13"],
        parents: Gaussians,
        base: Gaussians,
        tangents: Float[Tensor, "b n 2 3"],
        colour: Float[Tensor, "b n k 3"],
        opacity: Float[Tensor, "b n k"],
    ) -> Gaussians:
        """The children, moved and corrected by what the network says (``raw``: offset 3, correction 10); else as :meth:`forward`."""
        offset, correction = raw[..., :3], raw[..., 3:]
        normal = torch.linalg.cross(*normalize(tangents, dim=-1, eps=1e-8).unbind(-2))
        size = tangents.norm(dim=-1).mean(-1)[..., None, None]
        moved = torch.tanh(offset) * self.limit
        shift = moved[..., :2] @ tangents + moved[..., 2:] * size * normal[..., None, :]
        split = self.split(parents, base, tangents, colour, opacity)
        return corrected(replace(split, means=split.means + shift.flatten(-3, -2)), correction.flatten(-3, -2))

    def split(
        self,
        parents: Gaussians,
        base: Gaussians,
        tangents: Float[Tensor, "b n 2 3"],
        colour: Float[Tensor, "b n k 3"],
        opacity: Float[Tensor, "b n k"],
    ) -> Gaussians:
        """The children before the network corrects them; arguments as :meth:`forward`."""
        means = parents.means[..., None, :] + self.steps.to(tangents) @ tangents
        shift = torch.logit(parents.opacities, 1e-4) - torch.logit(base.opacities, 1e-4)
        opacity = opacity.clamp(max=OPAQUE)
        own = torch.where(opacity > 1e-4, torch.sigmoid(torch.logit(opacity, 1e-4) + shift[..., None]), opacity)
        return Gaussians(
            means=means.flatten(-3, -2),
            quaternions=self._each(parents.quaternions),
            scales=self._each(parents.scales * (0.5 * self.spread / SPREAD)),
            opacities=own.flatten(-2),
            features=(colour + (parents.features - base.features)[..., None, :]).flatten(-3, -2),
            mask=parents.mask.repeat_interleave(self.count, -1) & (opacity.flatten(-2) > 1 / 255),
        )

    def _each(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.count, -2)


class NoDensifier(Densifier):
    """Leaves every Gaussian alone: the paper's ablation without densification. Nothing to train."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.count = 1

    def forward(self, parents: Gaussians, *_: object, **__: object) -> Gaussians:
        """The parents."""
        return parents

    def lasting(self, features: Float[Tensor, "b n c"]) -> Float[Tensor, "b n w"]:
        """The features, which nobody asks for."""
        return features

    def colours(self, colour: Float[Tensor, "b n 3"], child_colour: Float[Tensor, "b n k 3"]) -> Float[Tensor, "b n 3"]:
        """Those of the points."""
        return colour

    def split(self, parents: Gaussians, *_: object, **__: object) -> Gaussians:
        """The parents."""
        return parents
