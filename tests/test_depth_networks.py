"""From a network's depth and normals to centimetres and to the camera frame."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import network_weights as made
import numpy as np
import pytest
import torch
from annotator_scenes import SMALL, everywhere, small_crop
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.annotators import FaceCrop, Parsing
from datasets_toolkit.annotators.alignment import EXTENT, align_to_mesh, facing_normals, robust_affine
from datasets_toolkit.annotators.depth_diffusers import MarigoldDepth
from datasets_toolkit.annotators.depth_transformers import TransformersDepth
from datasets_toolkit.annotators.geowizard import GeoWizardDepth
from datasets_toolkit.annotators.mesh_depth import rasterise_depth
from datasets_toolkit.annotators.normals_diffusers import MarigoldNormals
from datasets_toolkit.errors import AssetError, NoFaceError, UserError
from datasets_toolkit.schema import FloatArray, Region

for package in ("onnx", "onnxruntime", "transformers", "diffusers"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def crop() -> FaceCrop:
    return small_crop()


@given(seed=st.integers(0, 10**6), slope=st.floats(-50, 50), level=st.floats(-100, 100), wrong=st.floats(0, 0.35))
@settings(deadline=None)
def test_the_affine_fit_ignores_what_does_not_belong(seed: int, slope: float, level: float, wrong: float) -> None:
    generator = np.random.default_rng(seed)
    values = generator.uniform(-1, 1, 400)
    target = slope * values + level
    gross = generator.uniform(size=400) < wrong
    target[gross] += generator.uniform(5, 50, gross.sum()) * (1 + abs(slope))
    values[gross] += generator.uniform(-1, 3)  # the far ones pull most
    found = robust_affine(values, target)
    np.testing.assert_allclose(found, [slope, level], atol=1e-6 * (1 + abs(slope) + abs(level)))


def test_the_affine_fit_weighs_noise_like_least_squares() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(3, 1, 5000)
    target = 2 * values - 5 + 0.1 * generator.normal(size=5000)
    plain = np.polyfit(values, target, 1)
    np.testing.assert_allclose(robust_affine(values, target), plain, atol=1e-3)
    assert robust_affine(np.ones(9), np.arange(9.0)) == (0.0, 4.0)


@pytest.mark.parametrize("inverse", [True, False])
def test_alignment_undoes_a_known_distortion(crop: FaceCrop, inverse: bool) -> None:
    """The mesh is the truth; a network gives it up to scale and shift, is wrong on a quarter of the face, and wild beyond it."""
    truth = rasterise_depth(crop, SMALL).astype(np.float64)
    face = truth > 0
    relative = np.where(face, 730 / np.where(face, truth, 1) - 2.5 if inverse else 0.013 * truth - 0.4, 77)
    hand = face & (np.mgrid[:SMALL, :SMALL][1] > 72) & (np.mgrid[:SMALL, :SMALL][0] > 60)
    assert 0.1 < hand.sum() / face.sum() < 0.3
    relative[hand] += 0.5
    found = align_to_mesh(relative.astype(np.float32), crop, everywhere(Region.SKIN), inverse=inverse)
    np.testing.assert_allclose(found[face & ~hand], truth[face & ~hand], atol=0.01)
    assert found.dtype == np.float32
    assert (np.abs(found - 110) <= EXTENT + 1e-3).all()
    assert (found[~face] == (110 - EXTENT if inverse else 110 + EXTENT)).all()  # 77 is far from anything a head does


def test_alignment_looks_at_the_face_only(crop: FaceCrop) -> None:
    truth = rasterise_depth(crop, SMALL)
    face = truth > 0
    labels = np.full((SMALL, SMALL), Region.SKIN, np.uint8)
    fringe = np.mgrid[:SMALL, :SMALL][0] < 62
    labels[fringe], labels[:, :8] = Region.HAIR, Region.BACKGROUND
    relative = np.where(fringe, 0, 0.013 * truth - 0.4)  # hair that hangs before more than half of the face
    found = align_to_mesh(relative.astype(np.float32), crop, Parsing(labels=labels, matte=np.ones_like(truth)), inverse=False)
    np.testing.assert_allclose(found[face & ~fringe], truth[face & ~fringe], atol=0.01)
    assert (found[:, :8] == 0).all()


def test_a_map_that_runs_against_the_mesh_is_flat_and_told(crop: FaceCrop, caplog: pytest.LogCaptureFixture) -> None:
    truth = rasterise_depth(crop, SMALL)
    with caplog.at_level(logging.WARNING):
        found = align_to_mesh(-truth, crop, everywhere(Region.SKIN), inverse=False)
    assert "runs against the face mesh" in caplog.text
    assert np.ptp(found) == 0
    assert found[0, 0] == pytest.approx(np.median(truth[truth > 0]), abs=1e-3)
    beyond = FaceCrop(**{**vars(crop), "landmarks": crop.landmarks + 1000})
    with pytest.raises(NoFaceError, match="outside its crop"):
        align_to_mesh(truth, beyond, everywhere(Region.SKIN), inverse=False)


class Answer:
    """A network that answers what it is told to."""

    def __init__(self, depth: np.ndarray) -> None:
        self.predicted_depth = torch.from_numpy(depth)[None]

    def __call__(self, **inputs: torch.Tensor) -> Answer:
        assert inputs["pixel_values"].shape == (1, 3, 56, 56)
        return self


@pytest.mark.parametrize("metric", [False, True])
def test_a_depth_networks_answer_is_brought_to_centimetres(crop: FaceCrop, tmp_path: Path, metric: bool) -> None:
    annotator = TransformersDepth(**made.depth_anything(tmp_path / "weights", metric=metric))
    processor, model = annotator.network()
    assert model.config.depth_estimation_type == ("metric" if metric else "relative")
    truth = rasterise_depth(crop, SMALL)
    whole = np.where(truth > 0, truth, 112)
    answer = 0.01 * whole if metric else 3e4 / whole - 100
    annotator._network = (processor, Answer(answer.astype(np.float32)))
    found = annotator(crop, everywhere(Region.SKIN))
    np.testing.assert_allclose(found[truth > 0], truth[truth > 0], atol=0.02)


def test_other_depth_networks_need_to_be_told_apart(tmp_path: Path) -> None:
    arguments = made.depth_anything(tmp_path / "weights")
    config = json.loads((tmp_path / "weights" / "config.json").read_text())
    (tmp_path / "weights" / "config.json").write_text(json.dumps({**config, "model_type": "new_depth"}))
    with pytest.raises(UserError, match="set kind to depth or inverse"):
        TransformersDepth(**arguments)
    assert TransformersDepth(**arguments, kind="depth").parameters()["kind"] == "depth"
    with pytest.raises(UserError, match="give auto, inverse or depth"):
        TransformersDepth(**arguments, kind="nearness")
    (tmp_path / "weights" / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(AssetError, match="holds no depth network"):
        TransformersDepth(**arguments)


# Axes


def ball_normals(crop: FaceCrop) -> tuple[FloatArray, np.ndarray]:
    """Normals (camera frame) of a ball before the camera, and where it is seen."""
    y, x = np.mgrid[:SMALL, :SMALL] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(crop.intrinsics).T
    centre = np.array([0, 0, 110.0])
    square, along = (rays**2).sum(-1), rays @ centre
    inside = along**2 - square * (centre @ centre - 100)
    depth = (along - np.sqrt(inside.clip(0))) / square
    return (depth[..., None] * rays - centre) / 10, inside > 0


def test_normals_that_face_the_camera_stay_and_others_turn(crop: FaceCrop) -> None:
    normals, seen = ball_normals(crop)
    found = facing_normals((3 * normals).astype(np.float32), crop, seen)
    inner = seen & (normals[..., 2] < -0.05)
    np.testing.assert_allclose(found[inner], normals[inner], atol=1e-6)
    assert (found[~seen] == 0).all()
    away = facing_normals((-normals).astype(np.float32), crop, seen)
    y, x = np.mgrid[:SMALL, :SMALL] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(crop.intrinsics).T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    toward = (away * rays).sum(-1)[seen]
    assert (toward < 0).all()
    side = seen & (normals[..., 2] > -0.9) & inner
    assert ((away * rays).sum(-1)[side] > -0.02).all()  # no further than to a right angle
    nothing = facing_normals(np.zeros_like(found), crop, seen)
    np.testing.assert_allclose(nothing[seen], -rays[seen], atol=1e-6)


def test_marigold_normals_are_turned_to_the_camera_frame(crop: FaceCrop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its x points right, its y up and its z at the viewer."""
    normals, seen = ball_normals(crop)
    annotator = MarigoldNormals(**made.marigold(tmp_path / "weights", "MarigoldNormalsPipeline"))
    monkeypatch.setattr(annotator, "predict", lambda image: (normals * [1, -1, -1]).astype(np.float32))
    found = annotator(crop, everywhere(Region.SKIN), seen.astype(np.float32))
    inner = seen & (normals[..., 2] < -0.05)
    np.testing.assert_allclose(found[inner], normals[inner], atol=1e-6)


@pytest.mark.parametrize("kind", [MarigoldDepth, GeoWizardDepth])
def test_noise_comes_from_the_seed(kind: type, crop: FaceCrop, tmp_path: Path) -> None:
    arguments = made.MAKERS[kind](tmp_path / "weights")
    noisy = np.random.default_rng(0).integers(0, 256, (SMALL, SMALL, 3)).astype(np.uint8)

    def maps(seed: int) -> np.ndarray:
        answer = kind(**arguments, seed=seed).predict(noisy)
        return np.asarray(answer[0] if isinstance(answer, tuple) else answer)

    torch.manual_seed(0)
    first = maps(1)
    torch.manual_seed(1)  # the state of the process does not matter
    np.testing.assert_array_equal(first, maps(1))
    assert np.abs(first - maps(2)).max() > 1e-4
    assert first.min() >= 0
    assert first.max() <= 1
