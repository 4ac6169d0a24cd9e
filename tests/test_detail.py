"""What Gaussians miss of a source is carried along: closed forms, a slow twin, and the whole model."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_scenes import made_frame, made_model, perturb, pose, seen_from, with_expression
from torch import Tensor

from mggtalk.geometry import detail as module
from mggtalk.geometry.cameras import pixel_centres
from mggtalk.geometry.detail import CELLS, REACH, Detail, carried, detail_of
from mggtalk.metrics.functional import psnr
from mggtalk.model import MGGTalk
from mggtalk.rendering.cpu import CpuRenderer
from mggtalk.types import Pair

SIZE = 64


def scene(size: int = SIZE, seed: int = 0, batch: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Something missed, a head in the middle, a point on every pixel, and its depth."""
    generator = torch.Generator().manual_seed(seed)
    missed = torch.randn(batch, 3, size, size, generator=generator)
    head = torch.zeros(batch, 1, size, size, dtype=torch.bool)
    head[..., size // 8 : -size // 8, size // 8 : -size // 8] = True
    pixels = pixel_centres(size, size).reshape(1, -1, 2).expand(batch, -1, -1)
    return missed, head, pixels, torch.full((batch, size * size), 100.0)


def made(missed: Tensor, head: Tensor, pixels: Tensor) -> Detail:
    return detail_of(missed, head, pixels, torch.ones(pixels.shape[:2]))


def test_where_nothing_moves_all_is_given_back() -> None:
    missed, head, pixels, depth = scene()
    detail = made(missed, head, pixels)
    assert detail.step == 1
    torch.testing.assert_close(carried(detail, pixels, depth, torch.ones(1)), missed, rtol=0, atol=1e-5)


def test_outlines_go_when_the_head_has_moved() -> None:
    """The weight of what lies inside is 0 outside the head, 1 deep in it, and between on its rim."""
    missed, head, pixels, depth = scene()
    left = carried(made(torch.ones_like(missed), head, pixels), pixels, depth, torch.zeros(1))[0, 0]
    deep = slice(SIZE // 8 + 3, -SIZE // 8 - 3)
    torch.testing.assert_close(left[deep, deep], torch.ones_like(left[deep, deep]), rtol=0, atol=1e-5)
    assert left[~head[0, 0]].abs().max() < 0.35 and left[: SIZE // 8 - 2].abs().max() < 1e-6
    middle = left[SIZE // 2, SIZE // 8 - 1 : SIZE // 8 + 4]
    assert (middle.diff() >= -1e-6).all() and 0 < middle[1] < 1


@pytest.mark.parametrize("right, down", [(3, 0), (0, -2), (-5, 4)])
def test_it_moves_as_its_points_do(right: int, down: int) -> None:
    missed, head, pixels, depth = scene()
    moved = carried(made(missed, head, pixels), pixels + torch.tensor([right, down]), depth, torch.ones(1))
    expected = torch.roll(missed, (down, right), (-2, -1))
    inside = slice(12, -12)
    torch.testing.assert_close(moved[..., inside, inside], expected[..., inside, inside], rtol=0, atol=1e-4)


@given(strain=st.floats(-0.2, 0.2))
@settings(max_examples=20, deadline=None)
def test_what_is_stretched_fades(strain: float) -> None:
    """A scaling by 1 + s about the middle moves by s / (1 + s) of the distance along both axes: strain^2 = 2 (s / (1 + s))^2."""
    missed, head, pixels, depth = scene()
    scaled = (pixels - SIZE / 2) * (1 + strain) + SIZE / 2
    value = carried(made(torch.ones_like(missed), head, pixels), scaled, depth, torch.ones(1))[0, :, SIZE // 2, SIZE // 2]
    expected = math.exp(-2 * (strain / (1 + strain)) ** 2 / module.STRETCH**2)
    torch.testing.assert_close(value, torch.full((3,), expected), rtol=0, atol=0.05)


def slow_motion(detail: Detail, places: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Mean displacement (b 2 c c, shares of the image) of the points of every cell and how many have a say, point by point."""
    cells = min(CELLS, detail.inner.shape[-1] // 4)
    shift, weight = torch.zeros(len(depth), 2, cells, cells), torch.zeros(len(depth), 1, cells, cells)
    for image in range(len(depth)):
        members: dict[tuple[int, int], list[int]] = {}
        for point in range(depth.shape[1]):
            column, row = (math.floor(float(place) * cells) for place in places[image, point])
            if 0 <= column < cells and 0 <= row < cells and detail.weights[image, point] > 0:
                members.setdefault((row, column), []).append(point)
        for (row, column), points in members.items():
            nearest = min(float(depth[image, point]) for point in points)
            for point in points:
                say = float(detail.weights[image, point]) * math.exp((nearest - float(depth[image, point])) / REACH)
                shift[image, :, row, column] += say * (detail.places[image, point] - places[image, point])
                weight[image, 0, row, column] += say
    return shift / weight.clamp(min=1e-6), weight


def test_the_coarse_motion_is_that_of_a_slow_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures, points in disorder, at several depths, some outside, some that are none."""
    generator = torch.Generator().manual_seed(1)
    missed, head, _, _ = scene(batch=2)
    pixels, moved = (torch.rand(2, 700, 2, generator=generator) * SIZE * 1.2 - 5 for _ in range(2))
    depth = 100 + 3 * torch.rand(2, 700, generator=generator)
    detail = detail_of(missed, head, pixels, (torch.rand(2, 700, generator=generator) - 0.2).clamp(min=0))
    seen = []
    monkeypatch.setattr(module, "push_pull", lambda shift, known: seen.append((shift, known)) or shift)
    module.carried(detail, moved, depth, torch.ones(2))
    shift, weight = slow_motion(detail, moved / SIZE, depth)
    torch.testing.assert_close(seen[0][0], shift, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0][1], (weight / 2).clamp(max=1), rtol=1e-4, atol=1e-5)


def test_the_nearer_surface_decides() -> None:
    """Points of two sheets share every cell; the nearer one stands still, the farther one moves."""
    missed, head, pixels, depth = scene()
    both, near = torch.cat([pixels, pixels], 1), torch.cat([depth, depth + 20], 1)
    moved, detail = torch.cat([pixels, pixels + 9], 1), made(missed, head, both)
    result = carried(detail, moved[:, :: detail.step], near[:, :: detail.step], torch.ones(1))
    torch.testing.assert_close(result, missed, rtol=0, atol=1e-4)


def test_a_point_that_is_none_has_no_say() -> None:
    missed, head, pixels, depth = scene()
    generator = torch.Generator().manual_seed(2)
    weights = torch.cat([torch.ones(1, SIZE * SIZE), torch.zeros(1, 50)], 1)
    stray = torch.rand(1, 50, 2, generator=generator) * SIZE
    detail = detail_of(missed, head, torch.cat([pixels, stray], 1), weights)
    moved, deep = torch.cat([pixels, stray.flip(1)], 1), torch.cat([depth, depth[:, :50] - 50], 1)
    torch.testing.assert_close(carried(detail, moved, deep, torch.ones(1)), missed, rtol=0, atol=1e-5)


def test_without_a_single_point_there_is_a_number_everywhere() -> None:
    missed, head, pixels, depth = scene()
    result = carried(detail_of(missed, head, pixels, torch.zeros(1, SIZE * SIZE)), pixels, depth, torch.ones(1))
    assert torch.isfinite(result).all()


def test_the_smallest_pictures_are_taken_too() -> None:
    missed, head, pixels, depth = scene(8)
    torch.testing.assert_close(carried(made(missed, head, pixels), pixels, depth, torch.ones(1)), missed, rtol=0, atol=1e-5)


def test_the_gradient_goes_to_what_was_missed() -> None:
    """It is the transpose of a linear map: <g, carry(x)> = <carry^T g, x>; places and depths get none."""
    missed, head, pixels, depth = scene()
    missed.requires_grad_()
    moved = (pixels + 2.3).requires_grad_()
    result = carried(made(missed, head, pixels), moved, depth.clone().requires_grad_(), torch.full((1,), 0.5))
    weights = torch.randn_like(result)
    (gradient,) = torch.autograd.grad((weights * result).sum(), missed)
    torch.testing.assert_close((gradient * missed).sum(), (weights * result).sum(), rtol=1e-4, atol=1e-3)
    assert moved.grad is None


def test_many_points_are_thinned_to_the_same_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    missed, head, pixels, depth = scene()
    turned = (pixels - SIZE / 2) @ torch.tensor([[math.cos(0.05), math.sin(0.05)], [-math.sin(0.05), math.cos(0.05)]]) + SIZE / 2
    every = carried(made(missed, head, pixels), turned, depth, torch.ones(1))
    monkeypatch.setattr(module, "POINTS", SIZE * SIZE // 3)
    thin = made(missed, head, pixels)
    assert thin.step == 3 and thin.places.shape[1] == -(-SIZE * SIZE // 3)
    some = carried(thin, turned[:, ::3], depth[:, ::3], torch.ones(1))
    inside = slice(12, -12)
    assert (every - some)[..., inside, inside].abs().mean() < 0.05 * every.abs().mean()


@pytest.fixture(name="trained", scope="module")
def _trained() -> MGGTalk:
    """A model that is a little trained, so that it does not show its sources well."""
    model = perturb(made_model(), 0.05).eval().requires_grad_(False)
    model.renderer = CpuRenderer()
    return model


@pytest.mark.parametrize("yaw", [0.0, 25.0])
def test_a_model_shows_its_source_exactly(trained: MGGTalk, yaw: float) -> None:
    """Whatever its weights: 60 dB in the whole picture; its Gaussians alone are far from it."""
    frame = made_frame(96, yaw)
    shown = trained(Pair(source=frame, target=frame))
    assert psnr(shown.dense.image, frame.image).item() > 60
    trained.detailed = False
    try:
        alone = trained(Pair(source=frame, target=frame))
    finally:
        trained.detailed = True
    assert psnr(alone.dense.image, frame.image).item() < 35
    assert torch.equal(alone.coarse.image, shown.coarse.image)  # before densification nothing is added


def test_a_finished_picture_is_the_one_of_training(trained: MGGTalk) -> None:
    source = made_frame(64)
    target = with_expression(seen_from(source, pose(10)), jawOpen=0.4)
    trace = trained.trace(Pair(source=source, target=target))
    kept = trained.prepare(trace.identity)
    for known in (None, kept):
        picture = trained.render(trace.identity, target.expression, target.camera, known)
        torch.testing.assert_close(picture, trace.shown.dense.image, rtol=0, atol=2e-6)


def test_detail_helps_a_head_that_moves_a_little() -> None:
    """The bases, on a made head two degrees further on: nearer to the truth with what they miss of the source than without."""
    model = made_model().eval().requires_grad_(False)
    model.renderer = CpuRenderer()
    source, target = made_frame(128, 0.0), made_frame(128, 2.0)
    head = (target.matte > 0.5).float()
    scores = []
    for detailed in (False, True):
        model.detailed = detailed
        scores.append(psnr(model(Pair(source=source, target=target)).dense.image, target.image, head).item())
    assert scores[1] > scores[0] + 0.3, scores
