"""The scene as rays see it: which part of a person each ray meets first, how deep, and with which normal.

Parts are the shell of the head (skin and hair), two ears, long hair behind the neck, the neck and the torso; all but the shell are
ellipsoids. Everything here is exact to 1e-8 cm: quadratics, and Newton's method for the shell.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from datasets_toolkit.schema import FloatArray
from datasets_toolkit.synthetic.person import Person
from datasets_toolkit.synthetic.radial import Shell
from datasets_toolkit.synthetic.rays import intersect

EAR_CENTRE, EAR_RADII, EAR_TURN = np.array([7.35, 0.2, -1.3]), np.array([0.75, 3.1, 1.8]), np.radians(22)
NECK_CENTRE, NECK_HEIGHT = np.array([0.0, -12.5, -2.2]), 12.5
TORSO_CENTRE, TORSO_HEIGHT, TORSO_DEPTH = np.array([0.0, -27.0, -5.5]), 14.0, 10.5
MANE_CENTRE, MANE_RADII = np.array([0.0, -5.5, -4.6]), np.array([9.6, 12.0, 6.2])


class Part(IntEnum):
    """What a ray can meet."""

    NOTHING = 0
    SHELL = 1
    LEFT_EAR = 2
    RIGHT_EAR = 3
    MANE = 4
    NECK = 5
    TORSO = 6


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where a person stands: three rigid transforms (4 x 4) into the camera; the neck is halfway between head and torso."""

    head: FloatArray
    neck: FloatArray
    torso: FloatArray


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What n rays meet.

    Attributes:
        part: n, :class:`Part`.
        depth: n, cm along the optical axis; infinite where nothing is met.
        normal: n x 3, unit, camera frame, towards the camera; 0 where nothing is met.
        place: n x 3, the point in the space of the part met (canonical head space for the shell), cm.
        hair: n, height of the hair where the shell is met, cm; negative on bare skin.
    """

    part: npt.NDArray[np.uint8]
    depth: FloatArray
    normal: FloatArray
    place: FloatArray
    hair: FloatArray


def camera_rays(intrinsics: FloatArray, pixels: FloatArray) -> FloatArray:
    """Rays (n x 3, camera frame, z = 1) through pixel positions (n x 2); their parameter is depth."""
    centred = (pixels - intrinsics[:2, 2]) / intrinsics[[0, 1], [0, 1]]
    return np.concatenate([centred, np.ones((len(pixels), 1))], 1)


def trace(person: Person, shell: Shell, pose: Pose, rays: FloatArray) -> Hits:
    """What rays from the camera (n x 3, z = 1) meet first."""
    count = len(rays)
    hits = Hits(
        part=np.zeros(count, np.uint8),
        depth=np.full(count, np.inf),
        normal=np.zeros((count, 3)),
        place=np.zeros((count, 3)),
        hair=np.zeros(count),
    )
    _add_shell(hits, shell, pose.head, rays)
    for part, transform, centre, turn, radii in _ellipsoids(person, pose):
        _add_ellipsoid(hits, part, transform, centre, turn, radii, rays)
    return hits


def _ellipsoids(person: Person, pose: Pose) -> list[tuple[Part, FloatArray, FloatArray, float, FloatArray]]:
    """Part, transform of its space, centre and turn about y there, radii."""
    look = person.look
    wide = person.points[454, 0] / 7.32
    ear = EAR_CENTRE * [wide, 1, 1]
    parts = [
        (Part.LEFT_EAR, pose.head, ear, EAR_TURN, EAR_RADII),
        (Part.RIGHT_EAR, pose.head, ear * [-1, 1, 1], -EAR_TURN, EAR_RADII),
        (Part.NECK, pose.neck, NECK_CENTRE, 0.0, np.array([look.neck_radius, NECK_HEIGHT, look.neck_radius])),
        (Part.TORSO, pose.torso, TORSO_CENTRE, 0.0, np.array([look.shoulders, TORSO_HEIGHT, TORSO_DEPTH])),
    ]
    return [*parts, (Part.MANE, pose.head, MANE_CENTRE, 0.0, MANE_RADII)] if look.long_hair else parts


def _add_shell(hits: Hits, shell: Shell, transform: FloatArray, rays: FloatArray) -> None:
    rotation, origin = transform[:3, :3], -transform[:3, :3].T @ transform[:3, 3]
    met = intersect(shell, origin, rays @ rotation)
    hits.hair[met.ray] = met.hair
    _write(hits, met.ray, Part.SHELL, met.t, met.gradient @ rotation.T, met.place)


def _add_ellipsoid(
    hits: Hits, part: Part, transform: FloatArray, centre: FloatArray, turn: float, radii: FloatArray, rays: FloatArray
) -> None:
    """Where ``|(X - centre) / radii| = 1``, in axes turned about y."""
    c, s = np.cos(turn), np.sin(turn)
    axes = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) / radii[:, None]  # takes the part's space to the unit ball
    rotation, shift = transform[:3, :3], transform[:3, 3]
    origin = -rotation.T @ shift
    start, along = axes @ (origin - centre), rays @ (rotation @ axes.T)
    a, b = np.einsum("ni,ni->n", along, along), along @ start
    root = b**2 - a * (start @ start - 1)
    t = np.where(root > 0, (-b - np.sqrt(root.clip(0))) / a, np.inf)
    met = np.flatnonzero(t < hits.depth)
    ball = start + t[met, None] * along[met]
    place = origin + t[met, None] * (rays[met] @ rotation)
    _write(hits, met, part, t[met], ball @ axes @ rotation.T, place)


def _write(hits: Hits, met: npt.NDArray[np.int64], part: Part, depth: FloatArray, normal: FloatArray, place: FloatArray) -> None:
    hits.part[met], hits.depth[met], hits.place[met] = part, depth, place
    hits.normal[met] = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
