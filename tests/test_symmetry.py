"""Mirroring, the voxel filter against its slow twin, and what a view cannot show."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mggtalk.geometry.head_points import CHILD_STEPS
from mggtalk.geometry.symmetry import hidden_behind, mirror_cloud, mirror_points, voxel_filter
from mggtalk.types import Camera, PointCloud, Surface, stack

seeds = st.integers(0, 10**6)
SWAP = torch.tensor([0, 2, 1, 4, 3, 5])


def random_cloud(seed: int, *shape: int) -> PointCloud:
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*shape, *sizes, generator=generator)

    return PointCloud(
        positions=normal(3),
        tangents=normal(2, 3),
        pixels=normal(2),
        anchors=torch.randint(0, 6, (*shape, 3), generator=generator),
        weights=normal(3),
        weight_steps=normal(2, 3),
        head_weight=normal(),
        head_weight_steps=normal(2),
        colour=normal(3),
        opacity=normal(),
        child_colour=normal(4, 3),
        child_opacity=normal(4),
        mask=normal() > 0,
    )


@settings(deadline=None)
@given(seed=seeds)
def test_mirroring_twice_is_the_identity(seed: int) -> None:
    cloud = random_cloud(seed, 2, 5)
    once = mirror_cloud(cloud, SWAP)
    twice = mirror_cloud(once, SWAP)
    for name, value in cloud.__dict__.items():
        assert torch.equal(getattr(twice, name), value), name
    assert not torch.equal(once.positions, cloud.positions) and not torch.equal(once.anchors, cloud.anchors)


@settings(deadline=None)
@given(seed=seeds)
def test_mirrored_frames_keep_their_handedness(seed: int) -> None:
    """The mirrored normal is the normal of the mirrored frame, and the frame of a mirrored plane looks the same to a frontal camera."""
    cloud = random_cloud(seed, 7)
    mirrored = mirror_cloud(cloud, SWAP)
    normals, theirs = (torch.linalg.cross(each.tangents[:, 0], each.tangents[:, 1]) for each in (cloud, mirrored))
    torch.testing.assert_close(theirs, mirror_points(normals))
    assert torch.equal(mirrored.tangents[:, 0, 0], cloud.tangents[:, 0, 0])
    assert torch.equal(mirrored.tangents[:, 1, 1:], cloud.tangents[:, 1, 1:])


def test_a_worked_mirror() -> None:
    cloud = random_cloud(0, 1)
    mirrored = mirror_cloud(cloud, SWAP)
    x, y, z = cloud.positions[0].tolist()
    assert mirrored.positions[0].tolist() == [-x, y, z]
    assert mirrored.anchors[0].tolist() == [SWAP[anchor] for anchor in cloud.anchors[0]]
    assert torch.equal(mirrored.pixels, cloud.pixels) and torch.equal(mirrored.weights, cloud.weights)
    with pytest.raises(ValueError, match="inverse"):
        mirror_cloud(cloud, torch.tensor([1, 2, 0, 3, 4, 5]))


@settings(deadline=None)
@given(seed=seeds)
def test_steps_and_children_turn_with_the_frame(seed: int) -> None:
    """A child of a mirrored point lies at the mirrored place of the child whose colour it has; so do the weights a step away."""
    cloud = random_cloud(seed, 3)
    mirrored = mirror_cloud(cloud, SWAP)
    steps = torch.tensor(CHILD_STEPS)
    places, theirs = (each.positions[:, None] + steps @ each.tangents for each in (cloud, mirrored))
    weights, their_weights = (each.weights[:, None] + steps @ each.weight_steps for each in (cloud, mirrored))
    nearest = (theirs[:, :, None] - mirror_points(places)[:, None]).norm(dim=-1)
    assert nearest.amin(dim=-1).max() < 1e-5
    for point, which in enumerate(nearest.argmin(dim=-1)):
        assert torch.equal(mirrored.child_colour[point], cloud.child_colour[point, which])
        assert torch.equal(mirrored.child_opacity[point], cloud.child_opacity[point, which])
        torch.testing.assert_close(their_weights[point], weights[point, which])


@pytest.mark.parametrize("swap", [(0, 1, 2), (1, 2, 3, 0)])
def test_children_that_do_not_pair_up_are_refused(swap: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="child_mirror"):
        mirror_cloud(random_cloud(0, 1), SWAP, child_mirror=swap)


def slow_filter(candidates: Tensor, candidate_mask: Tensor, visible: Tensor, visible_mask: Tensor, size: float, reach: int) -> Tensor:
    """Every pair of points of one batch entry: dropped if the voxel numbers differ by at most ``reach`` along every axis."""
    keep = candidate_mask.clone()
    for index, point in enumerate(candidates):
        for other, valid in zip(visible, visible_mask, strict=True):
            if valid and ((point / size).floor() - (other / size).floor()).abs().max() <= reach:
                keep[index] = False
    return keep


@settings(deadline=None, max_examples=50)
@given(seed=seeds, size=st.floats(0.05, 3), reach=st.integers(0, 2), sparse=st.booleans())
def test_voxel_filter_agrees_with_its_slow_twin(seed: int, size: float, reach: int, sparse: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    candidates, visible = torch.randn(2, 3, 6, 3, generator=generator), torch.randn(2, 3, 8, 3, generator=generator)
    masks = [torch.rand(2, 3, count, generator=generator) > (0.8 if sparse else 0.2) for count in (6, 8)]
    keep = voxel_filter(candidates, masks[0], visible, masks[1], size, reach)
    wanted = [slow_filter(candidates[i, j], masks[0][i, j], visible[i, j], masks[1][i, j], size, reach) for i in range(2) for j in range(3)]
    assert torch.equal(keep, torch.stack(wanted).reshape(2, 3, 6))


def test_worked_voxels() -> None:
    """One visible point in voxel (0, 0, 0): its 26 neighbours are dropped, the next ring is kept; a masked one drops nothing."""
    axis = torch.arange(-2, 3) + 0.5
    candidates = torch.cartesian_prod(axis, axis, axis)
    everyone = torch.ones(125, dtype=torch.bool)
    visible = torch.tensor([[0.9, 0.1, 0.5]])
    keep = voxel_filter(candidates, everyone, visible, torch.tensor([True]), 1.0)
    assert torch.equal(keep, (candidates - 0.5).abs().amax(dim=-1) > 1) and keep.sum() == 125 - 27
    assert voxel_filter(candidates, everyone, visible, torch.tensor([True]), 1.0, reach=0).sum() == 124
    assert voxel_filter(candidates, everyone, visible, torch.tensor([False]), 1.0).all()
    assert not voxel_filter(candidates, ~everyone, visible, torch.tensor([True]), 1.0).any()


def test_voxels_do_not_meet_across_the_edges_or_the_batch() -> None:
    """Rows of the numbering touch: the last voxel of one is no neighbour of the first of the next; nor are two heads of a batch."""
    visible = torch.tensor([[[0.5, 0.5, 9.5], [0.5, 0.5, 0.5]], [[50.5, 0.5, 0.5], [50.5, 0.5, 0.5]]])
    candidates = torch.tensor([[[0.5, 1.5, 5.5], [50.5, 0.5, 0.5]], [[0.5, 0.5, 0.5], [50.5, 1.5, 1.5]]])
    everyone = torch.ones(2, 2, dtype=torch.bool)
    assert voxel_filter(candidates, everyone, visible, everyone, 1.0).tolist() == [[True, True], [True, False]]


def test_voxel_filter_refuses_what_it_cannot_number() -> None:
    points, mask = torch.tensor([[0.0, 0, 0], [1e6, 1e6, 1e6]]), torch.ones(2, dtype=torch.bool)
    for size in (0.0, -1.0, 1e-6):
        with pytest.raises(ValueError, match="voxel_size"):
            voxel_filter(points, mask, points, mask, size)


def test_hidden_behind_a_wall() -> None:
    """A wall at 50 cm in the left half of a 4 x 4 image; the margin is 2 cm and counts itself."""
    pose = torch.eye(4)
    camera = Camera(intrinsics=torch.tensor([[4.0, 0, 2], [0, 4, 2], [0, 0, 1]]), head_to_camera=pose)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    surface = Surface(depth=torch.where(mask, 50.0, 0.0), normals=torch.zeros(3, 4, 4), mask=mask)
    rays = {"wall": [-0.1, 0.1, 1], "free": [0.1, 0.1, 1], "outside": [-0.6, 0.1, 1]}

    def at(ray: str, depth: float) -> Tensor:
        return depth * torch.tensor(rays[ray])

    points = torch.stack([at("wall", 52), at("wall", 51.9), at("wall", 40), at("wall", -60), at("free", 60), at("outside", 60)])
    assert hidden_behind(points, surface, camera, 2.0).tolist() == [True, False, False, False, False, False]
    batched = hidden_behind(points.expand(3, 6, 3), stack([surface] * 3), stack([camera] * 3), 2.0)
    assert batched[:, 0].all() and not batched[:, 1:].any()
