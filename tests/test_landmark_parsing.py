"""The default parsing of a photograph, and the polygons and filters it is made of."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.depth_normals import DepthNormals
from datasets_toolkit.annotators.guided_filter import guided_filter
from datasets_toolkit.annotators.landmark_parsing import LandmarkParsing, connected, polygon
from datasets_toolkit.annotators.mesh_depth import MeshDepth
from datasets_toolkit.annotators.portrait import Annotations, Annotators, crop_face
from datasets_toolkit.errors import AssetError
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.schema import ByteImage, Face, FloatArray, Region

SIZE = 256


@pytest.fixture(scope="module")
def crop(astronaut: ByteImage, astronaut_face: Face) -> FaceCrop:
    return crop_face(astronaut, astronaut_face, SIZE)


@pytest.fixture(scope="module")
def seen(crop: FaceCrop) -> Annotations:
    """What the default annotators say of the astronaut."""
    with closing(Annotators(parsing=LandmarkParsing(), depth=MeshDepth(), normals=DepthNormals())) as chosen:
        return chosen(crop)


def region_at(seen: Annotations, x: float, y: float) -> Region:
    return Region(int(seen.parsing.labels[int(y), int(x)]))


def test_the_astronaut_is_parsed_as_anyone_would(crop: FaceCrop, seen: Annotations) -> None:
    points = crop.landmarks[:, :2]
    assert region_at(seen, *points[1]) == Region.NOSE
    assert region_at(seen, *points[151]) == Region.SKIN  # the forehead
    assert region_at(seen, *points[regions.LEFT_IRIS[0]]) == Region.LEFT_EYE
    assert region_at(seen, *points[regions.RIGHT_IRIS[0]]) == Region.RIGHT_EYE
    assert points[regions.LEFT_IRIS[0], 0] > points[regions.RIGHT_IRIS[0], 0]
    assert region_at(seen, *points[13:15].mean(0)) == Region.MOUTH  # she shows her teeth
    top, height = points[regions.FOREHEAD], np.ptp(points[:, 1])
    assert region_at(seen, top[0], top[1] - 0.2 * height) == Region.HAIR
    assert region_at(seen, SIZE * 0.6, SIZE - 2) == Region.TORSO
    for x, y in ((1, 1), (SIZE - 2, 1), (1, SIZE // 2), (SIZE - 2, SIZE // 2)):
        assert region_at(seen, x, y) == Region.BACKGROUND
        assert seen.parsing.matte[y, x] < 0.1


PARTS = {
    Region.LEFT_EYE: regions.LEFT_EYE,
    Region.RIGHT_EYE: regions.RIGHT_EYE,
    Region.NOSE: regions.NOSE,
    Region.UPPER_LIP: regions.UPPER_LIP,
    Region.LOWER_LIP: regions.LOWER_LIP,
    Region.MOUTH: regions.MOUTH_INNER,
}


@pytest.mark.parametrize("region", PARTS, ids=lambda region: region.name)
def test_parts_have_the_area_of_their_polygons(crop: FaceCrop, seen: Annotations, region: Region) -> None:
    area = shoelace(crop.landmarks[list(PARTS[region]), :2])
    assert (seen.parsing.labels == region).sum() == pytest.approx(area, rel=0.12)


def shoelace(corners: FloatArray) -> float:
    following = np.roll(corners, -1, 0)
    return 0.5 * abs(float((corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]).sum()))


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(3, 40))
def test_polygons_cover_the_area_of_the_shoelace_formula(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    turn, radius = 2 * np.pi / count * (np.arange(count) + generator.uniform(0.3, 0.7, count)), generator.uniform(5, 40, (count, 1))
    corners = generator.uniform(45, 55, 2) + radius * np.stack([np.cos(turn), np.sin(turn)], 1)
    ring = tuple(range(count))
    coverage = polygon(corners, ring, 100)
    assert coverage.min() >= 0
    assert coverage.max() <= 1
    around = np.linalg.norm(corners - np.roll(corners, -1, 0), axis=1).sum()
    assert abs(coverage.sum() - shoelace(corners)) < 0.02 * around + 0.02
    np.testing.assert_allclose(polygon(corners, ring[::-1], 100), coverage, atol=1e-5)
    whole = polygon(corners + 300, ring, 500)[300:400, 300:400]  # moved by whole pixels
    np.testing.assert_allclose(whole, coverage, atol=1e-4)


def test_polygons_know_parts_of_pixels_and_the_border() -> None:
    box = np.array([[-7.0, 1.25], [2.5, 1.25], [2.5, 3.0], [-7.0, 3.0]])
    expected = np.outer([0, 0.75, 1, 0], [1, 1, 0.5, 0])
    np.testing.assert_allclose(polygon(box, (0, 1, 2, 3), 4), expected, atol=1e-6)
    assert not polygon(box - 50, (0, 1, 2, 3), 4).any()
    np.testing.assert_allclose(polygon(100 * (box - [0, 2]), (0, 1, 2, 3), 4), 1)


def test_connected_keeps_the_parts_that_touch_the_seed() -> None:
    picture = ["##..#", "#...#", "..#..", ".##.#"]
    mask = np.array([[letter == "#" for letter in row] for row in picture])
    seed = np.zeros_like(mask)
    seed[0, 0] = seed[1, 1] = seed[3, 4] = True  # the middle one lies beside the mask
    kept = ["##...", "#....", ".....", "....#"]
    np.testing.assert_array_equal(connected(mask, seed), [[letter == "#" for letter in row] for row in kept])
    assert not connected(mask, np.zeros_like(mask)).any()


def slow_guided_filter(guide: FloatArray, image: FloatArray, radius: int, smoothness: float) -> FloatArray:
    """The equations of the paper, window by window, on images mirrored at the border."""

    def windows(values: FloatArray) -> FloatArray:
        padded = np.pad(values, radius, mode="symmetric")
        return np.lib.stride_tricks.sliding_window_view(padded, (2 * radius + 1, 2 * radius + 1))

    a, b = np.zeros_like(guide), np.zeros_like(guide)
    for y, x in np.ndindex(*guide.shape):
        one, two = windows(guide)[y, x], windows(image)[y, x]
        a[y, x] = ((one * two).mean() - one.mean() * two.mean()) / (one.var() + smoothness)
        b[y, x] = two.mean() - a[y, x] * one.mean()
    return windows(a).mean((2, 3)) * guide + windows(b).mean((2, 3))


@pytest.mark.parametrize(("radius", "smoothness"), [(1, 1e-3), (3, 1e-2), (0, 1e-3)])
def test_the_guided_filter_is_its_slow_twin(radius: int, smoothness: float) -> None:
    generator = np.random.default_rng(radius)
    guide, image = generator.uniform(size=(2, 17, 17)).astype(np.float32)
    expected = slow_guided_filter(guide.astype(np.float64), image.astype(np.float64), radius, smoothness)
    np.testing.assert_allclose(guided_filter(guide, image, radius, smoothness), expected, atol=2e-4)


def test_the_guided_filter_keeps_the_guides_edges_and_smooths_the_rest() -> None:
    step = np.tile((np.arange(40) >= 20).astype(np.float32), (40, 1))
    noisy = step + np.random.default_rng(0).normal(0, 0.1, step.shape).astype(np.float32)
    found = guided_filter(step, noisy, 5, 1e-4)
    assert found[:, 20:].min() - found[:, :20].max() > 0.85  # the edge of the guide
    assert np.abs(found - step).std() < 0.03
    blurred = guided_filter(np.full_like(step, 0.5), step, 5, 1e-4)  # a guide without the edge does not hold it
    assert np.abs(np.diff(blurred, axis=1)).max() < 0.2


def test_the_segmenter_can_be_looked_up_elsewhere(tmp_path: Path) -> None:

    with pytest.raises(AssetError, match="does not exist"):
        LandmarkParsing(tmp_path / "nowhere")
