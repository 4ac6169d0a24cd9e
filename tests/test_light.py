"""Light on a face that turns: closed forms, a slow twin, and what a made portrait shows under a light that stays."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_scenes import face_model, made_frame, made_model, pose, project_head, seen_from, with_expression
from safetensors.torch import load_file
from torch import Tensor
from training_scenes import make_persons

from datasets_toolkit.schema import Region
from mggtalk.geometry.layers import one_of
from mggtalk.geometry.light import (
    DARK,
    FACING,
    LIMIT,
    OUTLIER,
    PRIOR,
    SHARE,
    FaceLight,
    camera_normals,
    fitted_light,
    log_brightness,
    shaded,
)
from mggtalk.metrics.functional import psnr
from mggtalk.types import Frame, Light, Pair, cat

SKIN = (Region.SKIN, Region.NOSE)
LIT = torch.tensor([0.5, -0.3, -0.6])


def directions(count: int, seed: int = 0) -> Tensor:
    """Unit vectors towards the camera."""
    normals = torch.randn(1, count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    normals[..., 2] = -normals[..., 2].abs() - 0.3
    return torch.nn.functional.normalize(normals, dim=-1)


def test_the_light_is_the_ridge_solution() -> None:
    """Where nothing is missed by more than the threshold."""
    normals = directions(200)
    seen = 0.4 + normals @ (0.2 * LIT.double())
    augmented = np.concatenate([np.c_[np.ones(200), normals[0].numpy()], np.sqrt(PRIOR) * np.eye(4)[1:]])
    wanted = np.linalg.lstsq(augmented, np.concatenate([seen[0].numpy(), np.zeros(3)]), rcond=None)[0]
    assert np.abs(seen[0].numpy() - augmented[:200] @ wanted).max() < OUTLIER
    found = fitted_light(seen, normals, torch.ones(1, 200, dtype=torch.float64))
    np.testing.assert_allclose(found[0].numpy(), wanted[1:], atol=1e-6)
    assert 0.3 < np.linalg.norm(wanted[1:]) / (0.2 * float(LIT.norm())) < 1


def test_a_fringe_does_not_make_the_light() -> None:
    """A third of what looks up is covered by something dark: least squares take it for light from below."""
    normals, light = directions(400), LIT.double()
    seen = normals @ light
    covered = (normals[..., 1] < -0.3) & (torch.arange(400) % 3 == 0)
    spoilt = seen - 1.5 * covered
    trusted = torch.ones(1, 400, dtype=torch.float64)
    clean, robust = fitted_light(seen, normals, trusted), fitted_light(spoilt, normals, trusted)
    once = fitted_light(1e-3 * spoilt, normals, trusted) / 1e-3  # nothing is an outlier: least squares
    assert (robust - clean).norm() < 0.5 * (once - fitted_light(1e-3 * seen, normals, trusted) / 1e-3).norm()


def test_normals_are_the_mean_of_the_triangles_around() -> None:
    """Against a loop; a turned camera turns them; a flat sheet has one."""
    frame, triangles = made_frame(64, yaw=20.0), face_model().triangles
    fast = camera_normals(frame.mesh, frame.camera, triangles)
    slow = torch.zeros_like(frame.mesh[0])
    for triangle in triangles.tolist():
        a, b, c = (frame.mesh[0, vertex] for vertex in triangle)
        for vertex in triangle:
            slow[vertex] += torch.linalg.cross(b - a, c - a)
    slow = torch.nn.functional.normalize(slow, dim=-1) @ frame.camera.head_to_camera[0, :3, :3].T
    torch.testing.assert_close(fast[0], slow, rtol=0, atol=1e-5)
    assert (fast[0, 468:] == 0).all() and fast[0, 4, 2] < -0.8  # irises are points; the nose's tip looks at the camera
    sheet = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]])
    flat = camera_normals(sheet, seen_from(frame, np.eye(4)).camera, torch.tensor([[0, 1, 2], [1, 3, 2]]))
    torch.testing.assert_close(flat, torch.tensor([0.0, 0, 1]).expand(1, 4, 3))


def test_brightness_is_read_where_vertices_are() -> None:
    frame = made_frame(128)
    ramp = torch.linspace(0.1, 0.9, 128).expand(1, 3, 128, 128)
    read = log_brightness(ramp, frame.mesh, frame.camera).exp()[0]
    columns = project_head(frame.mesh[0].double().numpy(), frame.camera.head_to_camera[0].double().numpy(), 128)[0][:, 0]
    np.testing.assert_allclose(read.numpy(), 0.1 + 0.8 * (columns - 0.5) / 127, atol=2e-3)
    black = log_brightness(torch.zeros(1, 3, 128, 128), frame.mesh, frame.camera)
    torch.testing.assert_close(black, torch.full_like(black, DARK).log())


def painted(frame: Frame, light: Tensor) -> Frame:
    """The frame with plain skin, lit from one direction."""
    skin = one_of(frame.parsing[:, None], SKIN) & (frame.normals.square().sum(1, keepdim=True) > 0)
    shade = 0.35 * (light.to(frame.normals) @ frame.normals.flatten(2)).view(1, 1, *frame.image.shape[-2:]).exp()
    return replace(frame, image=torch.where(skin, shade.clamp(max=1).expand_as(frame.image), frame.image))


@pytest.mark.parametrize("yaw", [-15.0, 15.0])
def test_a_face_that_turns_is_lit_as_the_light_says(yaw: float) -> None:
    """Painted under one light from two sides: what was given back too bright or too dark is nearer to the truth."""
    model = made_model().eval().requires_grad_(False)
    source, target = (painted(made_frame(96, yaw=angle), LIT) for angle in (0.0, yaw))
    skin = one_of(target.parsing[:, None], SKIN).float()
    lit = psnr(model(Pair(source=source, target=target)).dense.image, target.image, skin)
    model.relit = False
    plain = psnr(model(Pair(source=source, target=target)).dense.image, target.image, skin)
    assert lit > plain + 0.5, (lit, plain)


def test_the_light_of_a_portrait_points_where_it_comes_from() -> None:
    """Across the picture; a face looks at the camera, and tells little of what lies between before it and behind it."""
    light, frames = FaceLight(), [painted(made_frame(128), sign * LIT) for sign in (1.0, -1.0)]
    one, other = (light(frame).direction[0] for frame in frames)
    across = (one - other)[:2] / (2 * SHARE * light.gain)
    assert torch.nn.functional.cosine_similarity(across, LIT[:2], dim=0) > 0.9, across
    assert 0.2 < across.norm() / LIT[:2].norm() < 1  # the prior shortens it


def test_where_nothing_turns_nothing_changes() -> None:
    model, frame = made_model(), made_frame(64)
    light = model.light(frame)
    change = model.light.change(light, torch.zeros_like(frame.mesh), frame.expression, frame.camera)
    torch.testing.assert_close(change[:, 0], torch.zeros_like(change[:, 0]), rtol=0, atol=1e-6)
    cloud = model.reconstruct(frame).points.visible
    torch.testing.assert_close(shaded(change, cloud, cloud.mask.shape[1]), torch.ones_like(cloud.colour))


def test_mirrored_points_start_from_where_their_colours_were_seen() -> None:
    """On a mesh that is its own mirror image, lit from the right, what the left shows of the right changes by twice its own light."""
    model, frame = FaceLight(), made_frame(64)
    mesh = 0.5 * (frame.mesh + frame.mesh[:, model.mirror] * torch.tensor([-1.0, 1, 1]))
    normals = camera_normals(mesh, frame.camera, model.triangles)
    direction = torch.tensor([[0.1, 0.0, 0.0]])
    light = Light(direction=direction, mesh=mesh, normals=normals, folds=torch.zeros_like(normals[..., 0]))
    change = model.change(light, torch.zeros_like(mesh), torch.zeros_like(frame.expression), frame.camera)
    missed = (change[0, 1] - 2 * (normals[0] @ direction[0])[:, None] * model.tint).abs()
    assert missed.median() < 1e-6 and (missed < 1e-5).float().mean() > 0.9 and missed.max() < 0.025  # a few triangles lie the other way


def test_points_take_their_share_of_what_their_vertices_change() -> None:
    cloud = made_model().reconstruct(made_frame(64)).points.visible
    count, visible = cloud.mask.shape[1], cloud.mask.shape[1] // 2
    change = torch.randn(1, 2, 478, 3, generator=torch.Generator().manual_seed(1))
    fast = shaded(change, cloud, visible)[0]
    for point in range(0, count, 37):
        field, bound = change[0, 0 if point < visible else 1], zip(cloud.weights[0, point], cloud.anchors[0, point], strict=True)
        told = sum(float(weight) * field[anchor].numpy() for weight, anchor in bound)
        np.testing.assert_allclose(fast[point].numpy(), np.exp(told), rtol=1e-4)
    away = cloud.weights[0].abs().sum(-1) < 1e-6
    assert away.any() and (fast[away] - 1).abs().max() < 1e-5


@given(st.floats(-90, 90), st.floats(-45, 45), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_nothing_changes_more_than_the_limits(yaw: float, pitch: float, jaw: float, seed: int) -> None:
    model, source = FaceLight(), made_frame(64, seed=seed % 3)
    light = model(source)
    strong = replace(light, direction=light.direction + torch.randn(1, 3, generator=torch.Generator().manual_seed(seed)))
    target = with_expression(seen_from(source, pose(yaw, pitch)), jawOpen=jaw)
    displacement = face_model().displacement(target.expression - source.expression)
    change = model.change(strong, displacement, target.expression, target.camera)
    assert torch.isfinite(change).all() and (change.abs() <= 2 * LIMIT * model.tint + 1e-6).all()


def test_batches_are_their_rows() -> None:
    model, frames = FaceLight(), [painted(made_frame(64, seed=seed), LIT) for seed in (0, 1)]
    both = model(cat(frames))
    for index, frame in enumerate(frames):
        torch.testing.assert_close(both.direction[index], model(frame).direction[0], rtol=1e-4, atol=1e-5)


def test_what_ships_says_that_light_comes_from_above_and_in_front() -> None:
    light = FaceLight()
    assert light.pattern.shape == light.trust.shape == (478,) and torch.isfinite(light.pattern).all()
    assert light.trust.min() >= 0 and light.trust.max() <= 1 and light.trust.max() > 0.5
    right, down, away = light.common.tolist()
    assert abs(right) < 0.05 and -0.6 < down < -0.1 and -0.6 < away < -0.1 and 0.5 < float(light.gain) < 2.5
    normals = camera_normals(face_model().mean[None], made_frame(64).camera, light.triangles)
    assert 300 < int((normals[..., 2] < -FACING).sum()) < 478
    red, green, blue = light.tint.tolist()
    assert 0.7 < red < green < blue < 1.3 and red + green + blue == pytest.approx(3, abs=1e-5)


def test_folds_are_shadows_where_skin_folds() -> None:
    """Of what ships: brows that go down darken what lies below them, and both sides are alike."""
    light, face = FaceLight(), face_model()
    assert light.folds.shape == (face.expression_size, 478) and torch.isfinite(light.folds).all()
    frame = made_frame(64)
    frown = with_expression(frame, browDownLeft=0.8, browDownRight=0.8)
    folds = (frown.expression - frame.expression)[0] @ light.folds
    assert folds[[442, 222]].max() < -0.05, folds[[442, 222]]
    uneven = (folds - folds[light.mirror]).abs()
    assert uneven.mean() < 0.15 * folds.abs().mean()


def test_folds_follow_the_expression() -> None:
    """What changes is the change of the folds alone where the head stays and nothing moves; the mirror image has folds of its own."""
    model, frame = FaceLight(), made_frame(64)
    target = frame.expression + 0.01 * torch.randn(frame.expression.shape, generator=torch.Generator().manual_seed(0))
    change = model.change(model(frame), torch.zeros_like(frame.mesh), target, frame.camera)
    folded = SHARE * (target - frame.expression) @ model.folds
    assert 1e-4 < folded.abs().max() < LIMIT
    torch.testing.assert_close(change[:, 0], folded[..., None] * model.tint, rtol=0, atol=2e-6)
    there = SHARE * (target @ model.folds - (frame.expression @ model.folds)[:, model.mirror])
    flat = model.change(replace(model(frame), direction=torch.zeros(1, 3)), torch.zeros_like(frame.mesh), target, frame.camera)
    torch.testing.assert_close(flat[:, 1], there.clamp(-LIMIT, LIMIT)[..., None] * model.tint, rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_fit_light", Path(__file__).parents[1] / "tools" / "fit_light.py")
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_faces_have_in_common_is_found_again(tool: ModuleType) -> None:
    """Made brightness of faces that turn, under lights about a common one: L is that, and most is explained."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    common = torch.tensor([0.05, -0.3, -0.4])
    rest = directions(300)[0].float()
    angles = 0.15 * random(240, 3, 3)
    turned = (rest @ torch.linalg.matrix_exp(angles - angles.mT)).view(120, 2, 300, 3)
    lights = common + 0.3 * random(120, 3)
    brightness = random(120, 1, 1) + 0.2 * random(300) + (turned @ lights[:, None, :, None])[..., 0]
    brightness = brightness + 0.01 * random(120, 2, 300)
    channels = brightness[..., None] * torch.tensor([0.8, 1.0, 1.2])
    seen = tool.Seen(brightness=brightness, channels=channels, normals=turned, expression=random(120, 2, 84))
    mean, trust = tool.pattern(seen)
    change, causes = tool.changes(seen, mean, trust)
    solution = tool.solved(change, causes)
    assert tool.explained(change, change - causes @ solution) > 0.8
    assert (solution[:3] - common).norm() < 0.35 * common.norm() and float(solution[3]) > 0.8, solution
    assert tool.explained(change, change) == 0
    torch.testing.assert_close(
        tool.tint(seen, causes @ solution, trust), torch.tensor([0.8, 1.0, 1.2]), rtol=0.05, atol=0
    )  # large ones are clipped


def test_folds_are_found_again(tool: ModuleType) -> None:
    """Made shadows of expressions, on both sides alike: of people that were not fitted nearly all is explained."""
    generator, face = torch.Generator().manual_seed(0), face_model()

    def seen(count: int) -> tuple[Any, Tensor]:
        expression = 0.3 * torch.randn(count, 2, face.expression_size, generator=generator)
        moved = face.displacement(expression[:, 1] - expression[:, 0])
        shadow = 0.02 * moved[..., 1]  # what goes up gets brighter: so does its mirror image
        normals = torch.tensor([0.0, 0, -1]).expand(count, 2, 478, 3)
        zeros = torch.zeros(count, 2, 478)
        record = tool.Seen(brightness=zeros, channels=zeros[..., None].expand(-1, -1, -1, 3), normals=normals, expression=expression)
        return record, shadow + 0.001 * torch.randn(count, 478, generator=generator)

    few, missed = seen(120)
    fold = tool.folds(few, missed, face)
    others, truth = seen(60)
    left = truth - (others.expression[:, 1] - others.expression[:, 0]) @ fold
    assert tool.explained(truth, left) > 0.9
    part = (1 - SHARE) * truth + SHARE * left  # of which :func:`unfolded` takes back what is beyond the limit
    assert 0.7 < tool.explained(truth, tool.unfolded(others, truth, fold)) == pytest.approx(tool.explained(truth, part), abs=0.02)


def test_the_tool_writes_what_the_model_reads(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "light.safetensors"
    assert tool.main(["--shards", make_persons(tmp_path / "data"), "--output", str(output), "--pairs", "4", "--size", "32"]) == 0
    shapes = {name: tensor.shape for name, tensor in load_file(output).items()}
    assert shapes == {name: tensor.shape for name, tensor in FaceLight().named_buffers() if name in shapes} and len(shapes) == 6
    assert "explained on train" in (out := capsys.readouterr().out) and "explained on val" in out
    assert tool.main(["--shards", str(tmp_path / "none"), "--output", str(output)]) != 0
