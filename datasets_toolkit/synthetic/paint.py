"""Colours of the synthetic heads: pigment by region, light from one lamp and from all around, and a blurred room behind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from datasets_toolkit.faces import face_regions as rings
from datasets_toolkit.schema import ByteImage, FloatArray, Region
from datasets_toolkit.synthetic.geometry import Hits, Part
from datasets_toolkit.synthetic.person import Look, Person

SCLERA, TEETH, CAVITY = np.array([0.62, 0.58, 0.56]), np.array([0.70, 0.66, 0.58]), np.array([0.06, 0.012, 0.012])
_UPPER_EDGE, _LOWER_EDGE = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308), (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
NOSTRILS = (98, 327)
"""Landmarks between which the nostrils lie."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The rays that met the shell, seen from the head's centre: angles (m x 2, radians) and labels (m)."""

    places: FloatArray
    labels: npt.NDArray[np.uint8]


def colour(person: Person, hits: Hits, labels: npt.NDArray[np.uint8], surface: Surface, marks: FloatArray, room: FloatArray) -> ByteImage:
    """RGB (n x 3) of n rays; ``room`` (n x 3, linear) is what lies behind; ``marks`` (478 x 2) are the landmarks' angles."""
    look = person.look
    pigment, gloss = room.copy(), np.zeros(len(labels))
    solid = hits.part != Part.NOTHING
    shell = hits.part == Part.SHELL
    pigment[shell] = _face(person, surface, marks)
    for part in (Part.LEFT_EAR, Part.RIGHT_EAR, Part.NECK):
        pigment[hits.part == part] = look.skin * (0.92 if part == Part.NECK else 1.0)
    pigment[hits.part == Part.MANE] = look.hair * _strands(person, hits.place[hits.part == Part.MANE])[:, None]
    pigment[hits.part == Part.TORSO] = look.cloth * _weave(hits.place[hits.part == Part.TORSO])[:, None]
    gloss[np.isin(labels, (Region.SKIN, Region.NOSE, Region.LEFT_EAR, Region.RIGHT_EAR))] = 0.05
    gloss[np.isin(labels, (Region.UPPER_LIP, Region.LOWER_LIP, Region.HAIR))] = 0.09
    gloss[np.isin(labels, (Region.LEFT_EYE, Region.RIGHT_EYE))] = 0.02
    light = np.ones((len(labels), 3))
    light[solid] = _lit(look, hits.normal[solid])[:, None]
    light[hits.part == Part.NECK] *= _below_chin(hits.place[hits.part == Part.NECK])[:, None]
    flat = np.isin(labels, (Region.MOUTH,))
    light[flat] = 0.4 + 0.6 * light[flat]
    shine = np.zeros(len(labels))
    shine[solid] = gloss[solid] * _shine(look, hits.normal[solid])
    return _srgb(pigment * light + shine[:, None])


def room(person: Person, shot: int, pixels: FloatArray, size: int) -> FloatArray:
    """A blurred room (n x 3, linear RGB) behind pixel positions (n x 2) of a picture of ``size`` pixels; ``shot`` chooses it."""
    picture = _room(person.seed, shot)
    place = (pixels / size * len(picture) - 0.5).astype(np.float32)
    rows = [
        np.asarray(
            cv2.remap(
                picture,
                np.ascontiguousarray(part[:, :1]),
                np.ascontiguousarray(part[:, 1:]),
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
        )
        for part in np.array_split(place, len(place) // 30000 + 1)
    ]
    return np.concatenate(rows)[:, 0].astype(np.float64)


@lru_cache(maxsize=32)
def _room(seed: int, shot: int) -> npt.NDArray[np.float32]:
    random = np.random.default_rng([seed, shot, 17])
    size = 96
    y, x = np.mgrid[:size, :size] / size
    picture = _dull(random.uniform(0.05, 0.45, 3)) + (y[..., None] - 0.5) * random.uniform(-0.2, 0.2, 3)
    for _ in range(7):
        left, top, wide, tall = random.uniform(-0.2, 1.0, 2).tolist() + random.uniform(0.1, 0.5, 2).tolist()
        box = (x > left) & (x < left + wide) & (y > top) & (y < top + tall)
        picture[box] = _dull(random.uniform(0.03, 0.7, 3))
    picture += random.normal(0, 0.02, picture.shape)
    return np.asarray(cv2.GaussianBlur(picture.clip(0.01, 1), (0, 0), random.uniform(1.5, 4.0)), np.float32)


def _dull(colour: FloatArray) -> FloatArray:
    return np.asarray(0.45 * colour + 0.55 * colour.mean())


def _face(person: Person, surface: Surface, marks: FloatArray) -> FloatArray:
    """Pigment (m x 3) of the shell."""
    look, places, labels = person.look, surface.places, surface.labels
    grain = _grain(person, places)
    pigment = look.skin * (1 + 0.07 * (grain - 0.5))[:, None]
    blush = _spot(places, marks[[50, 280]], (0.20, 0.14))
    pigment *= 1 - blush[:, None] * [0.02, 0.16, 0.12]
    socket = _spot(places, marks[[468, 473]], (0.30, 0.17))
    pigment *= 1 - 0.22 * socket[:, None]
    pigment *= 1 - 0.75 * _spot(places, _nostrils(marks), (0.035, 0.022))[:, None]
    _paint_brows(pigment, look, labels, grain)
    for region in (Region.UPPER_LIP, Region.LOWER_LIP):
        pigment[labels == region] = look.lips * (0.9 if region == Region.UPPER_LIP else 1.0)
    _paint_mouth(pigment, places, labels, marks)
    for ring, iris, region in ((rings.LEFT_EYE, rings.LEFT_IRIS, Region.LEFT_EYE), (rings.RIGHT_EYE, rings.RIGHT_IRIS, Region.RIGHT_EYE)):
        _paint_eye(pigment, look, places, labels == region, marks[list(ring)], marks[list(iris)])
    hairy = labels == Region.HAIR
    pigment[hairy] = look.hair * (0.55 + 0.9 * _locks(person, places[hairy]))[:, None]
    return pigment


def _paint_brows(pigment: FloatArray, look: Look, labels: npt.NDArray[np.uint8], grain: FloatArray) -> None:
    for region in (Region.LEFT_BROW, Region.RIGHT_BROW):
        there = labels == region
        cover = (0.75 + 0.5 * (grain[there] - 0.5)).clip(0, 1)[:, None]
        pigment[there] = cover * np.minimum(look.hair, look.skin * 0.45) + (1 - cover) * pigment[there]


def _paint_mouth(pigment: FloatArray, places: FloatArray, labels: npt.NDArray[np.uint8], marks: FloatArray) -> None:
    """Dark inside, upper teeth below the upper lip, lower ones only in wide mouths, and the line between closed lips."""
    there = labels == Region.MOUTH
    top, bottom = (np.interp(places[there, 0], *marks[list(curve)].T) for curve in (_UPPER_EDGE, _LOWER_EDGE))
    share = (top - places[there, 1]) / np.maximum(top - bottom, 1e-6)
    gap = float(marks[13, 1] - marks[14, 1])
    side = (1 - (places[there, 0] / marks[308, 0]) ** 2).clip(0, 1)
    teeth = (top - places[there, 1] < np.minimum(0.05, 0.5 * gap) * np.sqrt(side)) & (gap > 0.02)
    tongue = share.clip(0, 1) ** 2 * side
    pigment[there] = np.where(teeth[:, None], TEETH * (0.35 + 0.65 * side)[:, None], CAVITY * (1 + 4 * tongue)[:, None])
    line = np.interp(places[:, 0], *marks[list(_UPPER_EDGE)].T)
    within = (np.abs(places[:, 0]) < abs(marks[308, 0])) & np.isin(labels, (Region.UPPER_LIP, Region.LOWER_LIP))
    near = np.exp(-0.5 * ((places[:, 1] - line) / 0.008) ** 2) * within * np.exp(-gap / 0.03)
    pigment *= 1 - 0.6 * near[:, None]


def _paint_eye(
    pigment: FloatArray, look: Look, places: FloatArray, there: npt.NDArray[np.bool_], ring: FloatArray, iris: FloatArray
) -> None:
    """White, iris, pupil, and the lashes along the upper lid, which also mark a closed eye."""
    flat = np.cos(iris[0, 1])
    radius = float(np.linalg.norm((iris[1:] - iris[0]) * [flat, 1], axis=-1).mean())
    lid = np.concatenate([ring[8:], ring[:1]])
    above = places[:, 1] - np.interp(places[:, 0], *lid[np.argsort(lid[:, 0])].T)
    lashes = (
        (np.abs(above - 0.004) < 0.012) & (places[:, 0] > lid[:, 0].min()) & (places[:, 0] < lid[:, 0].max()) & ~(there & (above < -0.004))
    )
    pigment[lashes] = np.minimum(look.hair * 0.5, 0.03)
    distance = np.linalg.norm((places[there] - iris[0]) * [flat, 1], axis=-1) / radius
    shade = 0.75 + 0.25 * ((ring[:, 1].max() - places[there, 1]) / max(float(np.ptp(ring[:, 1])), 1e-6)).clip(0, 1)
    eye = np.where(distance[:, None] < 1, look.iris * (0.6 + 0.9 * distance.clip(0, 1))[:, None], SCLERA)
    eye = np.where((distance > 0.88)[:, None] & (distance < 1)[:, None], look.iris * 0.35, eye)
    eye = np.where(distance[:, None] < 0.42, 0.006, eye)
    glint = np.linalg.norm((places[there] - iris[0] - [0.25 * radius, 0.4 * radius]) * [flat, 1], axis=-1) < 0.22 * radius
    pigment[there] = np.where(glint[:, None], 0.9, eye * shade[:, None])


def _nostrils(marks: FloatArray) -> FloatArray:
    return marks[list(NOSTRILS)] * 0.62 + marks[[2, 2]] * 0.38 + [0, 0.005]


def _spot(places: FloatArray, centres: FloatArray, widths: tuple[float, float]) -> FloatArray:
    """Gaussian spots (m) around centres (k x 2), all radians."""
    return np.asarray(np.sum([np.exp(-0.5 * (((places - centre) / widths) ** 2).sum(-1)) for centre in centres], 0))


def _grain(person: Person, places: FloatArray) -> FloatArray:
    """Smooth noise (m) in [0, 1] on the skin: spots of half a centimetre."""
    waves = np.random.default_rng([person.seed, 23]).normal(0, 26, (6, 2))
    phases = np.random.default_rng([person.seed, 29]).uniform(0, 2 * np.pi, 6)
    return np.asarray(0.5 + 0.5 * np.sin(places @ waves.T + phases).mean(-1))


def _locks(person: Person, places: FloatArray) -> FloatArray:
    """Strands (m) in [0, 1] that run down the head."""
    phase = 2 * np.pi * np.random.default_rng([person.seed, 31]).random(3)
    bend = 0.5 * np.sin(2.5 * places[:, 1] + phase[0])
    return np.asarray(
        0.5 + 0.25 * np.sin(46 * (places[:, 0] + bend) + phase[1]) + 0.25 * np.sin(83 * (places[:, 0] + 0.6 * bend) + phase[2])
    )


def _strands(person: Person, place: FloatArray) -> FloatArray:
    longitude = np.arctan2(place[:, 0], place[:, 2])
    return np.asarray(0.4 + 0.7 * _locks(person, np.stack([longitude, place[:, 1] / 20], -1)))


def _weave(place: FloatArray) -> FloatArray:
    return np.asarray(0.9 + 0.12 * np.sign(np.sin(place[:, 0] * 1.7)) * np.sign(np.sin(place[:, 1] * 1.7)))


def _below_chin(place: FloatArray) -> FloatArray:
    """The head's shadow on the neck."""
    return np.asarray(0.45 + 0.55 / (1 + np.exp((place[:, 1] + 14.0) / 1.2)))


def _lit(look: Look, normals: FloatArray) -> FloatArray:
    towards = normals @ look.light
    wrap = ((towards + 0.25) / 1.25).clip(0) ** 1.3
    return np.asarray(look.ambient * (0.8 - 0.2 * normals[:, 1]) + (1.15 - look.ambient) * wrap)


def _shine(look: Look, normals: FloatArray) -> FloatArray:
    half = look.light - np.array([0.0, 0.0, 1.0])
    return np.asarray((normals @ (half / np.linalg.norm(half))).clip(0) ** 28)


def _srgb(linear: FloatArray) -> ByteImage:
    """Linear RGB to bytes (IEC 61966-2-1)."""
    values = linear.clip(0, 1)
    coded = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * coded), np.uint8)
