"""Depth and normals of surfaces whose answer is known in closed form."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from face_scenes import frontal_crop

from datasets_toolkit.annotators import Parsing
from datasets_toolkit.annotators.depth_normals import DepthNormals
from datasets_toolkit.annotators.mesh_depth import MeshDepth, rasterise_depth
from datasets_toolkit.faces.head_pose import canonical_face
from datasets_toolkit.schema import HEAD_REGIONS, FloatArray, Region


def everywhere(region: Region, size: int) -> Parsing:
    return Parsing(labels=np.full((size, size), region, np.uint8), matte=np.ones((size, size), np.float32))


def ellipsoid_heights() -> FloatArray:
    """Heights (canonical z) at which the mean face's vertices lie on an ellipsoid that holds them all."""
    x, y = canonical_face().vertices[:, 0], canonical_face().vertices[:, 1]
    return np.asarray(10 * np.sqrt(1 - (x / 10) ** 2 - (y / 12) ** 2))


def test_a_plane_has_its_closed_form_depth() -> None:
    x, y = canonical_face().vertices[:, 0], canonical_face().vertices[:, 1]
    crop = frontal_crop(4 + 0.3 * x - 0.2 * y, 128)
    depth = MeshDepth()(crop, everywhere(Region.SKIN, 128))
    v, u = (np.mgrid[:128, :128] + 0.5 - 64) * 24 / 128 / 110  # rays (u, v, 1); canonical z = 110 - depth, x = u depth, y = -v depth
    expected = 106 / (1 + 0.3 * u + 0.2 * v)
    inside = rasterise_depth(crop, 128) > 0
    assert inside.sum() > 3000
    np.testing.assert_allclose(depth[inside], expected[inside], atol=0.01)


def test_an_ellipsoid_has_its_closed_form_depth_and_normals() -> None:
    crop = frontal_crop(ellipsoid_heights(), 128)
    parsing = everywhere(Region.SKIN, 128)
    depth = MeshDepth()(crop, parsing)
    v, u = (np.mgrid[:128, :128] + 0.5 - 64) * 24 / 128 / 110
    a = (u / 10) ** 2 + (v / 12) ** 2 + 0.01  # |(u Z / 10, v Z / 12, (110 - Z) / 10)| = 1
    expected = (1.1 - np.sqrt((1.1**2 - 120 * a).clip(0))) / a
    inside = cv2.erode((rasterise_depth(crop, 128) > 0).astype(np.uint8), np.ones((5, 5))) > 0
    assert inside.sum() > 2500
    np.testing.assert_allclose(depth[inside], expected[inside], atol=0.15)  # the mesh's facets lie below the surface they span
    normals = DepthNormals()(crop, parsing, np.where(a < 0.01, 0, expected).astype(np.float32))
    outward = np.stack([u * expected / 100, v * expected / 144, (expected - 110) / 100], -1)
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    middle = (slice(32, 96), slice(32, 96))
    np.testing.assert_allclose(normals[middle], outward[middle], atol=0.02)


def test_the_face_continues_into_the_head_without_a_step() -> None:
    crop = frontal_crop(ellipsoid_heights(), 128)
    depth = MeshDepth()(crop, everywhere(Region.HAIR, 128))
    mesh = rasterise_depth(crop, 128) > 0
    assert (depth > 0).all()
    for axis in (0, 1):
        rim = np.diff(mesh.astype(int), axis=axis) != 0
        assert rim.sum() > 100
        assert np.abs(np.diff(depth, axis=axis))[rim].max() < 1
        assert np.abs(np.diff(depth, axis=axis))[~rim].max() < 2


def test_far_from_the_face_the_depth_is_that_of_a_head() -> None:
    crop = frontal_crop(canonical_face().vertices[:, 2], 128)
    depth = MeshDepth()(crop, everywhere(Region.HAIR, 128))
    assert 98 < depth[20, 64] < 112  # the crown lies behind the forehead and before the back of the head
    assert depth[12, 64] > depth[40, 64]
    assert depth[64, 4] > depth[64, 40]
    np.testing.assert_allclose(depth, depth[:, ::-1], atol=0.25)  # a symmetric face on a symmetric head


def test_depth_is_given_where_the_parsing_shows_a_head_and_nowhere_else() -> None:
    crop = frontal_crop(canonical_face().vertices[:, 2], 64)
    for region in Region:
        assert (MeshDepth()(crop, everywhere(region, 64)) > 0).all() == (region in HEAD_REGIONS)
        assert (MeshDepth()(crop, everywhere(region, 64)) == 0).all() == (region not in HEAD_REGIONS)


def test_the_nearest_surface_hides_what_lies_behind() -> None:
    crop = frontal_crop(canonical_face().vertices[:, 2], 96)
    shown = rasterise_depth(crop, 96)
    assert shown[shown > 0].min() == pytest.approx(110 - canonical_face().vertices[:, 2].max(), abs=0.3)
    tip = np.unravel_index(np.where(shown > 0, shown, np.inf).argmin(), shown.shape)
    np.testing.assert_allclose(np.array(tip[::-1]) + 0.5, crop.landmarks[[1, 4], :2].mean(0), atol=3)


def test_a_plane_of_depth_has_one_normal() -> None:
    crop = frontal_crop(canonical_face().vertices[:, 2], 64)
    v, u = (np.mgrid[:64, :64] + 0.5 - 32) * 24 / 64 / 110
    depth = (100 / (1 - 0.4 * u + 0.3 * v)).astype(np.float32)  # 1 - 0.4 x + 0.3 y ... of the plane Z - 0.4 X + 0.3 Y = 100
    depth[:10] = 0
    normals = DepthNormals(smoothing=0.0)(crop, everywhere(Region.SKIN, 64), depth)
    expected = np.array([0.4, -0.3, -1]) / np.sqrt(1.25)
    np.testing.assert_allclose(normals[12:], np.broadcast_to(expected, (52, 64, 3)), atol=2e-3)
    assert (normals[:10] == 0).all()
