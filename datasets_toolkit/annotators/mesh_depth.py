"""Depth of the whole head from the tracked face mesh: exact on the face, continued smoothly over hair, ears and neck.

Outside the face a coarse anatomical head (an ellipsoid for the skull, a cylinder for the neck, scaled to the person) gives a prior; the
difference between mesh and prior at the rim of the face is carried outwards by a screened Poisson equation, so that depth and slope
continue from the face and return to the prior a few centimetres away. All that lies outside the face is smooth: it is worked out on a
coarse grid and interpolated.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from datasets_toolkit.annotators.base import DepthAnnotator, FaceCrop, Map, Parsing
from datasets_toolkit.annotators.mesh_kernels import head_depth, join_depth, nearest_depth, upper_head
from datasets_toolkit.annotators.poisson import screened_poisson
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.faces.head_pose import canonical_face
from datasets_toolkit.schema import HEAD_REGIONS, FloatArray

MASK = npt.NDArray[np.bool_]
SKULL_CENTRE, SKULL_RADII = np.array([0.0, 2.6, -0.6]), np.array([8.4, 11.0, 9.4])
"""Of an average head with hair in canonical space, cm: 22 cm from chin to crown and 19 cm long, plus a centimetre of hair."""
NECK_CENTRE, NECK_RADIUS = np.array([0.0, -12.0, -1.5]), 5.8
BEHIND = -1.0
"""How far in front of the head's origin (cm of depth) the prior ends: hair beside the neck lies behind the face, but not at infinity."""
REACH = 8.0
"""Length (cm) over which the depth returns from the face mesh to the prior."""
GRID = 128
"""Cells a side of the grid for all that lies outside the face."""
_IS_HEAD = np.isin(np.arange(256), HEAD_REGIONS)


class MeshDepth(DepthAnnotator):
    """The default depth annotator."""

    version = 3

    def __call__(self, crop: FaceCrop, parsing: Parsing) -> Map:
        """Depth (s x s, cm) wherever ``parsing`` shows a part of the head; 0 elsewhere."""
        mesh = rasterise_depth(crop, len(crop.image))
        around = _continued(mesh, _IS_HEAD[cv2.resize(parsing.labels, (GRID, GRID), interpolation=cv2.INTER_NEAREST)], crop)
        depth = np.asarray(cv2.resize(around, mesh.shape, interpolation=cv2.INTER_CUBIC), np.float32)
        join_depth(depth, mesh, parsing.labels, _IS_HEAD)
        return depth


def rasterise_depth(crop: FaceCrop, size: int) -> Map:
    """Depth (size x size, cm) of the tracked mesh, eyes and mouth closed by fans; 0 outside. Nearest surface first (z-buffer)."""
    depth = crop.head_to_camera[2, :3] @ crop.mesh.T + crop.head_to_camera[2, 3]
    values = np.column_stack([crop.landmarks[:, :2], depth])
    values = np.concatenate([values, [values[list(ring)].mean(0) for ring in _OPENINGS]])
    image = np.zeros((size, size), np.float32)
    nearest_depth(image, values[:, :2], 1 / values[:, 2], _closed_triangles())
    return image


_OPENINGS = (regions.LEFT_EYE, regions.RIGHT_EYE, regions.MOUTH_INNER)


@lru_cache(maxsize=1)
def _closed_triangles() -> npt.NDArray[np.int64]:
    """Those of the mesh, and a fan around the centre of each eye and of the mouth, where it is open; the centres follow the vertices."""
    triangles = [canonical_face().triangles]
    for centre, ring in enumerate(_OPENINGS, len(canonical_face().vertices)):
        following = ring[1:] + ring[:1]
        triangles.append(np.array([(centre, a, b) for a, b in zip(ring, following, strict=True)]))
    return np.concatenate(triangles)


def head_prior(crop: FaceCrop, head: MASK) -> Map:
    """Depth (n x n, cm) at which rays meet the anatomical head, or pass it most closely.

    The skull is widened until it holds the hair that ``head`` (n x n, the crop on any grid) shows.
    """
    size = len(head)
    rotation, shift = crop.head_to_camera[:3, :3], crop.head_to_camera[:3, 3]
    step = len(crop.image) / size
    rays, origin = (np.linalg.inv(crop.intrinsics) * [step, step, 1]).T @ rotation, -rotation.T @ shift
    grown = _growth(crop)
    radii = SKULL_RADII * grown * _hair_room(rays, origin, grown, head)
    inverse, neck = 1 / radii, np.array([1, 0, 1]) / (NECK_RADIUS * grown.mean())
    starts = (origin - SKULL_CENTRE * grown) * inverse, (origin - NECK_CENTRE * grown) * neck
    prior = np.empty((size, size), np.float32)
    limits = 0.5 * NECK_CENTRE[1], shift[2] - 12, shift[2] - BEHIND
    head_depth(prior, rays, inverse, neck, *starts, origin[1], *limits)
    return np.asarray(cv2.GaussianBlur(prior, (0, 0), size / 100), np.float32)  # no creases where the parts meet


def _hair_room(rays: FloatArray, origin: FloatArray, grown: FloatArray, head: MASK) -> FloatArray:
    """How much wider and higher than an average skull (3 factors, depth stays) the head with its hair is."""
    wide, high = upper_head(head, rays, origin - SKULL_CENTRE * grown, SKULL_RADII * grown)
    if len(wide) < 50:
        return np.ones(3)
    wide, high = np.percentile(wide, 99), np.percentile(high, 99)
    return np.asarray(np.clip([wide * 1.03, high * 1.03, 1.0], [0.95, 0.95, 1.0], [1.7, 1.5, 1.0]))


def _growth(crop: FaceCrop) -> FloatArray:
    """Width, height and depth of this face in units of the mean face (3)."""
    oval = list(regions.FACE_OVAL)
    growth = np.ptp(crop.mesh[oval], 0) / np.ptp(canonical_face().vertices[oval], 0)
    return np.asarray(np.clip(growth, 0.85, 1.2))


def _continued(mesh: Map, head: MASK, crop: FaceCrop) -> Map:
    """Depth (g x g, cm) of face (``mesh``, s x s) and all around it; ``head`` (g x g) is where the parsing shows one.

    ``(Laplacian - 1 / REACH^2) u = 0`` is solved outside the face with ``u = mesh - prior`` on it.
    """
    covered = np.asarray(cv2.resize((mesh > 0).astype(np.float32), head.shape, interpolation=cv2.INTER_AREA))
    known = covered > 0.5
    prior = head_prior(crop, head | known)
    value = cv2.resize(mesh, head.shape, interpolation=cv2.INTER_AREA) / np.maximum(covered, np.float32(0.5)) - prior
    step = crop.head_to_camera[2, 3] / crop.intrinsics[0, 0] * len(mesh) / len(head)
    return np.asarray(prior + screened_poisson(value.astype(np.float64), known, (step / REACH) ** 2), np.float32)
