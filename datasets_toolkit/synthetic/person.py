"""People made of numbers: the shape of a head, its colours, hair and clothes, all from a seed.

Every head is symmetric in x = 0 and lies in canonical head space: :func:`datasets_toolkit.faces.head_pose.head_pose` gives the identity for
its neutral face. Centimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datasets_toolkit.faces.head_pose import canonical_face, similarity
from datasets_toolkit.schema import BLENDSHAPES, FloatArray
from datasets_toolkit.synthetic.expression import BULGING, displacements, moved, neutral_points
from datasets_toolkit.synthetic.radial import Shell, angles, directions, fit_radius, nodes

CENTRE = np.array([0.0, 0.5, 0.0])
"""From where heads are star-shaped."""
SKULL_CENTRE, SKULL_RADII = np.array([0.0, 2.6, -0.6]), np.array([7.5, 10.0, 8.6])
"""Of an average skull without hair: it continues the face over the crown and the back."""
_MOUTH_DENT = 0.7
"""Centimetres that the surface between the lips lies back when the mouth is open."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colours are RGB in [0, 1], linear; lengths are in centimetres."""

    skin: FloatArray
    lips: FloatArray
    hair: FloatArray
    iris: FloatArray
    cloth: FloatArray
    long_hair: bool
    neck_radius: float
    shoulders: float
    light: FloatArray  # unit, camera frame, towards the light
    ambient: float
    voice: float  # fundamental frequency, Hz


@dataclass(frozen=True, kw_only=True)
class Person:
    """A head that can move.

    Attributes:
        name: identifies the person.
        seed: of the person's texture.
        points: 478 x 3, the neutral face before it is laid onto the surface, cm.
        skull: control values of the neutral surface's radius.
        hair: control values of the hair's height.
        look: colours and measures.
    """

    name: str
    seed: int
    points: FloatArray
    skull: FloatArray
    hair: FloatArray
    look: Look

    def shell(self, scores: FloatArray) -> Shell:
        """The surface of skin and hair under 52 blendshape scores."""
        skull = self.skull
        for name, change in bulges().items():
            skull = skull + scores[BLENDSHAPES.index(name)] * change
        return Shell(centre=CENTRE, skull=skull, hair=self.hair)

    def landmarks(self, scores: FloatArray) -> FloatArray:
        """The 478 landmarks (x 3, canonical head space, cm) under 52 scores: on the surface of :meth:`shell`."""
        return on_surface(self.shell(scores), moved(self.points, scores))


def on_surface(shell: Shell, points: FloatArray) -> FloatArray:
    """Points (n x 3) moved along their rays from the centre onto the skin."""
    longitude, elevation = angles(points - shell.centre)
    return shell.centre + shell.radius(longitude, elevation)[:, None] * directions(longitude, elevation)


def make_person(seed: int) -> Person:
    """The person of a seed."""
    random = np.random.default_rng([seed, 11])
    points = _shaped(neutral_points(), random)
    skull = _skull(points)
    for _ in range(2):  # laying the points onto the surface shifts them a little: put the head back into canonical space
        laid = on_surface(Shell(centre=CENTRE, skull=skull, hair=np.full_like(skull, -1.0)), points)
        scale, rotation, shift = similarity(canonical_face().vertices, laid, canonical_face().pose_weights)
        points = (points - shift) @ rotation / scale
        points = (points + points[canonical_face().mirror] * [-1, 1, 1]) / 2
        skull = _skull(points)
    look = _look(random)
    return Person(name=f"head-{seed:04d}", seed=seed, points=points, skull=skull, hair=_hair(random, look.long_hair), look=look)


def _shaped(points: FloatArray, random: np.random.Generator) -> FloatArray:
    """A face of other proportions: width, length, jaw, nose, cheeks, chin, eyes."""
    width, length, jaw, nose, cheeks, chin, eyes = np.clip(random.normal(size=7), -1.6, 1.6)
    x, y, z = points.T
    low = np.clip(-(y + 1.0) / 8.0, 0, 1)
    wide = 1 + 0.035 * width + 0.06 * jaw * low
    tall = 1 + 0.045 * length * np.clip(-y / 4.0, 0, 1)
    near_nose = np.exp(-0.5 * ((x / 1.3) ** 2 + ((y + 0.8) / 1.6) ** 2))
    near_cheek = np.exp(-0.5 * (((np.abs(x) - 4.6) / 1.6) ** 2 + ((y + 2.0) / 2.2) ** 2))
    near_chin = np.exp(-0.5 * ((x / 2.2) ** 2 + ((y + 8.6) / 1.8) ** 2))
    near_eye = np.exp(-0.5 * (((np.abs(x) - 3.15) / 1.6) ** 2 + ((y - 2.5) / 1.4) ** 2))
    forward = 0.35 * nose * near_nose + 0.25 * cheeks * near_cheek + 0.35 * chin * near_chin
    aside = 0.12 * eyes * near_eye * np.sign(x) + 0.15 * nose * near_nose * x
    return np.stack([x * wide + aside, y * tall, z + forward], -1)


def _skull(points: FloatArray, dent: FloatArray | None = None) -> FloatArray:
    """Control values of the radius through a face (478 x 3) and, away from it, around an average skull."""
    longitude, elevation = nodes()
    rays = directions(longitude, elevation).reshape(-1, 3)
    face = points - CENTRE
    unit = face / np.linalg.norm(face, axis=-1, keepdims=True)
    away = (rays @ unit.T).max(1) < np.cos(np.radians(16.0))
    rays = rays[away]
    wide = np.ptp(points[:, 0]) / np.ptp(canonical_face().vertices[:, 0])
    radii, start = SKULL_RADII * [wide, 1, 1], CENTRE - SKULL_CENTRE
    a, b, c = ((rays / radii) ** 2).sum(-1), (rays / radii) @ (start / radii), ((start / radii) ** 2).sum() - 1
    back = rays * ((-b + np.sqrt(b**2 - a * c)) / a)[:, None]
    extra = np.zeros((0, 3)) if dent is None else dent
    weights = np.concatenate([np.ones(len(face)), np.full(len(back), 0.3), np.full(len(extra), 1.0)])
    values = fit_radius(np.concatenate([face, back, extra]), weights)
    return (values + values[:, ::-1]) / 2 if dent is None else values


@lru_cache(maxsize=1)
def bulges() -> dict[str, FloatArray]:
    """Change of the radius' control values for a score of 1 of each shape that changes the surface."""
    points = neutral_points()
    still = _skull(points)
    changes = {}
    for name in BULGING:
        shown = points + displacements()[name]
        changes[name] = _skull(shown, _between_lips(shown) if name == "jawOpen" else np.zeros((0, 3))) - still
    changes["jawOpen"] = (changes["jawOpen"] + changes["jawOpen"][:, ::-1]) / 2
    return changes


def _between_lips(points: FloatArray) -> FloatArray:
    """Places (relative to the centre) between the open lips, set back."""
    upper, lower = points[[81, 82, 13, 312, 311]], points[[178, 87, 14, 317, 402]]
    inside = np.concatenate([upper + part * (lower - upper) for part in (0.3, 0.5, 0.7)]) - CENTRE
    length = np.linalg.norm(inside, axis=-1, keepdims=True)
    return np.asarray(inside * (1 - _MOUTH_DENT / length))


def _hair(random: np.random.Generator, long_hair: bool) -> FloatArray:
    """Height of the hair at the control values, negative below the hairline."""
    longitude, elevation = nodes()
    turn = np.degrees(np.abs(longitude))
    front, fringe = random.uniform(44, 54), random.uniform(0.0, 6.0)
    sides = (-12, -48) if long_hair else (8, -18)
    line = np.interp(turn, [0, 35, 60, 78, 95, 125, 180], [front, front - fringe, 33, 14, sides[0], sides[1], sides[1] - 22])
    height = random.uniform(0.9, 2.2) + (0.6 if long_hair else 0)
    waves = sum(random.normal(0, 0.07) * np.cos(k * longitude) * np.cos(elevation) ** 2 * np.sin(3 * elevation) for k in range(1, 5))
    above = np.degrees(elevation) - line
    return np.asarray(height * np.tanh(above / 14.0) * np.where(above > 0, 1 + waves, 1.0))


def _look(random: np.random.Generator) -> Look:
    tone = random.uniform(0.0, 1.0)
    skin = (1 - tone) * np.array([0.80, 0.56, 0.44]) + tone * np.array([0.22, 0.11, 0.07])
    skin = skin * random.uniform(0.92, 1.08, 3)
    hairs = np.array([[0.012, 0.010, 0.010], [0.05, 0.025, 0.012], [0.16, 0.08, 0.035], [0.40, 0.26, 0.11], [0.32, 0.30, 0.29]])
    irises = np.array([[0.05, 0.022, 0.010], [0.10, 0.055, 0.02], [0.07, 0.14, 0.20], [0.07, 0.12, 0.06]])
    angle, height = random.uniform(-1.0, 1.0), random.uniform(0.25, 0.7)
    light = np.array([np.sin(angle), -height, -np.cos(angle)])
    return Look(
        skin=skin.clip(0.02, 0.85),
        lips=(skin * np.array([0.80, 0.42, 0.45])).clip(0.02, 0.8),
        hair=hairs[random.integers(len(hairs))] * random.uniform(0.8, 1.25),
        iris=irises[random.integers(len(irises))],
        cloth=random.uniform(0.03, 0.6, 3),
        long_hair=bool(random.random() < 0.45),
        neck_radius=random.uniform(4.9, 5.8),
        shoulders=random.uniform(17.5, 21.5),
        light=light / np.linalg.norm(light),
        ambient=random.uniform(0.35, 0.5),
        voice=random.uniform(95, 230),
    )
