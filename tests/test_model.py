"""The untrained model is its bases, end to end: a made portrait reenacts as its mesh and its camera say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_scenes import DISTANCE, labelled, made_frame, made_model, pose, seen_from, with_expression
from torch import Tensor

from datasets_toolkit.schema import HEAD_REGIONS, Region
from mggtalk.geometry.cameras import project
from mggtalk.geometry.images import dilate, erode, sample
from mggtalk.geometry.inner_parts import inner_points
from mggtalk.geometry.layers import take_apart
from mggtalk.geometry.neck import SUNK
from mggtalk.metrics.functional import psnr
from mggtalk.types import Frame, Identity, Pair, Rendering, cat

FACE = tuple(region for region in HEAD_REGIONS if region not in (Region.HAIR, Region.NECK))
MODEL = made_model().eval()
pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(name="no_gradients")
def _no_gradients() -> object:
    with torch.no_grad():
        yield


def inside(frame: Frame, regions: tuple[Region, ...] = HEAD_REGIONS, margin: int = 2) -> Tensor:
    """Where a frame shows the regions, ``margin`` pixels away from anything else (b 1 h w, 0 or 1)."""
    shown = labelled(frame, *regions) & (frame.matte > 0.97)
    return erode(shown.to(frame.image), margin)


def render(source: Frame, target: Frame) -> Rendering:
    return MODEL(Pair(source=source, target=target)).dense


def without_mirrored(identity: Identity) -> Identity:
    points = identity.points
    hidden = replace(points.mirrored, mask=torch.zeros_like(points.mirrored.mask))
    return replace(identity, points=replace(points, mirrored=hidden))


def render_identity(identity: Identity, frame: Frame) -> Rendering:
    dense = MODEL.gaussians(identity, frame.expression, frame.camera)[1]
    return MODEL.renderer(dense, frame.camera, (frame.image.shape[-2], frame.image.shape[-1]), MODEL.backdrop(identity, frame.camera))


@pytest.mark.parametrize("size, yaw, bound", [(64, 0.0, 27.0), (96, 0.0, 29.0), (96, 35.0, 29.0), (96, -35.0, 29.0), (160, 10.0, 33.0)])
def test_the_source_reproduces_itself(size: int, yaw: float, bound: float) -> None:
    """Inside the head the image returns but for the blur of the splats; no seams between fine and coarse points."""
    frame = made_frame(size, yaw)
    result = MODEL(Pair(source=frame, target=frame))
    assert psnr(result.dense.image, frame.image, inside(frame)).item() > bound
    assert psnr(result.coarse.image, frame.image, inside(frame)).item() > bound - 6
    assert result.dense.alpha[inside(frame) > 0].min() > 0.98
    away = 1 - dilate((frame.matte > 0.01).to(frame.image), 4)
    assert psnr(result.dense.image, frame.image, away).item() > 40
    torso = inside(frame, (Region.TORSO,), 4)
    assert torso.sum() > 10 and psnr(result.dense.image, frame.image, torso).item() > 40


def test_the_same_expression_and_pose_move_nothing() -> None:
    frame = made_frame(64, 20.0, jaw=0.3)
    identity = MODEL.reconstruct(frame)
    coarse, _ = MODEL.gaussians(identity, frame.expression, frame.camera)
    points = cat([identity.points.visible, identity.points.mirrored], dim=1)
    torch.testing.assert_close(coarse.means[coarse.mask], points.positions[coarse.mask], rtol=0, atol=1e-3)
    seen = identity.points.visible.mask
    torch.testing.assert_close(coarse.features[:, : seen.shape[1]][seen], identity.points.visible.colour[seen])  # mirrored ones are relit


def test_the_target_s_image_is_not_looked_at() -> None:
    source = made_frame()
    target = with_expression(seen_from(source, pose(10)), jawOpen=0.5)
    blank = replace(target, image=torch.zeros_like(target.image), parsing=torch.zeros_like(target.parsing), depth=0 * target.depth)
    assert torch.equal(render(source, target).image, render(source, blank).image)


@pytest.mark.parametrize("right, down", [(5, 0), (0, -4), (-6, 3)])
def test_a_moved_principal_point_moves_the_head_by_as_many_pixels(right: int, down: int) -> None:
    frame = made_frame(64)
    moved = frame.camera.intrinsics.clone()
    moved[:, 0, 2] += right
    moved[:, 1, 2] += down
    target = replace(frame, camera=replace(frame.camera, intrinsics=moved))
    still, shifted = render(frame, frame), render(frame, target)
    face = inside(frame, FACE) > 0
    back = torch.roll(shifted.image, (-down, -right), (-2, -1))
    assert ((back - still.image).abs() * face).max() < 0.02
    assert ((shifted.image - still.image).abs() * face).max() > 0.1


@pytest.mark.parametrize("right, down", [(5, 0), (-4, -3)])
def test_a_head_moved_in_space_moves_in_the_image(right: int, down: int) -> None:
    """By d pixels for d Z / f centimetres, but for the few hundredths by which the nose is nearer than the head's origin."""
    frame = made_frame(64)
    cm = DISTANCE / frame.camera.intrinsics[0, 0, 0].item()
    target = seen_from(frame, pose(shift=(right * cm, down * cm, 0.0)))
    still, shifted = render(frame, frame), render(frame, target)
    face = inside(frame, FACE, 3)
    back = torch.roll(shifted.image, (-down, -right), (-2, -1))
    moved, stayed = psnr(back, still.image, face).item(), psnr(shifted.image, still.image, face).item()
    assert moved > 28 and moved > stayed + 4


def test_opening_the_jaw_opens_the_mouth_and_leaves_the_forehead() -> None:
    frame = made_frame(96)
    opened = render(frame, with_expression(frame, jawOpen=0.7))
    still = render(frame, frame)
    change = (opened.image - still.image).abs().mean(1, keepdim=True)
    rows = torch.arange(96)[:, None].expand(96, 96)
    mouth = labelled(frame, Region.MOUTH, Region.LOWER_LIP)
    forehead = inside(frame, FACE, 1).bool() & (rows < rows[labelled(frame, Region.LEFT_BROW)[0, 0]].min() - 2)
    assert mouth.sum() > 10 and forehead.sum() > 50
    assert change[mouth].mean() > 0.1 and change[forehead].max() < 0.02
    brightness = (opened.image.mean(1, keepdim=True) - still.image.mean(1, keepdim=True))[mouth]
    assert brightness.min() < -0.15  # the dark of the mouth
    away = inside(frame, (Region.BACKGROUND,), 0)
    assert (opened.alpha[inside(frame, FACE) > 0] > 0.9).all() and change[away > 0].sum() == 0


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("turn", [-20.0, 20.0])
def test_a_turned_head_has_no_holes(size: int, turn: float) -> None:
    """All but a few pixels on the receding side, where the source's points are stretched most, are covered to 0.95; none lies bare."""
    source, target = made_frame(size), made_frame(size, turn)
    face = inside(target, FACE, 2 * size // 64) > 0
    assert face.sum() > 200
    alpha = render(source, seen_from(source, pose(turn))).alpha[face]
    assert (alpha > 0.95).float().mean() > 0.95 and alpha.min() > 0.7


def test_a_turned_head_shows_what_the_true_one_would() -> None:
    """The mesh turned is the mesh of the turned frame, and its colours are the source's: nearer to them than the head left still."""
    source = made_frame(96)
    target = seen_from(source, pose(15))
    turned = render(source, target)
    nose = source.mesh[:, 1]
    place = target.camera.intrinsics[0] @ (target.camera.head_to_camera[0, :3, :3] @ nose[0] + target.camera.head_to_camera[0, :3, 3])
    column, row = (place[:2] / place[2]).floor().long().tolist()
    before = source.camera.intrinsics[0] @ (source.camera.head_to_camera[0, :3, :3] @ nose[0] + source.camera.head_to_camera[0, :3, 3])
    old_column, old_row = (before[:2] / before[2]).floor().long().tolist()
    assert column > old_column + 3
    torch.testing.assert_close(turned.image[0, :, row, column], source.image[0, :, old_row, old_column], rtol=0, atol=0.08)


def test_mirrored_points_are_few_for_a_frontal_face_and_many_for_a_turned_one() -> None:
    counts = {}
    for yaw in (0.0, 35.0, -35.0):
        points = MODEL.reconstruct(made_frame(96, yaw)).points
        counts[yaw] = points.mirrored.mask.sum().item() / (points.visible.mask.sum().item())
        chosen = points.counterpart[points.mirrored.mask]
        partner = points.visible.positions[0, chosen]
        torch.testing.assert_close(points.mirrored.positions[points.mirrored.mask], partner * torch.tensor([-1.0, 1, 1]))
        if yaw:
            assert (points.mirrored.positions[points.mirrored.mask][:, 0].sign() == torch.sign(torch.tensor(yaw))).float().mean() > 0.9
    assert counts[0.0] < 0.002 and counts[35.0] > 0.005 and counts[-35.0] > 0.005


@pytest.mark.parametrize("yaw", [0.0, 20.0, 35.0, -35.0])
def test_mirrored_points_do_not_show_at_the_source_s_own_pose(yaw: float) -> None:
    """No doubled silhouette: outside the head nothing appears, and the source is reproduced as well as without them."""
    frame = made_frame(96, yaw)
    identity = MODEL.reconstruct(frame)
    both, alone = render_identity(identity, frame), render_identity(without_mirrored(identity), frame)
    assert psnr(both.image, frame.image).item() > psnr(alone.image, frame.image).item() - 0.5
    outside = 1 - dilate((frame.matte > 0.01).to(frame.image), 1) > 0
    assert (both.alpha - alone.alpha)[outside].max() < 0.25 and (both.alpha - alone.alpha).abs().mean() < 2e-3


def test_mirrored_points_fill_what_the_source_hides() -> None:
    """Turned back from 35 to 20 degrees, less of the cheek that the source hides lies bare with them than without."""
    source, target = made_frame(160, 35.0), made_frame(160, 20.0)
    identity = MODEL.reconstruct(source)
    posed = seen_from(source, pose(20))
    face = inside(target, FACE) > 0
    both, alone = (render_identity(each, posed).alpha[face] for each in (identity, without_mirrored(identity)))
    assert (alone < 0.5).float().mean() > 1.2 * (both < 0.5).float().mean() and (both >= alone - 0.05).float().mean() > 0.99


def test_a_batch_equals_its_members() -> None:
    """Two people at two distances and poses, whose sets have different sizes."""
    sources = [made_frame(64, 0.0, seed=1), made_frame(64, 30.0, 0.3, seed=2, nearer=20.0)]
    turned = [seen_from(frame, pose(yaw)) for frame, yaw in zip(sources, (10, 20), strict=True)]
    targets = [with_expression(frame, jawOpen=jaw) for frame, jaw in zip(turned, (0.5, 0.1), strict=True)]
    together = MODEL(Pair(source=cat(sources), target=cat(targets)))
    for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
        alone = MODEL(Pair(source=source, target=target))
        for stage in ("coarse", "dense"):
            for name in ("image", "alpha"):
                one, many = getattr(getattr(alone, stage), name)[0], getattr(getattr(together, stage), name)[index]
                torch.testing.assert_close(many, one, rtol=0, atol=2e-3, msg=f"{stage} {name} {index}")


def test_capacity_is_a_limit_and_does_not_change_the_picture() -> None:
    frame = made_frame()
    free = MODEL.reconstruct(frame).points.visible.mask.shape[1]
    roomy = made_model(capacity=4000)
    generic = roomy.reconstruct(frame).points.visible.mask.shape[1] - 4000
    needed = free - generic
    torch.testing.assert_close(roomy(Pair(source=frame, target=frame)).dense.image, render(frame, frame).image, rtol=0, atol=1e-5)
    assert made_model(capacity=needed).reconstruct(frame).points.visible.mask.shape[1] == free
    with pytest.raises(ValueError, match=f"{needed} points, more than the capacity of {needed - 1}"):
        made_model(capacity=needed - 1).reconstruct(frame)


def test_a_closed_mouth_and_lids_hide_the_generic_parts() -> None:
    """Without them the source's own rendering hardly differs: they lie behind lips and lids."""
    frame = made_frame(96)
    identity = MODEL.reconstruct(frame)
    mask = identity.points.visible.mask.clone()
    generic = inner_points(frame).mask.shape[1]
    assert mask[:, -generic:].sum() > 100
    mask[:, -generic:] = False
    bare = replace(identity, points=replace(identity.points, visible=replace(identity.points.visible, mask=mask)))
    assert psnr(render_identity(identity, frame).image, render_identity(bare, frame).image, inside(frame)).item() > 35


def test_what_rests_lies_behind_the_chin() -> None:
    """Points of the face where it was measured, of the neck the deeper the more they rest; each still where the source shows it."""
    frame = made_frame(96)
    identity, weight = MODEL.reconstruct(frame), take_apart(frame).head_weight
    assert torch.equal(identity.surface.depth, frame.depth)
    points = identity.points.visible
    points = points[:, : points.mask.shape[1] - inner_points(frame).mask.shape[1]]
    places, depth = project(points.positions, frame.camera)
    sunk = depth - sample(frame.depth, points.pixels)[..., 0]
    shown = points.mask & (sample((frame.depth > 0).float(), points.pixels)[..., 0] == 1)
    rests = 1 - sample(weight, points.pixels)[..., 0]
    off = (sunk - SUNK * rests).abs()
    for part in (shown, shown & (rests == 0), shown & (rests > 0.5)):  # depth is sampled between pixels: outlines of the mesh are steps
        assert part.any() and (off[part] < 0.15).float().mean() > 0.95
    assert sunk[shown].max() > 0.8 * SUNK
    torch.testing.assert_close(places[shown], points.pixels[shown], rtol=0, atol=1e-2)
