"""One picture of a synthetic person, with everything that is known of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datasets_toolkit.schema import ByteImage, FloatArray, Region
from datasets_toolkit.synthetic.geometry import Hits, Part, Pose, camera_rays, trace
from datasets_toolkit.synthetic.paint import Surface, colour, room
from datasets_toolkit.synthetic.person import Person
from datasets_toolkit.synthetic.radial import Shell, angles
from datasets_toolkit.synthetic.regions import label, mark_angles


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A rendered frame of s x s pixels.

    Attributes:
        image: s x s x 3, RGB.
        labels: s x s, :class:`datasets_toolkit.schema.Region` of what lies at the centre of each pixel.
        depth: s x s, cm along the optical axis at the centre of each pixel; 0 for the background.
        normals: s x s x 3, unit, OpenCV camera frame, facing the camera; 0 for the background.
        matte: s x s, share of the pixel that the person covers.
        landmarks: 478 x 3, pixels; z in the scale of x, relative to the head's origin, smaller is nearer.
    """

    image: ByteImage
    labels: npt.NDArray[np.uint8]
    depth: FloatArray
    normals: FloatArray
    matte: FloatArray
    landmarks: FloatArray


@dataclass(frozen=True, kw_only=True)
class _Scene:
    person: Person
    shell: Shell
    pose: Pose
    intrinsics: FloatArray
    marks: FloatArray
    size: int
    shot: int


def render(
    person: Person, scores: FloatArray, pose: Pose, intrinsics: FloatArray, size: int, *, samples: int = 1, shot: int = 0
) -> Picture:
    """Draw a person.

    Args:
        person: who.
        scores: 52 blendshape scores.
        pose: where head, neck and torso are.
        intrinsics: 3 x 3, pixels.
        size: pixels a side.
        samples: of colour and matte a pixel and direction; with 1 the image is that of the pixels' centres, and edges are hard.
        shot: chooses the background.
    """
    landmarks = person.landmarks(scores)
    shell = person.shell(scores)
    scene = _Scene(
        person=person, shell=shell, pose=pose, intrinsics=intrinsics, marks=mark_angles(landmarks, shell.centre), size=size, shot=shot
    )
    pixels = _grid(size, 1)
    hits, labels, surface = _look(scene, pixels)
    image, matte = (
        (_colours(scene, pixels, hits, labels, surface), hits.part != Part.NOTHING) if samples == 1 else _averaged(scene, samples)
    )
    square = (size, size)
    return Picture(
        image=image.reshape(*square, 3),
        labels=labels.reshape(square),
        depth=np.where(np.isfinite(hits.depth), hits.depth, 0).reshape(square),
        normals=hits.normal.reshape(*square, 3),
        matte=matte.astype(np.float64).reshape(square),
        landmarks=project(landmarks, pose.head, intrinsics),
    )


def project(points: FloatArray, head_to_camera: FloatArray, intrinsics: FloatArray) -> FloatArray:
    """Landmarks (n x 3, pixels) of points (n x 3) of canonical head space, z relative to the head's origin in the scale of x."""
    posed = points @ head_to_camera[:3, :3].T + head_to_camera[:3, 3]
    image = posed @ intrinsics.T
    return np.column_stack([image[:, :2] / image[:, 2:], intrinsics[0, 0] * (posed[:, 2] / head_to_camera[2, 3] - 1)])


def _grid(size: int, samples: int) -> FloatArray:
    """Positions ((size samples)^2 x 2) of the samples of all pixels, row by row."""
    place = (np.arange(size * samples) + 0.5) / samples
    y, x = np.meshgrid(place, place, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], -1)


def _look(scene: _Scene, pixels: FloatArray) -> tuple[Hits, npt.NDArray[np.uint8], Surface]:
    hits = trace(scene.person, scene.shell, scene.pose, camera_rays(scene.intrinsics, pixels))
    on_shell = hits.part == Part.SHELL
    places = np.stack(angles(hits.place[on_shell] - scene.shell.centre), -1)
    labels = label(hits, places, scene.marks)
    return hits, labels, Surface(places=places, labels=labels[on_shell])


def _colours(scene: _Scene, pixels: FloatArray, hits: Hits, labels: npt.NDArray[np.uint8], surface: Surface) -> ByteImage:
    return colour(scene.person, hits, labels, surface, scene.marks, room(scene.person, scene.shot, pixels, scene.size))


def _averaged(scene: _Scene, samples: int) -> tuple[ByteImage, FloatArray]:
    """Image (s x s x 3) and matte (s x s) averaged over ``samples``^2 a pixel."""
    pixels = _grid(scene.size, samples)
    hits, labels, surface = _look(scene, pixels)
    blocks = (scene.size, samples, scene.size, samples)
    image = _colours(scene, pixels, hits, labels, surface).reshape(*blocks, 3).mean((1, 3))
    return np.asarray(np.rint(image), np.uint8), (labels != Region.BACKGROUND).reshape(blocks).mean((1, 3))
