"""Compiled loops of the annotators, of resampling and of the depth codec, each against a slow twin."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.annotators.mesh_kernels import fill_from_nearest, join_depth, nearest_depth, surface_normals
from datasets_toolkit.annotators.parsing_kernels import apply_lines, cover, fill, fill_rings, find_seeds, leads
from datasets_toolkit.faces.detection import source_to_crop
from datasets_toolkit.faces.resampling import BLUR, resample_square, taps
from datasets_toolkit.schema import ByteImage, FloatArray
from datasets_toolkit.shards.depth_kernels import quantise, split_differences

seeds = st.integers(0, 10**6)
PLANE, HALF = np.array([[0.3, 0.02, -6.0], [0.03, -0.3, 6.0]]), 4.0
"""A face in the middle of 40 x 40 pixels, leaning a little."""


def place(row: int, column: int) -> FloatArray:
    return PLANE @ np.array([column + 0.5, row + 0.5, 1])


def ramp(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_lines_are_evaluated_and_named_pixel_by_pixel(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lines = generator.normal(size=(6, 10, 40)).astype(np.float32)
    grey = generator.integers(0, 256, (40, 40), dtype=np.uint8)
    matte, labels, names = np.empty((40, 40), np.float32), np.empty((40, 40), np.uint8), np.arange(10, 17, dtype=np.uint8)
    apply_lines(matte, labels, grey, lines, PLANE, HALF, names)
    tall = np.stack([cv2.resize(one.T, (40, 40), interpolation=cv2.INTER_LINEAR).T for one in lines])  # along the columns only
    alpha, hair, torso = (tall[k] * (grey / 255) + tall[k + 1] for k in (0, 2, 4))
    alpha = (alpha - 0.1) * 1.25
    np.testing.assert_allclose(matte, alpha.clip(0, 1), atol=1e-4)
    clear = (np.abs(alpha - 0.5) > 1e-3) & (np.abs([hair, torso, hair - torso]).min(0) > 1e-3)
    for row, column in np.argwhere(clear):
        side, up = place(row, column)
        best = int(np.argmax([0, hair[row, column], torso[row, column]]))
        if min(abs(abs(side) - 6), *(abs(up / HALF - limit) for limit in (-0.6, 0.5, -0.35))) < 1e-4:
            continue  # on the line
        ear, neck = abs(side) > 6 and -0.6 * HALF < up < 0.5 * HALF, up < -0.35 * HALF
        skin = (13 if side > 0 else 14) if ear else 15 if neck else 16
        assert labels[row, column] == ((skin, 11, 12)[best] if alpha[row, column] > 0.5 else 10)


def test_seeds_and_leads_follow_the_anatomy() -> None:
    generator = np.random.default_rng(0)
    person, face = generator.uniform(size=(2, 40, 40)) < [[[0.8]], [[0.3]]]
    scores, found = generator.normal(0, 4, (3, 40, 40)).astype(np.float32), np.empty((2, 40, 40), np.float32)
    marked = np.empty((40, 40), np.uint8)
    find_seeds(marked, person, face, PLANE, HALF)
    leads(found, scores, PLANE, HALF, -12.0)
    for row, column in np.ndindex(40, 40):
        side, up = place(row, column)
        seed = 0
        if face[row, column]:
            seed = 2 * (abs(up) < 0.6 * HALF)
        elif person[row, column] and up > 0.6 * HALF and np.hypot(side, up) < 2 * HALF:
            seed = 1
        elif person[row, column] and up < -1.75 * HALF and abs(side) > 0.3 * HALF:
            seed = 3
        assert marked[row, column] == seed
        height, beside = up / HALF, ramp(abs(side), 0.55 * HALF, 1.3 * HALF)
        hair = 8 * ramp(height, 0.3, 0.9) - 4 * ramp(-height, 1.2, 2.4)
        skin = -6 * beside - 4 * ramp(-height, 1.6, 2.4) + 2 * (1 - beside) * ramp(-height, 0.8, 1)
        torso = 9 * ramp(-height, 1, 2) + 4 * beside * ramp(-height, 0.6, 1.1) - 14 * ramp(height, -0.8, -0.4)
        total = scores[:, row, column] + [hair, skin, torso]
        total = np.maximum(total, total.max() - 12)
        np.testing.assert_allclose(found[:, row, column], [total[0] - total[1], total[2] - total[1]], atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_polygons_are_painted_where_they_cover_more_than_half(seed: int) -> None:
    generator = np.random.default_rng(seed)
    points = generator.uniform(-10, 50, (12, 2))
    rings, ends, names = generator.permutation(12), np.array([4, 7, 12]), np.array([3, 5, 9], np.uint8)
    labels, expected = np.ones((40, 40), np.uint8), np.ones((40, 40), np.uint8)
    fill_rings(labels, points, rings, ends, names, 8)
    for ring, name in zip(np.split(rings, ends[:-1]), names, strict=True):
        share, alone = np.zeros((40, 40), np.float32), np.ones((40, 40), np.uint8)
        cover(share, points[ring], 8)
        fill(alone, points[ring], 8, name)
        apart = np.abs(share - 0.5) > 1e-5
        np.testing.assert_array_equal(alone[apart], np.where(share > 0.5, name, 1)[apart])
        expected[alone == name] = name
    np.testing.assert_array_equal(labels, expected)


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_the_nearest_surface_is_seen(seed: int) -> None:
    """Against the plane equations of each triangle, at every pixel."""
    generator = np.random.default_rng(seed)
    points, depth = generator.uniform(-10, 34, (9, 2)), generator.uniform(90, 110, 9)
    triangles = generator.integers(0, 9, (6, 3))
    image = np.zeros((24, 24), np.float32)
    nearest_depth(image, points, 1 / depth, triangles)
    y, x = np.mgrid[:24, :24] + 0.5
    nearest, doubtful = np.full((24, 24), np.inf), np.zeros((24, 24), bool)
    for corners in triangles:
        system = np.vstack([points[corners].T, np.ones(3)])
        if len(set(corners)) < 3 or abs(np.linalg.det(system)) < 1e-3:
            continue
        shares = np.einsum("ij,jhw->ihw", np.linalg.inv(system), np.stack([x, y, np.ones_like(x)]))
        inside = shares.min(0) > 1e-4
        doubtful |= np.abs(shares.min(0)) <= 1e-4
        nearest = np.where(inside, np.minimum(nearest, 1 / np.einsum("i,ihw->hw", 1 / depth[corners], shares)), nearest)
    expected = np.where(np.isfinite(nearest), nearest, 0)
    np.testing.assert_allclose(image[~doubtful], expected[~doubtful], rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 6))
def test_unknown_depth_is_that_of_the_nearest_pixel(seed: int, reach: int) -> None:
    generator = np.random.default_rng(seed)
    depth = np.where(generator.uniform(size=(23, 31)) < 0.02, generator.uniform(90, 110, (23, 31)), 0).astype(np.float32)
    wanted = cv2.dilate((depth > 0).astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
    filled = depth.copy()
    fill_from_nearest(filled, wanted, reach)
    places = np.argwhere(depth > 0)
    for row, column in np.ndindex(*depth.shape):
        if depth[row, column] > 0 or not wanted[row, column]:
            assert filled[row, column] == depth[row, column]
            continue
        distances = np.square(places - [row, column]).sum(1)
        distances = np.where(np.abs(places - [row, column]).max(1) <= reach, distances, 10**6)
        nearest = places[distances == distances.min()]
        assert filled[row, column] in depth[nearest[:, 0], nearest[:, 1]]


def test_normals_are_those_of_back_projected_neighbours() -> None:
    generator = np.random.default_rng(0)
    depth = cv2.GaussianBlur(generator.uniform(80, 120, (30, 40)).astype(np.float32), (0, 0), 4)
    known, focal, centre, top, left = generator.uniform(size=(30, 40)) < 0.8, 300.0, (25.0, 12.0), 3, 5
    found = np.full((30, 40, 3), 7, np.float32)
    surface_normals(found, depth, known, top, left, focal, *centre)
    y, x = np.mgrid[:30, :40] + 0.5
    points = np.stack([(x + left - centre[0]) / focal * depth, (y + top - centre[1]) / focal * depth, depth], -1)
    outward = np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1))
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    np.testing.assert_allclose(found[known], outward[known], atol=2e-3)
    assert not found[~known].any()


def test_mesh_and_surroundings_are_joined() -> None:
    generator = np.random.default_rng(0)
    around, mesh = generator.uniform(90, 110, (2, 9, 9)).astype(np.float32)
    mesh[generator.uniform(size=(9, 9)) < 0.5] = 0
    labels, is_head = generator.integers(0, 256, (9, 9), dtype=np.uint8), np.arange(256) % 3 == 0
    joined = around.copy()
    join_depth(joined, mesh, labels, is_head)
    np.testing.assert_array_equal(joined, np.where(labels % 3 == 0, np.where(mesh > 0, mesh, around), 0))


def warped(image: ByteImage, box: FloatArray, size: int) -> ByteImage:
    """The same resampling by OpenCV's general warp, after its Gaussian blur."""
    shrink = box[2] / size
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), BLUR * shrink), np.uint8) if shrink > 1 else image
    centres = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    matrix = (centres @ source_to_crop(box, size) @ np.linalg.inv(centres))[:2]
    flags = cv2.INTER_LINEAR if shrink > 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8)


@settings(deadline=None, max_examples=40)
@given(seeds, st.floats(20, 160), st.integers(16, 120), st.integers(1, 4))
def test_squares_are_resampled_as_a_general_warp_does(seed: int, side: float, size: int, channels: int) -> None:
    generator = np.random.default_rng(seed)
    image = cv2.GaussianBlur(generator.integers(0, 256, (200, 240, channels), dtype=np.uint8), (0, 0), 1.5).reshape(200, 240, channels)
    image = np.asarray(cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX), np.uint8).reshape(200, 240, channels)
    box = np.array([generator.uniform(15, 225 - side), generator.uniform(15, 185 - side), side])
    found, expected = resample_square(image, box, size), warped(image, box, size).reshape(size, size, channels)
    assert found.shape == (size, size, channels)
    assert np.abs(found.astype(int) - expected).max() <= 4  # OpenCV rounds places to 1/32 pixel and rounds twice
    assert abs(found.astype(float).mean() - expected.astype(float).mean()) < 0.3


@pytest.mark.parametrize("box", [(-60.0, -60.0, 30.0), (-15.5, 3.2, 20.0), (190.0, 150.0, 100.0), (300.0, 300.0, 40.0)])
def test_beyond_the_border_the_edge_is_repeated(box: tuple[float, ...]) -> None:
    image = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (160, 200, 3), dtype=np.uint8), (0, 0), 2)
    padded = np.pad(image, ((200, 200), (200, 200), (0, 0)), mode="edge")
    moved = np.array([box[0] + 200, box[1] + 200, box[2]])
    np.testing.assert_array_equal(resample_square(image, np.array(box), 32), resample_square(padded, moved, 32))


@settings(deadline=None)
@given(st.floats(-50, 50), st.floats(1, 300), st.integers(1, 80))
def test_taps_keep_constants_and_ramps(start: float, length: float, size: int) -> None:
    first, weights = taps(start, length, size)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    centres = start + (np.arange(size) + 0.5) * length / size - 0.5
    means = (weights * (first[:, None] + np.arange(weights.shape[1]))).sum(1)
    np.testing.assert_allclose(means, centres, atol=0.06 if length <= size else 1e-4)  # Keys's kernel with -0.75 bends ramps a little


@settings(deadline=None)
@given(seeds, st.integers(1, 40), st.integers(1, 20))
def test_depth_is_quantised_and_predicted_row_by_row(seed: int, height: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    depth = np.where(generator.uniform(size=(height, width)) < 0.7, generator.uniform(0, 600, (height, width)), 0).astype(np.float32)
    codes, planes = np.empty((height, width), np.uint16), np.empty((2, height, width), np.uint8)
    quantise(codes, depth, np.float32(100))
    np.testing.assert_array_equal(codes, np.maximum(np.floor(depth * np.float32(100) + np.float32(0.5)), depth > 0))
    split_differences(planes, codes)
    stored, known = planes[0].astype(int) + 256 * planes[1].astype(int) - 128, codes.astype(int)
    strides = [1 << power for power in range(10) if 1 << power < height]
    for row in range(1, height):
        stride = max(one for one in strides if row % one == 0)
        above = known[row - stride]
        predicted = above // 2 + known[row + stride] // 2 if row + stride < height else above
        np.testing.assert_array_equal((stored[row] + predicted) % 65536, known[row])
    np.testing.assert_array_equal(stored[0] % 65536, known[0])
