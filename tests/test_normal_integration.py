"""Depth from normals against surfaces known in closed form and a dense solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
from face_scenes import frontal_crop
from hypothesis import given, settings
from hypothesis import strategies as st
from integration_twin import CENTRE, dense

from datasets_toolkit.annotators import DepthAnnotator, FaceCrop, NormalAnnotator, Parsing
from datasets_toolkit.annotators.mesh_depth import MeshDepth
from datasets_toolkit.annotators.normal_integration import IntegratedDepth, integrate_normals
from datasets_toolkit.errors import UserError
from datasets_toolkit.faces.head_pose import canonical_face
from datasets_toolkit.schema import FloatArray, Region

SIDE = 64
INTRINSICS = np.array([[3.0 * SIDE, 0, SIDE / 2 + 3], [0, 2.8 * SIDE, SIDE / 2 - 2], [0, 0, 1]])
Surface = tuple[FloatArray, FloatArray, np.ndarray]


def rays(intrinsics: FloatArray = INTRINSICS, size: int = SIDE) -> FloatArray:
    y, x = np.mgrid[:size, :size] + 0.5
    return np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics).T


def plane(tilt: tuple[float, float] = (0.5, -0.3)) -> Surface:
    normal = np.array([*tilt, -1.0]) / np.linalg.norm([*tilt, 1.0])
    return 60 * normal[2] / (rays() @ normal), np.broadcast_to(normal, (SIDE, SIDE, 3)), np.ones((SIDE, SIDE), bool)


def sphere(ray: FloatArray, centre: FloatArray, radius: float, limit: float = 0.3) -> Surface:
    """Up to where it is seen at a slant of ``limit`` (the cosine)."""
    square, along = (ray**2).sum(-1), ray @ centre
    inside = along**2 - square * (centre @ centre - radius**2)
    depth = (along - np.sqrt(inside.clip(0))) / square
    normals = (depth[..., None] * ray - centre) / radius
    slant = -(normals * ray).sum(-1) / np.sqrt(square)
    return depth, normals, (inside > 0) & (slant > limit)


BALL = sphere(rays(), np.array([0.0, 0, 60]), 8.0)


def flat(depth: FloatArray, mask: np.ndarray) -> FloatArray:
    """A constant that leaves the shape to the normals and says where the surface is: the geometric mean."""
    return np.full_like(depth, np.exp(np.log(depth[mask]).mean()))


@given(tilt=st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6)))
@settings(deadline=None, max_examples=10)
def test_a_plane_is_integrated(tilt: tuple[float, float]) -> None:
    depth, normals, mask = plane(tilt)
    found = integrate_normals(normals, flat(depth, mask), mask, INTRINSICS, prior_weight=1e-6, tolerance=1e-9)
    assert np.abs(found - depth).max() < 0.005 * np.ptp(depth) + 0.01  # so weak a prior leaves the place to rounding


def test_a_sphere_is_integrated() -> None:
    depth, normals, mask = BALL
    found = integrate_normals(normals, flat(depth, mask), mask, INTRINSICS, prior_weight=1e-6, tolerance=1e-9)
    error = np.abs(found - depth)[mask]
    assert error.max() < 0.015 * np.ptp(depth[mask])
    assert error.mean() < 0.005 * np.ptp(depth[mask])
    assert (found[~mask] == 0).all()


def test_a_step_edge_survives() -> None:
    """A square in front of a wall, the coarse depth wrong by a wave on both: the wave goes, the step stays where it was."""
    depth = np.full((SIDE, SIDE), 60.0)
    depth[16:48, 20:44] -= 4
    normals, mask = np.broadcast_to([0.0, 0, -1], (SIDE, SIDE, 3)), np.ones((SIDE, SIDE), bool)
    coarse = depth + 0.4 * np.sin(np.arange(SIDE) * 2 * np.pi / 8)
    found = integrate_normals(normals, coarse, mask, INTRINSICS, prior_weight=1.0, iterations=30, tolerance=1e-9)
    assert np.abs(found - depth).max() < 0.1
    smooth = integrate_normals(normals, coarse, mask, INTRINSICS, prior_weight=1.0, sharpness=0.0, iterations=30)
    assert np.abs(smooth - depth).mean() > 1  # without the bilateral weights the wall and the square become one slope


def random_problem(seed: int, height: int, width: int) -> tuple[FloatArray, FloatArray, np.ndarray]:
    generator = np.random.default_rng(seed)
    normals = 0.3 * generator.normal(size=(height, width, 3)) - [0, 0, 1]
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return 50 + generator.uniform(size=(height, width)), normals, generator.uniform(size=(height, width)) > 0.25


@given(seed=st.integers(0, 10**6), prior_weight=st.floats(0.1, 100), sharpness=st.floats(0, 4))
@settings(deadline=None, max_examples=15)
def test_one_reweighting_agrees_with_dense_least_squares(seed: int, prior_weight: float, sharpness: float) -> None:
    coarse, normals, mask = random_problem(seed, 7, 6)
    intrinsics = np.array([[20.0, 0, CENTRE[0]], [0, 22, CENTRE[1]], [0, 0, 1]])
    found = integrate_normals(normals, coarse, mask, intrinsics, prior_weight=prior_weight, sharpness=sharpness, iterations=1)
    np.testing.assert_allclose(found[mask], dense(normals, coarse, mask, prior_weight, sharpness, np.array([20.0, 22])), rtol=1e-9)


@pytest.mark.parametrize("case", ["empty mask", "zero depth", "bad normal", "no prior"])
def test_integration_refuses_what_it_cannot_solve(case: str) -> None:
    depth, normals, mask = (array.copy() for array in BALL)
    if case == "empty mask":
        mask[:] = False
    elif case == "zero depth":
        depth[32, 32] = 0
    elif case == "bad normal":
        normals[32, 32] = math.nan
    with pytest.raises(ValueError, match="normal integration needs"):
        integrate_normals(normals, depth, mask, INTRINSICS, prior_weight=0.0 if case == "no prior" else 1.0)


class BallNormals(NormalAnnotator):
    """The normals of a ball of 11 cm, 110 cm away."""

    version = 1

    def surface(self, crop: FaceCrop) -> Surface:
        return sphere(rays(crop.intrinsics, len(crop.image)), np.array([0, 0, 110.0]), 11.0, limit=0.2)

    def __call__(self, crop: FaceCrop, parsing: Parsing, depth: np.ndarray) -> np.ndarray:
        return np.where((depth > 0)[..., None], self.surface(crop)[1], 0).astype(np.float32)


class LumpyDepth(DepthAnnotator):
    """The same ball with lumps: right in the large, wrong in the small."""

    version = 1

    def __call__(self, crop: FaceCrop, parsing: Parsing) -> np.ndarray:
        depth, _, mask = BallNormals().surface(crop)
        lumps = np.sin(2 * np.pi / 16 * np.arange(len(depth)))
        return np.where(mask & (parsing.labels > 0), depth + 0.5 * lumps * lumps[:, None], 0).astype(np.float32)

    def provenance(self) -> dict[str, str]:
        return {"weights": "lumps", "sha256": "0", "licence": "free"}


def test_the_annotator_takes_shape_from_normals_and_place_from_depth() -> None:
    crop = frontal_crop(np.zeros(len(canonical_face().vertices)), 128)
    skin = Parsing(labels=np.full((128, 128), Region.SKIN, np.uint8), matte=np.ones((128, 128), np.float32))
    annotator = IntegratedDepth(BallNormals(), coarse=LumpyDepth())
    found, (wanted, _, mask) = annotator(crop, skin), BallNormals().surface(crop)
    before = np.abs(LumpyDepth()(crop, skin) - wanted)[mask]
    after = np.abs(found - wanted)[mask]
    assert before.mean() > 0.18
    assert after.mean() < 0.2 * before.mean()
    assert found.dtype == np.float32
    assert (found[~mask] == 0).all()
    assert annotator.provenance() == {"weights": "lumps", "sha256": "0", "licence": "free"}
    nobody = Parsing(labels=np.zeros((128, 128), np.uint8), matte=np.zeros((128, 128), np.float32))
    assert not annotator(crop, nobody).any()


def test_the_annotator_refuses_other_families_and_priors() -> None:
    with pytest.raises(UserError, match="prior_weight 0"):
        IntegratedDepth(BallNormals(), prior_weight=0.0)
    with pytest.raises(UserError, match="normals family"):
        IntegratedDepth(MeshDepth().spec())
    with pytest.raises(UserError, match="depth family"):
        IntegratedDepth(BallNormals(), coarse={"class_path": "datasets_toolkit.annotators.depth_normals.DepthNormals"})
