"""Depth of the whole head from the tracked face mesh: exact on the face, continued smoothly over hair, ears and neck.

Outside the face a coarse anatomical head (an ellipsoid for the skull, a cylinder for the neck, scaled to the person) gives a prior; the
difference between mesh and prior at the rim of the face is carried outwards by a screened Poisson equation, so that depth and slope
continue from the face and return to the prior a few centimetres away.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csc_matrix, diags
from scipy.sparse.linalg import spsolve

from datasets_toolkit import face_regions as regions
from datasets_toolkit.annotators.base import DepthAnnotator, FaceCrop, Map, Parsing
from datasets_toolkit.head_pose import canonical_face
from datasets_toolkit.schema import HEAD_REGIONS, FloatArray

MASK = npt.NDArray[np.bool_]
SKULL_CENTRE, SKULL_RADII = np.array([0.0, 2.6, -0.6]), np.array([8.4, 11.0, 9.4])
"""Of an average head with hair in canonical space, cm: 22 cm from chin to crown and 19 cm long, plus a centimetre of hair."""
NECK_CENTRE, NECK_RADIUS = np.array([0.0, -12.0, -1.5]), 5.8
BEHIND = -1.0
"""How far in front of the head's origin (cm of depth) the prior ends: hair beside the neck lies behind the face, but not at infinity."""
REACH = 8.0
"""Length (cm) over which the depth returns from the face mesh to the prior."""
SOLVE_SIZE = 128


class MeshDepth(DepthAnnotator):
    """The default depth annotator."""

    version = 2

    def __call__(self, crop: FaceCrop, parsing: Parsing) -> Map:
        """Depth (s x s, cm) wherever ``parsing`` shows a part of the head; 0 elsewhere."""
        size = len(crop.image)
        mesh = rasterise_depth(crop, size)
        head = np.isin(parsing.labels, HEAD_REGIONS)
        prior = head_prior(crop, head | (mesh > 0))
        depth = prior + _continued(mesh, prior, crop)
        depth = np.where(mesh > 0, mesh, depth)
        return np.asarray(np.where(head, depth, 0), np.float32)


def rasterise_depth(crop: FaceCrop, size: int) -> Map:
    """Depth (size x size, cm) of the tracked mesh, eyes and mouth closed by fans; 0 outside. Nearest surface first (z-buffer)."""
    depth = crop.head_to_camera[2, :3] @ crop.mesh.T + crop.head_to_camera[2, 3]
    points, depth, triangles = _close_openings(crop.landmarks[:, :2], depth)
    image = np.full((size, size), np.inf)
    for triangle in triangles:
        _fill(image, points[triangle], 1 / depth[triangle])
    return np.asarray(np.where(np.isfinite(image), image, 0), np.float32)


def _close_openings(points: FloatArray, depth: FloatArray) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64]]:
    """Add a fan around the centre of each eye and of the mouth, where the mesh is open."""
    triangles = [canonical_face().triangles]
    for ring in (regions.LEFT_EYE, regions.RIGHT_EYE, regions.MOUTH_INNER):
        centre = len(points)
        points = np.concatenate([points, points[list(ring)].mean(0, keepdims=True)])
        depth = np.append(depth, depth[list(ring)].mean())
        following = ring[1:] + ring[:1]
        triangles.append(np.array([(centre, a, b) for a, b in zip(ring, following, strict=True)]))
    return points, depth, np.concatenate(triangles)


def _fill(image: FloatArray, corners: FloatArray, inverse_depth: FloatArray) -> None:
    """Write the nearer of the image and one triangle; 1/z is linear in the image of a plane."""
    size = len(image)
    low = np.clip(np.floor(corners.min(0) - 0.5), 0, size).astype(int)
    high = np.clip(np.ceil(corners.max(0) + 0.5), 0, size).astype(int)
    if (high <= low).any():
        return
    edges = np.stack([corners[1] - corners[0], corners[2] - corners[0]], 1)
    area = edges[0, 0] * edges[1, 1] - edges[0, 1] * edges[1, 0]
    if abs(area) < 1e-9:
        return
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]] + 0.5
    dx, dy = x - corners[0, 0], y - corners[0, 1]
    b = (dx * edges[1, 1] - dy * edges[0, 1]) / area
    c = (dy * edges[0, 0] - dx * edges[1, 0]) / area
    inside = (b >= -1e-6) & (c >= -1e-6) & (b + c <= 1 + 1e-6)
    value = inverse_depth[0] + b * (inverse_depth[1] - inverse_depth[0]) + c * (inverse_depth[2] - inverse_depth[0])
    view = image[low[1] : high[1], low[0] : high[0]]
    np.copyto(view, np.minimum(view, 1 / value), where=inside)


def head_prior(crop: FaceCrop, head: MASK) -> FloatArray:
    """Depth (s x s, cm) at which each pixel's ray meets the anatomical head, or passes it most closely.

    The skull is widened until it holds the hair that ``head`` (s x s) shows.
    """
    size = len(head)
    y, x = np.mgrid[:size, :size] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(crop.intrinsics).T
    rotation, shift = crop.head_to_camera[:3, :3], crop.head_to_camera[:3, 3]
    rays, origin = rays @ rotation, -rotation.T @ shift
    grown = _growth(crop)
    radii = SKULL_RADII * grown * _hair_room(rays, origin, grown, head)
    skull, _ = _quadric(rays, origin, SKULL_CENTRE * grown, 1 / radii)
    neck, neck_hit = _quadric(rays, origin, NECK_CENTRE * grown, np.array([1, 0, 1]) / (NECK_RADIUS * grown.mean()))
    below = (origin[1] + neck * rays[..., 1]) < 0.5 * NECK_CENTRE[1]
    prior = np.clip(skull, shift[2] - 12, shift[2] - BEHIND)
    prior = np.where((neck_hit > 0) & below, np.minimum(prior, neck), prior)
    return np.asarray(cv2.GaussianBlur(prior, (0, 0), size / 100))  # no creases where the parts meet


def _hair_room(rays: FloatArray, origin: FloatArray, grown: FloatArray, head: MASK) -> FloatArray:
    """How much wider and higher than an average skull (3 factors, depth stays) the head with its hair is."""
    centre, radii = SKULL_CENTRE * grown, SKULL_RADII * grown
    along = -(rays * (origin - centre)).sum(-1) / (rays**2).sum(-1)
    nearest = (origin - centre + along[..., None] * rays)[head] / radii
    upper = nearest[nearest[:, 1] > -0.4]
    if len(upper) < 50:
        return np.ones(3)
    wide, high = np.percentile(np.abs(upper[:, 0]), 99), np.percentile(upper[:, 1], 99)
    return np.asarray(np.clip([wide * 1.03, high * 1.03, 1.0], [0.95, 0.95, 1.0], [1.7, 1.5, 1.0]))


def _growth(crop: FaceCrop) -> FloatArray:
    """Width, height and depth of this face in units of the mean face (3)."""
    oval = list(regions.FACE_OVAL)
    growth = np.ptp(crop.mesh[oval], 0) / np.ptp(canonical_face().vertices[oval], 0)
    return np.asarray(np.clip(growth, 0.85, 1.2))


def _quadric(rays: FloatArray, origin: FloatArray, centre: FloatArray, inverse_radii: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Ray parameter of the first hit (or closest approach) with ``|(X - centre) * inverse_radii| = 1``, and the discriminant (> 0: hit).

    A ray's parameter is camera depth, for the rays have unit depth.
    """
    direction, start = rays * inverse_radii, (origin - centre) * inverse_radii
    a = (direction**2).sum(-1).clip(1e-9)
    b = direction @ start
    discriminant = (b / a) ** 2 - (start @ start - 1) / a
    return -b / a - np.sqrt(discriminant.clip(0)), discriminant * a


def _continued(mesh: Map, prior: FloatArray, crop: FaceCrop) -> FloatArray:
    """Solve ``(Laplacian - 1 / REACH^2) u = 0`` outside the face with ``u = mesh - prior`` on it (size x size)."""
    size = len(mesh)
    small = (SOLVE_SIZE, SOLVE_SIZE)
    covered = cv2.resize((mesh > 0).astype(np.float32), small, interpolation=cv2.INTER_AREA)
    difference = cv2.resize(np.where(mesh > 0, mesh - prior, 0).astype(np.float32), small, interpolation=cv2.INTER_AREA)
    known = covered > 0.5
    value = np.where(known, difference / covered.clip(1e-6), 0).astype(np.float64)
    step = crop.head_to_camera[2, 3] / crop.intrinsics[0, 0] * size / SOLVE_SIZE
    return np.asarray(cv2.resize(_screened_poisson(value, known, (step / REACH) ** 2), (size, size), interpolation=cv2.INTER_CUBIC))


def _screened_poisson(value: FloatArray, known: MASK, screen: float) -> FloatArray:
    """``u = value`` where known; elsewhere ``sum of differences to neighbours + screen u = 0``, free at the image border."""
    index = np.arange(value.size).reshape(value.shape)
    pairs = np.concatenate(
        [np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], 1), np.stack([index[:-1].ravel(), index[1:].ravel()], 1)]
    )
    ones = np.ones(len(pairs))
    links = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(value.size, value.size))
    links = links + links.T
    system = csc_matrix(diags(np.asarray(links.sum(1)).ravel() + screen) - links)
    free, fixed = np.flatnonzero(~known.ravel()), np.flatnonzero(known.ravel())
    solution = value.ravel().copy()
    if len(free) and len(fixed):
        solution[free] = spsolve(system[free][:, free], -system[free][:, fixed] @ solution[fixed])
    return solution.reshape(value.shape)
