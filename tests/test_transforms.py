"""Flips and crops of a packed frame: camera, mesh and every label go on agreeing; and unpacking gives the frames of inference."""

from __future__ import annotations

import random as python_random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_scenes import DISTANCE, face_model, pose, project_head
from scipy.spatial import cKDTree
from torch import Tensor

from datasets_toolkit.annotators import FaceCrop, Parsing
from datasets_toolkit.annotators.portrait import Annotations
from datasets_toolkit.faces.head_pose import canonical_face, euler_degrees, head_pose
from datasets_toolkit.schema import BLENDSHAPES, Region
from datasets_toolkit.shards.picture_codecs import decode_normals, encode_normals
from mggtalk.data.augment import PairTransform, Photometric
from mggtalk.data.frames import to_frame
from mggtalk.data.packed import PackedFrame, collate, head_mesh, unpack_frame
from mggtalk.data.transforms import BLENDSHAPE_MIRROR, LANDMARK_MIRROR, REGION_MIRROR, about_centre, crop, flip
from mggtalk.geometry.cameras import project, unproject
from mggtalk.geometry.surface import normals_from_depth
from mggtalk.types import Camera, TensorRecord

SIZE = 96
RADIUS = 9.0
seeds = st.integers(0, 10**6)
angles = st.floats(-35, 35)


def made_crop(seed: int = 0, yaw: float = 20.0, roll: float = 10.0, size: int = SIZE) -> FaceCrop:
    """A person's face as the tracker reports it: landmarks first, pose and mesh from them."""
    random = np.random.default_rng(seed)
    mesh = face_model().mean.double().numpy() + np.tensordot(
        0.5 * random.normal(size=len(face_model().identity)), face_model().identity.double().numpy(), 1
    )
    pixels, depth = project_head(mesh, pose(yaw, 5.0, roll, (1.0, 0.5, 4.0)), size)
    intrinsics = np.array([[3.0 * size, 0, size / 2], [0, 3.0 * size, size / 2], [0, 0, 1]])
    landmarks = np.column_stack([pixels, 3.0 * size * (depth / (DISTANCE + 4) - 1)])
    found = head_pose(landmarks, intrinsics)
    return FaceCrop(
        image=random.integers(0, 256, (size, size, 3), dtype=np.uint8),
        landmarks=landmarks,
        blendshapes=random.uniform(0, 1, 52),
        mesh=found.mesh,
        head_to_camera=found.head_to_camera,
        intrinsics=intrinsics,
        source_to_crop=np.array([[0.5, 0, -10], [0, 0.5, 7], [0, 0, 1]]),
    )


def ball(intrinsics: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Depth and normals of a ball 110 cm before the camera, seen exactly."""
    y, x = np.mgrid[:size, :size] + 0.5
    rays = np.stack([(x - intrinsics[0, 2]) / intrinsics[0, 0], (y - intrinsics[1, 2]) / intrinsics[1, 1], np.ones_like(x)], -1)
    centre = np.array([0.5, -0.3, 110])
    squares, along = (rays**2).sum(-1), rays @ centre
    root = along**2 - squares * (centre @ centre - RADIUS**2)
    depth = np.where(root > 0, (along - np.sqrt(root.clip(0))) / squares, 0)
    return depth, np.where(root[..., None] > 0, (rays * depth[..., None] - centre) / RADIUS, 0)


def packed(face: FaceCrop, seed: int = 0) -> PackedFrame:
    """The frame with the labels of a ball, and random regions and matte."""
    random, size = np.random.default_rng(seed), len(face.image)
    depth, normals = ball(face.intrinsics, size)
    coded = np.rint(127.5 * (normals + 1)).clip(0, 255).astype(np.uint8)
    return PackedFrame(
        image=torch.from_numpy(face.image.copy()),
        parsing=torch.from_numpy(random.integers(0, len(Region), (size, size), dtype=np.uint8)),
        matte=torch.from_numpy(random.integers(0, 256, (size, size), dtype=np.uint8)),
        depth=torch.from_numpy(depth.astype(np.float32)),
        normals=torch.from_numpy(coded),
        landmarks=torch.from_numpy(face.landmarks.astype(np.float32)),
        blendshapes=torch.from_numpy(face.blendshapes),
        camera=Camera(intrinsics=torch.from_numpy(face.intrinsics), head_to_camera=torch.from_numpy(face.head_to_camera)),
        source_to_crop=torch.from_numpy(face.source_to_crop),
    )


def tensors(record: TensorRecord) -> dict[str, Tensor]:
    found = {}
    for name, value in record.__dict__.items():
        found |= tensors(value) if isinstance(value, TensorRecord) else {name: value}
    return found


def batched(frame: PackedFrame) -> PackedFrame:
    return collate([frame]).map(lambda tensor: tensor.float() if tensor.dtype == torch.float64 else tensor)


def hits(frame: PackedFrame, mesh: Tensor) -> Tensor:
    """How far (pixels) the mesh, seen by the frame's camera, is from its landmarks."""
    seen = project(mesh.double(), frame.camera)[0]
    return (seen - frame.landmarks[:, :2].double()).norm(dim=-1).max()


def test_mirrors_are_involutions_of_the_right_names() -> None:
    for mirror in (LANDMARK_MIRROR, BLENDSHAPE_MIRROR, REGION_MIRROR):
        np.testing.assert_array_equal(mirror[mirror], np.arange(len(mirror)))
    vertices = canonical_face().vertices
    distance, nearest = cKDTree(vertices).query(vertices * [-1, 1, 1])
    np.testing.assert_array_equal(LANDMARK_MIRROR, nearest)
    assert distance.max() < 1e-3 and np.count_nonzero(LANDMARK_MIRROR - np.arange(478)) > 400
    for first, second in (("eyeBlinkLeft", "eyeBlinkRight"), ("jawLeft", "jawRight"), ("mouthLeft", "mouthRight"), ("jawOpen", "jawOpen")):
        assert BLENDSHAPES[BLENDSHAPE_MIRROR[BLENDSHAPES.index(first)]] == second
    assert np.count_nonzero(BLENDSHAPE_MIRROR - np.arange(52)) == sum("Left" in name or "Right" in name for name in BLENDSHAPES)
    assert REGION_MIRROR[Region.LEFT_EAR] == Region.RIGHT_EAR and REGION_MIRROR[Region.NOSE] == Region.NOSE


@settings(max_examples=10, deadline=None)
@given(seed=seeds, yaw=angles, roll=angles)
def test_flipping_twice_gives_the_frame_back(seed: int, yaw: float, roll: float) -> None:
    frame = packed(made_crop(seed, yaw, roll), seed)
    again = tensors(flip(flip(frame)))
    for name, tensor in tensors(frame).items():
        tolerance = 0 if tensor.dtype == torch.uint8 or name in ("depth", "blendshapes") else 1e-4
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=tolerance, msg=name)


@settings(max_examples=10, deadline=None)
@given(seed=seeds, yaw=angles, roll=angles)
def test_a_flipped_face_is_its_mirror_image(seed: int, yaw: float, roll: float) -> None:
    face = made_crop(seed, yaw, roll)
    frame = packed(face, seed)
    mirrored = flip(frame)
    rotation = mirrored.camera.head_to_camera[:3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation) == pytest.approx(1) and mirrored.camera.intrinsics[0, 0] > 0
    before, after = euler_degrees(face.head_to_camera), euler_degrees(mirrored.camera.head_to_camera.numpy())
    np.testing.assert_allclose(after, before * [-1, 1, -1], atol=1e-9)
    mesh = torch.from_numpy(face.mesh)
    other = (mesh * torch.tensor([-1.0, 1, 1]))[torch.from_numpy(LANDMARK_MIRROR)]
    assert hits(frame, mesh) < 1e-4 and hits(mirrored, other) < 1e-4
    torch.testing.assert_close(head_mesh(batched(mirrored).landmarks, batched(mirrored).camera)[0].double(), other, rtol=0, atol=1e-4)
    left = unpack_frame(batched(mirrored), face_model()).expression[0]
    right = face_model().split(other.float(), frame.blendshapes.float()[torch.from_numpy(BLENDSHAPE_MIRROR)])[1]
    torch.testing.assert_close(left, right, rtol=0, atol=2e-3)


def test_a_flip_moves_pictures_and_labels() -> None:
    frame = packed(made_crop(), 1)
    mirrored = flip(frame)
    assert torch.equal(mirrored.image, frame.image.flip(1)) and torch.equal(mirrored.depth, frame.depth.flip(1))
    assert torch.equal(mirrored.parsing, torch.from_numpy(REGION_MIRROR)[frame.parsing.flip(1).long()])
    normals, known = (frame.normals.float() / 127.5 - 1).flip(1), frame.depth.flip(1) > 0
    found = unpack_frame(batched(mirrored), face_model()).normals[0].permute(1, 2, 0)
    expected = torch.nn.functional.normalize(normals * torch.tensor([-1.0, 1, 1]), dim=-1) * known[..., None]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    pixel = torch.tensor([17.5, 40.5, 1], dtype=torch.float64)  # of the video, through the old crop and through the new one
    moved = mirrored.source_to_crop @ pixel
    old = frame.source_to_crop @ pixel
    assert moved[0] == pytest.approx(SIZE - float(old[0])) and moved[1] == old[1]


@settings(max_examples=15, deadline=None)
@given(seed=seeds, scale=st.floats(0.5, 2.0), right=st.floats(-0.2, 0.2), down=st.floats(-0.2, 0.2), size=st.sampled_from([48, 96, 120]))
def test_a_crop_carries_camera_and_surface(seed: int, scale: float, right: float, down: float, size: int) -> None:
    face = made_crop(seed)
    frame, matrix = packed(face, seed), about_centre(SIZE, size, scale, (right, down))
    moved = crop(frame, matrix, size)
    np.testing.assert_allclose(moved.camera.intrinsics, matrix @ face.intrinsics)
    np.testing.assert_allclose(moved.source_to_crop, matrix @ face.source_to_crop)
    assert torch.equal(moved.camera.head_to_camera, frame.camera.head_to_camera)
    assert hits(moved, torch.from_numpy(face.mesh)) < 1e-3
    before, after = (head_mesh(batched(one).landmarks, batched(one).camera) for one in (frame, moved))
    torch.testing.assert_close(after, before, rtol=0, atol=2e-4)
    depth, normals = ball(moved.camera.intrinsics.numpy(), size)
    inner = depth > 0
    for axis in (0, 1):
        for step in (-3, 3):  # away from the outline, where the ball falls off steeply
            inner &= np.roll(depth, step, axis) > 0
    source = np.linalg.inv(matrix) @ [0.5, 0.5, 1], np.linalg.inv(matrix) @ [size - 0.5, size - 0.5, 1]
    y, x = np.mgrid[:size, :size] + 0.5
    xs, ys = (x - matrix[0, 2]) / matrix[0, 0], (y - matrix[1, 2]) / matrix[1, 1]
    inner &= (xs > 3) & (xs < SIZE - 3) & (ys > 3) & (ys < SIZE - 3) & (normals[..., 2] < -0.5)
    assert source[0][0] < source[1][0]
    if inner.any():
        np.testing.assert_allclose(moved.depth.numpy()[inner], depth[inner], atol=0.15)
        found = unpack_frame(batched(moved), face_model()).normals[0].permute(1, 2, 0).numpy()[inner]
        assert np.degrees(np.arccos((found * normals[inner]).sum(-1).clip(-1, 1))).max() < 6


def test_depth_of_a_plane_stays_on_the_plane() -> None:
    """1 / z is linear over the picture; OpenCV rounds places to 1/32 of a pixel, which bounds the error by slope / 64."""
    frame = packed(made_crop())
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    ray = np.stack([(x - SIZE / 2) / (3 * SIZE), (y - SIZE / 2) / (3 * SIZE), np.ones_like(x)], -1)
    normal = np.array([0.5, -0.2, -1])
    depth = -110 / (ray @ normal)
    frame = replace(frame, depth=torch.from_numpy(depth.astype(np.float32)))
    slope = np.abs(np.gradient(depth)).max()
    for size, scale in ((96, 1.23), (150, 1.1), (48, 1.0)):
        moved = crop(frame, about_centre(SIZE, size, scale, (0.03, 0.02)), size)
        y, x = np.mgrid[2 : size - 2, 2 : size - 2] + 0.5
        k = moved.camera.intrinsics.numpy()
        ray = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones_like(x)], -1)
        np.testing.assert_allclose(moved.depth.numpy()[2:-2, 2:-2], -110 / (ray @ normal), atol=2 * slope / 64)


def test_cropped_depth_and_camera_give_the_same_points() -> None:
    """Depth seen through the new camera lies on the surface that the old camera saw."""
    frame = packed(made_crop())
    moved = batched(crop(frame, about_centre(SIZE, 80, 1.1, (0.02, -0.01)), 80))
    y, x = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(80) + 0.5, indexing="ij")
    known = moved.depth[0] > 0
    points = unproject(torch.stack([x[known], y[known]], -1)[None], moved.depth[0][known][None], moved.camera)
    rigid = frame.camera.head_to_camera.float()
    centre = torch.tensor([0.5, -0.3, 110])
    distance = (points[0] @ rigid[:3, :3].mT + rigid[:3, 3] - centre).norm(dim=-1)
    assert known.sum() > 1400 and (distance - RADIUS).abs().median() < 0.02
    unpacked = unpack_frame(moved, face_model())
    again = normals_from_depth(unpacked.depth, unpacked.depth > 0, unpacked.camera.intrinsics)
    steep = unpacked.normals[:, 2:] > -0.7
    cosine = (again * unpacked.normals).sum(1, keepdim=True)[(unpacked.depth > 0) & ~steep]
    assert torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))).median() < 3


@settings(max_examples=10, deadline=None)
@given(seed=seeds, scale=st.floats(0.7, 1.6), right=st.floats(-0.2, 0.2), down=st.floats(-0.2, 0.2))
def test_pictures_are_sampled_where_the_matrix_says(seed: int, scale: float, right: float, down: float) -> None:
    """A picture that is linear in x and y tells where each pixel was taken from; labels are the nearest ones."""
    frame, matrix = packed(made_crop(seed), seed), about_centre(SIZE, SIZE, scale, (right, down))
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    ramp = np.stack([2 * x, 2 * y, x + y], -1)
    moved = crop(replace(frame, image=torch.from_numpy(np.rint(ramp).astype(np.uint8))), matrix, SIZE)
    xs, ys = ((place - shift) / scale for place, shift in ((x, matrix[0, 2]), (y, matrix[1, 2])))
    inner = (xs > 4) & (xs < SIZE - 4) & (ys > 4) & (ys < SIZE - 4)
    expected = np.stack([2 * xs, 2 * ys, xs + ys], -1)
    assert np.abs(moved.image.numpy()[inner] - expected[inner]).max() <= 1.6
    clear = inner & (np.abs(xs % 1 - 0.5) < 0.46) & (np.abs(ys % 1 - 0.5) < 0.46)  # not just between two pixels
    column, row = xs.astype(int).clip(0, SIZE - 1), ys.astype(int).clip(0, SIZE - 1)
    np.testing.assert_array_equal(moved.parsing.numpy()[clear], frame.parsing.numpy()[row, column][clear])


def test_beyond_the_border_nothing_is_known() -> None:
    frame = packed(made_crop())
    frame = replace(frame, depth=torch.full((SIZE, SIZE), 100.0))
    moved = crop(frame, about_centre(SIZE, SIZE, 1.0, (0.25, 0.0)), SIZE)
    unpacked = unpack_frame(batched(moved), face_model())
    edge = SIZE // 4
    assert (moved.depth[:, : edge - 1] == 0).all() and (moved.depth[:, edge + 1 :] == 100).all()
    assert (unpacked.normals[..., : edge - 1] == 0).all()
    assert torch.equal(moved.image[:, 0], frame.image[:, 0]) and torch.equal(moved.parsing[:, 0], frame.parsing[:, 0]), "edges are repeated"


def test_a_crop_that_changes_nothing_is_the_frame() -> None:
    frame = packed(made_crop())
    assert crop(frame, np.eye(3), SIZE) is frame


@pytest.mark.parametrize("entry, value", [((0, 1), 0.1), ((1, 0), 0.1), ((1, 1), 1.1), ((0, 0), -1.0), ((2, 0), 0.01)])
def test_a_crop_keeps_square_pixels(entry: tuple[int, int], value: float) -> None:
    matrix = np.eye(3)
    matrix[entry] = value
    with pytest.raises(ValueError, match="scale and shift only"):
        crop(packed(made_crop()), matrix, SIZE)


@settings(max_examples=5, deadline=None)
@given(seed=seeds, yaw=angles)
def test_unpacking_gives_the_frame_of_inference(seed: int, yaw: float) -> None:
    face = made_crop(seed, yaw)
    frame = packed(face, seed)
    depth, normals = ball(face.intrinsics, SIZE)
    stored = decode_normals(encode_normals(normals.astype(np.float32)), depth > 0)
    parsing = Parsing(labels=frame.parsing.numpy(), matte=frame.matte.numpy().astype(np.float32) / 255)
    expected = to_frame(face, Annotations(parsing=parsing, depth=depth.astype(np.float32), normals=stored), face_model(), integrate=False)
    found = unpack_frame(batched(frame), face_model())
    tolerances = {"mesh": 1e-4, "expression": 2e-3, "normals": 0.15}  # JPEG blurs normals at the outline
    assert (found.normals[0] - expected.normals).abs().mean() < 0.004
    for name, tensor in tensors(expected).items():
        torch.testing.assert_close(tensors(found)[name][0], tensor, rtol=0, atol=tolerances.get(name, 1e-6), msg=name)


def test_labels_that_were_not_read_are_unknown() -> None:
    frame = batched(replace(packed(made_crop()), parsing=None, matte=None, depth=None, normals=None))
    unpacked = unpack_frame(frame, face_model())
    for name, channels in (("parsing", ()), ("matte", (1,)), ("depth", (1,)), ("normals", (3,))):
        shape = (1, *channels, SIZE, SIZE)
        assert getattr(unpacked, name).shape == shape and not getattr(unpacked, name).any()


def moving_window() -> tuple[PackedFrame, PackedFrame, np.ndarray]:
    """Two crops of one still picture, with windows that moved and grew, and the picture."""
    picture = np.kron(np.random.default_rng(0).integers(60, 200, (12, 12, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    still = replace(packed(made_crop(size=240)), image=torch.from_numpy(picture), source_to_crop=torch.eye(3, dtype=torch.float64))
    windows = (np.array([[0.5, 0, -10], [0, 0.5, -8], [0, 0, 1.0]]), np.array([[0.48, 0, -14], [0, 0.48, -5], [0, 0, 1.0]]))
    first, second = (crop(still, window, 90) for window in windows)
    return first, second, picture


def test_the_target_is_seen_in_the_source_s_window() -> None:
    first, second, _ = moving_window()
    source, target = PairTransform()(first, second)
    assert source is first
    np.testing.assert_allclose(target.source_to_crop, first.source_to_crop)
    np.testing.assert_allclose(target.camera.intrinsics, source.camera.intrinsics)
    inner = (slice(12, -12), slice(12, -12))
    apart = (target.image[inner].float() - source.image[inner].float()).abs().mean()
    assert apart < 0.15 * (second.image[inner].float() - source.image[inner].float()).abs().mean()
    for transform, same_video in ((PairTransform(same_window=False), True), (PairTransform(), False)):
        assert transform(first, second, same_video=same_video)[1] is second


def test_random_crops_are_a_function_of_the_generator() -> None:
    first, second, _ = moving_window()
    transform = PairTransform(size=64, flip=0.5, scale=0.2, shift=0.1)
    pairs = [transform(first, second, np.random.default_rng(seed)) for seed in (0, 0, *range(20))]
    assert torch.equal(pairs[0][1].image, pairs[1][1].image) and not torch.equal(pairs[0][1].image, pairs[-1][1].image)
    mirrored = [float(torch.linalg.det(source.source_to_crop)) < 0 for source, _ in pairs]
    assert 0 < sum(mirrored) < len(pairs)
    for source, target in pairs:
        torch.testing.assert_close(source.source_to_crop, target.source_to_crop, rtol=0, atol=1e-9)
        factor = float(source.source_to_crop[1, 1] / first.source_to_crop[1, 1]) * 90 / 64
        assert 1 / 1.2 - 1e-9 <= factor <= 1.2 + 1e-9 and source.image.shape == (64, 64, 3)
    crops = [source.source_to_crop.numpy() @ np.linalg.inv(first.source_to_crop.numpy()) for source, _ in pairs[2:]]
    steps = np.array([(matrix @ [45, 45, 1])[:2] / 64 - 0.5 for matrix in crops])  # where the old centre went
    assert 0.07 < np.abs(steps).max() <= 0.1 + 1e-9 and abs(np.corrcoef(np.abs(steps.T))[0, 1]) < 0.6
    apart = replace(transform, same_crop=False)(first, second, np.random.default_rng(0))
    assert not torch.allclose(apart[0].source_to_crop, apart[1].source_to_crop)
    plain = transform.plain()
    assert not plain.random and plain(first, second)[0].image.shape == (64, 64, 3)
    with pytest.raises(ValueError, match="needs random numbers"):
        transform(first, second)


def test_pictures_change_alike_or_on_their_own() -> None:
    frame = packed(made_crop())
    alike, apart = (Photometric(probability=1.0, same=same) for same in (True, False))
    state = python_random.getstate(), np.random.get_state()[1].tolist()
    first, second = alike(frame, frame, np.random.default_rng(1))
    assert torch.equal(first.image, second.image) and not torch.equal(first.image, frame.image)
    others = [apart(frame, frame, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert not torch.equal(others[0][0].image, others[0][1].image) and not torch.equal(others[0][0].image, others[2][0].image)
    assert torch.equal(others[0][1].image, others[1][1].image)
    for name, tensor in tensors(frame).items():
        assert name == "image" or torch.equal(tensors(first)[name], tensor), name
    assert (python_random.getstate(), np.random.get_state()[1].tolist()) == state, "global random numbers are not used"
    never = Photometric(probability=0.0)
    assert torch.equal(never(frame, frame, np.random.default_rng(0))[0].image, frame.image)
