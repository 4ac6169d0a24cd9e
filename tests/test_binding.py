"""What pixels move with: against a slow twin over all triangles and all border edges, and what the weights promise."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_scenes import face_model, made_frame, pose, project_head
from torch import Tensor

from datasets_toolkit.annotators.landmark_parsing import polygon
from datasets_toolkit.faces import face_regions as regions
from mggtalk.geometry.binding import CHUNK, bind
from mggtalk.geometry.cameras import project
from mggtalk.geometry.head_points import JAW, TEETH, visible_points
from mggtalk.geometry.layers import take_apart
from mggtalk.types import Frame, PointCloud, Surface, cat

SIZE = 96
TRIANGLES = face_model().triangles
fades = st.floats(2.0, 30.0)
yaws = st.sampled_from([-40.0, 0.0, 25.0])
seeds = st.integers(0, 10**6)


@lru_cache(maxsize=8)
def projected(yaw: float) -> tuple[Tensor, Tensor]:
    """Pixels (1 v 2) and depth (1 v) of the mean face with its mouth a little open, float64."""
    mesh = face_model().mean + 0.1 * face_model().blendshapes[25]
    pixels, depth = project_head(mesh.double().numpy(), pose(yaw), SIZE)
    return torch.from_numpy(pixels)[None], torch.from_numpy(depth)[None]


def some_pixels(seed: int, count: int) -> Tensor:
    return torch.rand(1, count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * SIZE


def at(fade: float) -> Tensor:
    return torch.tensor([fade], dtype=torch.float64)


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def nearest_border(pixel: np.ndarray, points: np.ndarray) -> tuple[float, tuple[int, int], float, bool]:
    """Distance, edge, place along the edge and whether it is the rim, one edge after the other."""
    best = (np.inf, (0, 0), 0.0, False)
    for ring in (regions.FACE_OVAL, regions.LEFT_EYE, regions.RIGHT_EYE, regions.MOUTH_INNER):
        for place, start in enumerate(ring):
            end = ring[(place + 1) % len(ring)]
            along, offset = points[end] - points[start], pixel - points[start]
            t = float(np.clip(offset @ along / (along @ along), 0, 1))
            distance = float(np.linalg.norm(offset - t * along))
            if distance < best[0]:
                best = (distance, (start, end), t, ring is regions.FACE_OVAL)
    return best


def slow_twin(pixel: np.ndarray, points: np.ndarray, depth: np.ndarray, fade: float) -> np.ndarray:
    """The weight of each vertex for one pixel, barycentric coordinates by areas."""
    corners = points[TRIANGLES.numpy()]
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    area = cross(b - a, c - a)
    whole = np.where(np.abs(area) < 1e-6, np.nan, area)
    shares = np.stack([cross(b - pixel, c - pixel), cross(c - pixel, a - pixel), cross(a - pixel, b - pixel)], 1) / whole[:, None]
    weights = np.zeros(len(points))
    hit = [(shares[index] @ depth[TRIANGLES[index].numpy()], index) for index in range(len(shares)) if shares[index].min() >= -1e-4]
    if hit:
        chosen = min(hit)[1]
        np.add.at(weights, TRIANGLES[chosen].numpy(), shares[chosen])
        return weights
    distance, (start, end), t, rim = nearest_border(pixel, points)
    strength = np.exp(-((distance / fade) ** 2)) if rim else 1.0
    weights[start], weights[end] = strength * (1 - t), strength * t
    return weights


def every_triangle(pixels: Tensor, vertices: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest triangle that holds each pixel of one image, and how deep it is there (inf: none), by testing all."""
    a, b, c = vertices[TRIANGLES].unbind(-2)
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    rows = torch.stack([torch.stack([(b - a)[:, 1], -(b - a)[:, 0]], -1), torch.stack([-(c - a)[:, 1], (c - a)[:, 0]], -1)], -2)
    third, second = ((pixels[:, None, None] - a[:, None]) * rows).sum(-1).unbind(-1)
    shares = torch.stack([area + third + second, -second, -third], -1) / area[:, None]
    inside = ((shares >= -1e-4) & (area.abs() >= 1e-6)[:, None]).all(-1)
    return torch.where(inside, (shares * depth[TRIANGLES]).sum(-1), torch.inf).min(-1)[::-1]


def dense_weights(anchors: Tensor, weights: Tensor) -> Tensor:
    """The weight of every vertex (n v) from anchors and weights of one image."""
    return torch.zeros(anchors.shape[1], 478, dtype=weights.dtype).scatter_add(1, anchors[0], weights[0])


@settings(deadline=None, max_examples=12)
@given(seed=seeds, yaw=yaws, fade=fades)
def test_binding_agrees_with_its_slow_twin(seed: int, yaw: float, fade: float) -> None:
    vertices, depth = projected(yaw)
    pixels = some_pixels(seed, 40)
    binding = bind(pixels, vertices, depth, TRIANGLES, at(fade))
    expected = [slow_twin(pixel, vertices[0].numpy(), depth[0].numpy(), fade) for pixel in pixels[0].numpy()]
    np.testing.assert_allclose(dense_weights(binding.anchors, binding.weights).numpy(), np.stack(expected), atol=1e-6)
    distances = [nearest_border(pixel, vertices[0].numpy())[0] for pixel in pixels[0].numpy()]
    np.testing.assert_allclose(binding.distance[0].numpy(), distances, atol=1e-9)


@pytest.mark.parametrize("yaw", [-40.0, 0.0, 25.0, 80.0])
@pytest.mark.parametrize("size", [96, 512])
def test_no_triangle_is_overlooked(yaw: float, size: int) -> None:
    """The grid of cells finds for every pixel of an image what testing all triangles finds."""
    mesh = (face_model().mean + 0.1 * face_model().blendshapes[25]).double().numpy()
    vertices, depth = (torch.from_numpy(values) for values in project_head(mesh, pose(yaw), size))
    step = size / 96
    x = torch.arange(0.5, 96, dtype=torch.float64) * step
    pixels = torch.stack(torch.meshgrid(x, x, indexing="xy"), -1).reshape(-1, 2)
    binding = bind(pixels[None], vertices[None], depth[None], TRIANGLES, at(5.0))
    best, at_depth = every_triangle(pixels, vertices, depth)
    hit = at_depth < torch.inf
    assert hit.sum() > 500 and torch.equal(binding.anchors[0][hit], TRIANGLES[best][hit])
    torch.testing.assert_close((binding.weights[0] * depth[binding.anchors[0]]).sum(-1)[hit], at_depth[hit], rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_weights_on_the_mesh_reproduce_linear_functions(seed: int) -> None:
    """The weighted mean of the vertices' own pixels is the pixel; so is every linear function of it."""
    vertices, depth = projected(0.0)
    pixels = some_pixels(seed, 300)
    inside = torch.from_numpy(polygon(vertices[0].numpy(), regions.FACE_OVAL, SIZE))[pixels[0, :, 1].long(), pixels[0, :, 0].long()] == 1
    binding = bind(pixels, vertices, depth, TRIANGLES, at(5.0))
    corners = vertices[0][binding.anchors[0]]
    mean = (binding.weights[0][..., None] * corners).sum(-2)
    on_mesh = (mean - pixels[0]).norm(dim=-1) < 1e-6
    holes = torch.zeros_like(on_mesh)
    for ring in (regions.LEFT_EYE, regions.RIGHT_EYE, regions.MOUTH_INNER):
        covered = torch.from_numpy(polygon(vertices[0].numpy(), ring, SIZE))
        holes |= covered[pixels[0, :, 1].long(), pixels[0, :, 0].long()] > 0
    surely = inside & ~holes & (binding.distance[0] > 1)  # the drawn outlines are those of pixels
    assert on_mesh[surely].all() and surely.sum() > 20
    torch.testing.assert_close(binding.weights[0][on_mesh].sum(-1), torch.ones(int(on_mesh.sum()), dtype=torch.float64))


@settings(deadline=None, max_examples=15)
@given(seed=seeds, yaw=yaws, fade=fades)
def test_slopes_are_the_derivative_of_the_weights(seed: int, yaw: float, fade: float) -> None:
    vertices, depth = projected(yaw)
    pixels, step = some_pixels(seed, 200), 1e-5
    binding = bind(pixels, vertices, depth, TRIANGLES, at(fade))
    checked = 0
    for axis in range(2):
        move = step * torch.eye(2, dtype=torch.float64)[axis]
        ahead, back = (bind(pixels + sign * move, vertices, depth, TRIANGLES, at(fade)) for sign in (1, -1))
        same = (ahead.anchors == back.anchors).all(-1) & (binding.anchors == back.anchors).all(-1)
        kinks = ((ahead.weights == 0) != (back.weights == 0)).any(-1)  # the ends of border edges
        numeric = (ahead.weights - back.weights) / (2 * step)
        chosen = same & ~kinks
        torch.testing.assert_close(binding.slopes[:, :, axis][chosen], numeric[chosen], rtol=1e-4, atol=1e-6)
        checked += int(chosen.sum())
    assert checked > 300


@pytest.mark.parametrize("mouth", [0.0, 0.1, 0.6])
def test_nothing_binds_across_the_lips(mouth: float) -> None:
    """No pixel of the upper lip moves with a vertex of the lower one, nor the reverse: not even with closed lips."""
    mesh = (face_model().mean + mouth * face_model().blendshapes[25]).double().numpy()
    pixels, depth = project_head(mesh, pose(), 512)
    vertices, depths = torch.from_numpy(pixels)[None], torch.from_numpy(depth)[None]
    corners = set(regions.UPPER_LIP) & set(regions.LOWER_LIP)
    for ring, other in ((regions.UPPER_LIP, regions.LOWER_LIP), (regions.LOWER_LIP, regions.UPPER_LIP)):
        rows, columns = np.nonzero((polygon(pixels, ring, 512) == 1) & (polygon(pixels, other, 512) == 0))
        inside = torch.from_numpy(np.stack([columns, rows], 1) + 0.5)[None]
        assert inside.shape[1] > 100
        binding = bind(inside, vertices, depths, TRIANGLES, at(40.0))
        weights = dense_weights(binding.anchors, binding.weights)
        assert weights[:, sorted(set(other) - corners)].abs().max() == 0


@settings(deadline=None, max_examples=30)
@given(distance=st.floats(0.01, 40), fade=fades)
def test_outside_the_rim_the_weights_fade(distance: float, fade: float) -> None:
    """Straight below the chin, the lowest point of the frontal face: exp(-(d / fade)^2)."""
    vertices, depth = projected(0.0)
    lowest = vertices[0][vertices[0, :, 1].argmax()]
    binding = bind((lowest + torch.tensor([0, distance], dtype=torch.float64))[None, None], vertices, depth, TRIANGLES, at(fade))
    assert binding.distance.item() == pytest.approx(distance, rel=1e-6)
    assert binding.weights.sum().item() == pytest.approx(np.exp(-((distance / fade) ** 2)), rel=1e-6)


def test_the_nearest_of_overlapping_triangles_wins() -> None:
    """Two triangles over one another; the order of the list does not matter, only the depth at the pixel does."""
    corners = torch.tensor([[0.0, 0], [10, 0], [0, 10]], dtype=torch.float64)
    vertices = torch.zeros(1, 478, 2, dtype=torch.float64) - 100
    vertices[0, :6] = corners.repeat(2, 1)
    depth = torch.full((1, 478), 500.0, dtype=torch.float64)
    depth[0, :6] = torch.tensor([100.0, 120, 100, 110, 110, 110])  # the first is nearer on the left, the second on the right
    pixels = torch.tensor([[[1.0, 2.0], [8.0, 1.0]]], dtype=torch.float64)
    for order in ([0, 1], [1, 0]):
        binding = bind(pixels, vertices, depth, torch.tensor([[0, 1, 2], [3, 4, 5]])[order], at(1.0))
        assert sorted(binding.anchors[0, 0].tolist()) == [0, 1, 2] and sorted(binding.anchors[0, 1].tolist()) == [3, 4, 5]
        torch.testing.assert_close(binding.weights[0, 0], torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64))


def test_flat_triangles_hold_nothing() -> None:
    vertices = torch.zeros(1, 478, 2, dtype=torch.float64) + 50
    vertices[0, :3] = torch.tensor([[0.0, 0], [5, 5], [10, 10]])
    depth = torch.full((1, 478), 100.0, dtype=torch.float64)
    binding = bind(torch.tensor([[[5.0, 5]]], dtype=torch.float64), vertices, depth, torch.tensor([[0, 1, 2]]), at(1.0))
    assert all(torch.isfinite(tensor.double()).all() for tensor in binding.__dict__.values())
    assert set(binding.anchors.flatten().tolist()).isdisjoint({0, 1, 2}) or binding.weights.sum() < 1


def test_chunks_and_batches_do_not_matter() -> None:
    (frontal, near), (turned, far) = projected(0.0), projected(25.0)
    pixels = some_pixels(0, CHUNK + 7)
    fade = torch.tensor([4.0, 11.0], dtype=torch.float64)
    both = bind(pixels.expand(2, -1, -1), torch.cat([frontal, turned]), torch.cat([near, far]), TRIANGLES, fade)
    for index, (vertices, depth) in enumerate(((frontal, near), (turned, far))):
        alone = bind(pixels, vertices, depth, TRIANGLES, fade[index : index + 1])
        tail = bind(pixels[:, CHUNK:], vertices, depth, TRIANGLES, fade[index : index + 1])
        assert torch.equal(both.anchors[index], alone.anchors[0]) and torch.equal(tail.anchors[0], alone.anchors[0, CHUNK:])
        torch.testing.assert_close(both.weights[index], alone.weights[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(both.slopes[index], alone.slopes[0], rtol=0, atol=1e-9)


def cloud_of(frame: Frame) -> PointCloud:
    layers = take_apart(frame)
    surface = Surface(depth=frame.depth, normals=frame.normals, mask=frame.depth > 0)
    return visible_points(frame, layers, surface, face_model())


def test_each_source_of_a_batch_has_its_own_scale() -> None:
    """Fading and the edges of eyes and mouth are centimetres: a nearer head beside it changes nothing for the farther one."""
    near, far = made_frame(64, nearer=30.0), made_frame(64, seed=1)
    both, alone = cloud_of(cat([near, far])), cloud_of(far)
    count = int(alone.mask.sum())
    for name in ("positions", "weights", "weight_steps", "anchors", "head_weight", "child_colour"):
        actual, expected = getattr(both, name)[1, :count], getattr(alone, name)[0, :count]
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5, msg=name)


def test_points_of_a_source_lie_where_it_shows_them() -> None:
    """Every point projects to its pixel; a tenth of a tangent is a tenth of a step of one or two pixels to the right."""
    frame = made_frame(96)
    cloud = cloud_of(frame)
    mask = cloud.mask
    pixels = project(cloud.positions, frame.camera)[0]
    torch.testing.assert_close(pixels[mask], cloud.pixels[mask], rtol=0, atol=1e-2)
    ahead = project(cloud.positions + 0.1 * cloud.tangents[..., 0, :], frame.camera)[0]
    moved = (ahead - pixels)[mask]
    assert moved[:, 1].abs().max() < 0.02 and (moved[:, 0] > 0.05).all() and (moved[:, 0] < 0.25).all()


@pytest.mark.parametrize("jaw", [0.15, 1.0])
def test_a_strip_of_teeth_stays_with_the_skull(jaw: float) -> None:
    """Lips that are parted by less than teeth are long show one row, which no jaw moves; a mouth wide open shows two."""
    frame = made_frame(192, jaw=jaw)
    cloud, upper, lower = cloud_of(frame), frame.mesh[0, 13], frame.mesh[0, 14]
    inside = cloud.mask[0] & (cloud.anchors[0] == torch.tensor(JAW)).all(-1)
    height, share = cloud.positions[0, inside, 1], cloud.weights[0, inside].sum(-1)
    with_jaw = share > 0.5
    torch.testing.assert_close(share, with_jaw.float(), rtol=0, atol=1e-6)
    narrow = float((upper - lower).norm()) < TEETH
    assert narrow == (jaw < 0.5) and (~with_jaw).sum() > 20
    assert not with_jaw.any() if narrow else with_jaw.sum() > 20 and height[with_jaw].max() < upper[1] - 0.7 * TEETH
