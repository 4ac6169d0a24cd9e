"""Losses against closed forms and slow twins; their gradients against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from datasets_toolkit.faces import face_regions
from datasets_toolkit.schema import HEAD_REGIONS, Region
from mggtalk import losses
from mggtalk.geometry.cameras import pixel_centres, unproject
from mggtalk.losses import ImageLoss, Term, image_terms, total
from mggtalk.modules.deformation import skin
from mggtalk.types import Camera, Frame, Gaussians


def frame(image: Tensor, parsing: Tensor | None = None, depth: Tensor | None = None, camera: Camera | None = None) -> Frame:
    """A frame of which a loss looks at what is given; the rest is nothing."""
    batch, _, height, width = image.shape
    blank = image.new_zeros(batch, 1, height, width)
    return Frame(
        image=image,
        parsing=torch.zeros(batch, height, width, dtype=torch.uint8) if parsing is None else parsing,
        matte=blank,
        depth=blank if depth is None else depth,
        normals=torch.zeros_like(image),
        camera=camera or seen(batch, height),
        mesh=image.new_zeros(batch, 3, 3),
        expression=image.new_zeros(batch, 2),
    )


def seen(batch: int, size: int, yaw: float = 0.0, pitch: float = 0.0) -> Camera:
    """The camera of a crop."""
    focal, centre = 3.0 * size, size / 2
    intrinsics = torch.tensor([[focal, 0, centre], [0, focal, centre], [0, 0, 1]])
    head_to_camera = torch.eye(4)
    turned = np.diag([1.0, -1, -1]) @ Rotation.from_euler("yx", [yaw, pitch], degrees=True).as_matrix()
    head_to_camera[:3, :3], head_to_camera[2, 3] = torch.from_numpy(turned), 110.0
    return Camera(intrinsics=intrinsics.expand(batch, 3, 3), head_to_camera=head_to_camera.expand(batch, 4, 4))


def pictures(count: int, size: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count), dtype=dtype)


def labels(count: int, size: int = 16) -> Tensor:
    return torch.randint(0, len(Region), (count, size, size), generator=torch.Generator().manual_seed(9)).to(torch.uint8)


def gaussians(means: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, mask: Tensor | None = None) -> Gaussians:
    return Gaussians(
        means=means,
        quaternions=means.new_tensor([1.0, 0, 0, 0]).expand(*means.shape[:2], 4),
        scales=scales,
        opacities=opacities,
        features=features,
        mask=torch.ones(means.shape[:2], dtype=torch.bool) if mask is None else mask,
    )


def plain(scales: Tensor, opacities: Tensor | None = None, mask: Tensor | None = None) -> Gaussians:
    """Gaussians of given scales at the origin."""
    zero = torch.zeros_like(scales)
    return gaussians(zero, scales, scales.new_ones(scales.shape[:2]) if opacities is None else opacities, zero, mask)


def test_a_total_is_the_weighted_sum_and_what_has_no_weight_takes_no_part() -> None:
    terms = {
        "one": Term(value=torch.tensor([1.0, 2.0]), weight=2.0),
        "two": Term(value=torch.tensor([3.0, 5.0]), weight=-0.5),
        "broken": Term(value=torch.tensor([math.nan, math.inf]), weight=0.0),
    }
    assert total(terms).tolist() == [0.5, 1.5]


def test_parts_of_the_image_loss_without_weight_are_not_computed() -> None:
    target, image = frame(pictures(2)), pictures(3)[:2]
    asked: list[Tensor] = []

    def distance(first: Tensor, second: Tensor) -> Tensor:
        asked.append(first)
        return (first - second).square().mean((1, 2, 3))

    every = image_terms("dense", image, target, ImageLoss(), distance)
    assert {name: term.weight for name, term in every.items()} == {"dense/l1": 1.0, "dense/ssim": 0.2, "dense/perceptual": 0.01}
    assert torch.equal(every["dense/perceptual"].value, distance(image, target.image))
    asked.clear()
    assert image_terms("x", image, target, ImageLoss(l1=0.0, ssim=0.0, perceptual=0.0), distance) == {}
    assert list(image_terms("x", image, target, ImageLoss(perceptual=0.0), distance)) == ["x/l1", "x/ssim"] and not asked


def test_the_image_loss_against_numpy_and_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    target, image = frame(pictures(2, 32).double(), labels(2, 32)), pictures(3, 32)[:2].double()
    terms = image_terms("a", image, target, ImageLoss(focus=0.0), lambda one, two: (one - two).mean((1, 2, 3)))
    for row in range(2):
        first, second = image[row].numpy(), target.image[row].numpy()
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "channel_axis": 0}
        assert terms["a/l1"].value[row].item() == pytest.approx(np.abs(first - second).mean(), abs=1e-12)
        assert terms["a/ssim"].value[row].item() == pytest.approx(1 - structural_similarity(first, second, **options), abs=1e-9)


@pytest.mark.parametrize("focus", [0.0, 3.0])
def test_the_focused_difference_against_a_loop(focus: float) -> None:
    target, image = frame(pictures(2), labels(2)), pictures(3)[:2]
    for row in range(2):
        weight = [[1 + focus * (label in {4, 5, 7, 8, 9}) for label in line] for line in target.parsing[row].tolist()]
        miss = np.abs(image[row].numpy() - target.image[row].numpy()).mean(0)
        assert losses.focused_l1(image, target, focus)[row].item() == pytest.approx(np.average(miss, weights=weight), rel=1e-5)


@given(st.floats(0, 10), st.floats(0.01, 0.9))
def test_a_constant_difference_is_that_difference_whatever_the_focus(focus: float, offset: float) -> None:
    target = frame(torch.zeros(2, 3, 16, 16), labels(2))
    assert losses.focused_l1(target.image + offset, target, focus).tolist() == pytest.approx([offset] * 2, rel=1e-4)


def test_the_head_mask_is_the_head_with_its_neck() -> None:
    target = frame(pictures(1), labels(1))
    expected = np.isin(target.parsing.numpy(), [int(region) for region in HEAD_REGIONS])[:, None]
    np.testing.assert_array_equal(losses.head_mask(target).numpy(), expected)


def ball(size: int, yaw: float, pitch: float, radius: float = 8.0) -> tuple[Frame, Tensor]:
    """Exact depth of a ball in the head, and where on it each pixel looks (canonical, with zeros beyond it)."""
    camera = seen(1, size, yaw, pitch)
    pixels = pixel_centres(size, size).reshape(1, -1, 2)
    eye = unproject(pixels, torch.zeros(1, size * size), camera)
    ray = unproject(pixels, torch.ones(1, size * size), camera) - eye
    a, b, c = ray.square().sum(-1), (ray * eye).sum(-1), eye.square().sum(-1) - radius**2
    root = b.square() - a * c
    depth = torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, 0)
    image = torch.zeros(1, 3, size, size)
    return frame(image, depth=depth.reshape(1, 1, size, size), camera=camera), eye + depth[..., None] * ray


def test_a_true_surface_agrees_with_itself_in_another_pose() -> None:
    """Up to the depth that changes within a pixel; a surface that is nearer by a centimetre's part does not."""
    source, points = ball(128, 0.0, 0.0)
    target, _ = ball(128, 12.0, -8.0)
    facing = (points[0, :, 2] > 5.5).float()[None]
    assert losses.depth_agreement(points, facing, target).item() < 0.06
    assert losses.depth_agreement(points, facing, source).item() < 1e-4
    for moved in (0.3, -0.3):
        toward = points + moved * torch.tensor([0.0, 0, 1])
        assert losses.depth_agreement(toward, facing, target).item() == pytest.approx(0.3, abs=0.05)


def test_depths_that_differ_much_show_two_surfaces_and_move_nothing() -> None:
    target = frame(torch.zeros(1, 3, 8, 8), depth=torch.full((1, 1, 8, 8), 100.0))
    for deviation, expected in ((0.25, 0.25), (-0.25, 0.25), (5.0, 1.0)):
        pixels, depth = torch.full((1, 1, 2), 4.5), torch.tensor([[100.0 + deviation]])
        points = unproject(pixels, depth, target.camera).requires_grad_()
        found = losses.depth_agreement(points, torch.ones(1, 1), target)
        (slope,) = torch.autograd.grad(found.sum(), points)
        assert found.item() == pytest.approx(expected, abs=1e-4)
        assert slope.abs().max().item() == pytest.approx(0 if deviation > 1 else 1, abs=1e-3), "depth alone pulls, along the axis"
    assert losses.depth_agreement(points.detach(), torch.ones(1, 1), target, limit=9.0).item() == pytest.approx(5.0, abs=1e-4)


def test_points_that_are_hidden_outside_or_over_unknown_depth_do_not_count() -> None:
    depth = torch.full((1, 1, 8, 8), 100.0)
    depth[..., :4] = 0
    target = frame(torch.zeros(1, 3, 8, 8), depth=depth)
    pixels = torch.tensor([[[6.5, 4.5], [5.5, 2.5], [1.5, 4.5], [9.5, 4.5], [-0.5, 4.5]]])
    points = unproject(pixels, torch.tensor([[100.5, 100.1, 100.5, 100.9, 100.9]]), target.camera)
    assert losses.depth_agreement(points, torch.tensor([[1.0, 0, 1, 1, 1]]), target).item() == pytest.approx(0.5, abs=1e-4)
    assert losses.depth_agreement(points, torch.tensor([[3.0, 1, 1, 1, 1]]), target).item() == pytest.approx(0.4, abs=1e-4)
    assert losses.depth_agreement(points, torch.zeros(1, 5), target).item() == 0, "nothing to compare is no disagreement"


def test_normals_disagree_by_one_minus_the_cosine_where_both_are_known() -> None:
    angle = 0.3
    first = torch.zeros(2, 3, 2, 2)
    first[:, 2] = -1
    turned = torch.tensor([math.sin(angle), 0, -math.cos(angle)])[None, :, None, None].expand(2, 3, 2, 2).clone()
    turned[0, :, 0] = 0  # not annotated
    first[1, :, :, 0] = 0  # no surface
    assert losses.normal_agreement(first, turned).tolist() == pytest.approx([1 - math.cos(angle)] * 2, abs=1e-6)
    assert losses.normal_agreement(torch.zeros_like(first), turned).tolist() == [0, 0]


def test_roughness_is_the_second_difference_within_the_mask() -> None:
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    mask = torch.ones(1, 1, 6, 7)
    assert losses.roughness((0.3 * x - 2 * y + 5)[None, None], mask).item() == pytest.approx(0, abs=1e-5)
    bowl = (x.square() + 3 * y.square())[None, None]
    right, down = 6 * 5, 4 * 7
    assert losses.roughness(bowl, mask).item() == pytest.approx((2 * right + 6 * down) / (right + down), rel=1e-5)
    spike = torch.zeros(1, 1, 6, 7)
    spike[..., 3, 3] = 9
    mask[..., 3, 3] = 0
    assert losses.roughness(spike, mask).item() == 0 and losses.roughness(spike, torch.zeros_like(mask)).item() == 0


def test_the_cloud_of_a_mesh_moves_as_its_vertices() -> None:
    mesh = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
    moved = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(skin(losses.mesh_cloud(mesh), moved).positions, mesh + moved)


def test_landmarks_are_weighted_at_lids_and_lips() -> None:
    weights = losses.landmark_weights(478, 3.0)
    focused = {*face_regions.LEFT_EYE, *face_regions.RIGHT_EYE, *face_regions.LIPS_OUTER, *face_regions.MOUTH_INNER}
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    for vertex in range(478):
        assert weights[vertex].item() / weights.min().item() == pytest.approx(4.0 if vertex in focused else 1.0, rel=1e-5), vertex
    assert torch.equal(losses.landmark_weights(478, 0.0), torch.ones(478))
    moved = torch.zeros(1, 478, 3)
    moved[..., :2] = torch.tensor([3.0, 4.0])
    assert losses.landmark_motion(moved, torch.zeros(1, 478, 3), weights).item() == pytest.approx(5.0, rel=1e-5)


def test_children_are_measured_in_sizes_of_their_parents() -> None:
    means = torch.tensor([[[0.0, 0, 0], [5, 5, 5], [9, 9, 9]]])
    coarse = plain(torch.tensor([[[0.5, 0.2, 0.1], [0.1, 2.0, 0.1], [1.0, 1, 1]]]), mask=torch.tensor([[True, True, False]]))
    coarse = replace(coarse, means=means)
    offsets = torch.tensor([[[1.0, 0, 0], [-1, 0, 0], [0, 2, 0], [0, 0, 0], [7, 7, 7], [8, 8, 8]]])
    dense = replace(plain(torch.ones(1, 6, 3)), means=means.repeat_interleave(2, 1) + offsets)
    first, second = 1 / 0.5**2, 2**2 / 2 / 2.0**2
    assert losses.child_offsets(coarse, dense).item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert losses.child_offsets(replace(coarse, mask=torch.zeros(1, 3, dtype=torch.bool)), dense).item() == 0


def test_growing_parents_do_not_excuse_their_children() -> None:
    coarse, scales = plain(torch.ones(1, 1, 3)), torch.ones(1, 1, 3, requires_grad=True)
    dense = replace(plain(torch.ones(1, 2, 3)), means=torch.ones(1, 2, 3, requires_grad=True))
    found = losses.child_offsets(replace(coarse, scales=scales), dense).sum()
    slopes = torch.autograd.grad(found, [scales, dense.means], allow_unused=True)
    assert slopes[0] is None and slopes[1].abs().min() > 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_needles_and_blobs_are_what_exceeds_the_bounds(order: tuple[int, int, int]) -> None:
    needle, blob, fine = [0.4, 0.02, 0.01], [2.0, 1.9, 0.1], [0.3, 0.2, 0.001]
    scales = torch.tensor([[needle, blob, fine, needle]])[..., list(order)]
    mask = torch.tensor([[True, True, True, False]])
    expected = (math.log(20 / 8) ** 2 + math.log(2 / 0.5) ** 2) / 3
    assert losses.stretched(plain(scales, mask=mask)).item() == pytest.approx(expected, rel=1e-5)
    assert losses.stretched(plain(torch.zeros(1, 2, 3))).item() == 0, "no scale is no needle"


def test_haze_is_most_at_one_half() -> None:
    opacities = torch.tensor([[0.0, 1.0, 0.5, 0.25], [1.0, 1.0, 0.5, 0.5]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    found = losses.haze(plain(torch.ones(2, 4, 3), opacities, mask))
    assert found.tolist() == pytest.approx([(1 + 0.75) / 4, 1 / 3])


def test_asymmetry_compares_with_the_counterpart_which_stays_as_it_is() -> None:
    features = torch.tensor([[[0.1, 0.2], [0.5, 0.5], [0.9, 0.3], [0.4, 0.9], [0.0, 0.0]]], requires_grad=True)
    ones = torch.ones(1, 5, 3)
    coarse = gaussians(torch.zeros(1, 5, 3), ones, torch.ones(1, 5), features, torch.tensor([[True, True, True, True, False]]))
    found = losses.asymmetry(coarse, torch.tensor([[1, 0]]))
    assert found.item() == pytest.approx((0.1 + 0.4) / 2)
    (slope,) = torch.autograd.grad(found.sum(), features)
    assert slope[:, :3].abs().max() == 0 and slope[:, 3].abs().min() > 0 and slope[:, 4].abs().max() == 0


def smooth_losses() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Functions of tensors in double precision, away from their kinks."""
    generator = torch.Generator().manual_seed(4)

    def rand(*shape: int, low: float = 0.0) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) + low

    target = frame(rand(2, 3, 12, 12), labels(2, 12))
    annotated, mask = rand(1, 3, 3, 3, low=0.5), torch.ones(1, 1, 4, 4, dtype=torch.float64)
    parents, order = plain(rand(2, 3, 3, low=0.2)), torch.tensor([[1, 0], [0, 2]])
    weights, visible = rand(5), rand(2, 3, 2)
    needles = torch.tensor([[[0.9, 0.02, 0.01], [1.4, 0.8, 0.1]]], dtype=torch.float64)

    def terms(image: Tensor) -> Tensor:
        return total(image_terms("a", image, target, ImageLoss(), lambda one, two: (one - two).square().mean((1, 2, 3))))

    def coloured(mirrored: Tensor) -> Tensor:
        return losses.asymmetry(replace(plain(torch.ones(2, 5, 3)), features=torch.cat([visible, mirrored], 1)), order)

    return {
        "image": (terms, [rand(2, 3, 12, 12, low=0.001)]),
        "normals": (lambda normals: losses.normal_agreement(normals, annotated), [rand(1, 3, 3, 3, low=0.5)]),
        "roughness": (lambda offset: losses.roughness(offset, mask), [rand(1, 1, 4, 4)]),
        "landmarks": (lambda one, two: losses.landmark_motion(one, two, weights), [rand(2, 5, 3), rand(2, 5, 3, low=1)]),
        "children": (lambda means: losses.child_offsets(parents, replace(plain(rand(2, 6, 3)), means=means)), [rand(2, 6, 3)]),
        "stretched": (lambda scales: losses.stretched(plain(scales)), [needles]),
        "haze": (lambda opacities: losses.haze(plain(rand(2, 4, 3), opacities)), [rand(2, 4)]),
        "asymmetry": (coloured, [rand(2, 2, 2)]),
    }


@pytest.mark.parametrize("name", list(smooth_losses()))
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    function, inputs = smooth_losses()[name]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-5)
    assert max(slope.abs().max() for slope in torch.autograd.grad(function(*inputs).sum(), inputs)) > 1e-4


def test_the_gradient_of_agreement_is_that_of_finite_differences() -> None:
    camera = seen(1, 8)
    camera = Camera(intrinsics=camera.intrinsics.double(), head_to_camera=camera.head_to_camera.double())
    target = frame(torch.zeros(1, 3, 8, 8, dtype=torch.float64), depth=torch.full((1, 1, 8, 8), 100.0, dtype=torch.float64), camera=camera)
    pixels = torch.tensor([[[2.3, 4.4], [6.6, 3.6], [5.5, 6.4]]], dtype=torch.float64)
    points = unproject(pixels, torch.tensor([[100.3, 99.8, 100.6]], dtype=torch.float64), camera).requires_grad_()
    weights = torch.tensor([[1.0, 0.5, 0.2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda moved: losses.depth_agreement(moved, weights, target), [points], eps=1e-6)
