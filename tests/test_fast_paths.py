"""What is computed by a faster way than the plain one is the same, and so are its gradients."""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest
import torch
from model_scenes import made_frame, made_model, perturb, pose, seen_from, with_expression
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pixel_unshuffle

from mggtalk import talking_head
from mggtalk.geometry.images import dilate
from mggtalk.geometry.inner_parts import PATCH, inner_points
from mggtalk.modules.children import exponentials
from mggtalk.modules.deformation import Deformed, carried, skin
from mggtalk.modules.gaussians import corrected, posed
from mggtalk.modules.identity import IdentityEncoder
from mggtalk.modules.inpainter import Inpainter
from mggtalk.modules.layers import MLP, PART, Pointwise, UNet, unfold
from mggtalk.modules.refiner import GeometryRefiner
from mggtalk.rendering.cpu import CpuRenderer
from mggtalk.streaming import can_stream
from mggtalk.talking_head import Avatar, TalkingHead
from mggtalk.types import Camera, Motion, PointCloud, cat

Network = TypeVar("Network", bound=nn.Module)


def woken(network: Network, seed: int = 0) -> Network:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


def layer_by_layer(network: MLP, values: Tensor) -> Tensor:
    """The same network on its whole input."""
    whole: Tensor = nn.Sequential(*network)(values)
    return whole


def gradients_of(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    towards = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return torch.autograd.grad(output, inputs, towards)


@pytest.mark.parametrize("shared", [False, True])
def test_an_input_in_two_parts(shared: bool) -> None:
    """One that lasts and one that changes, also where all points share it: values and gradients of the whole input's network."""
    network = woken(MLP((5, 3), 16, 4)).double()
    values = torch.randn(2, 40, 5, dtype=torch.float64, requires_grad=True)
    changing = torch.randn(2, 1 if shared else 40, 3, dtype=torch.float64, requires_grad=True)
    split = network(network.lasting(values), changing)
    whole = layer_by_layer(network, torch.cat([values, changing.expand(-1, 40, -1)], -1))
    torch.testing.assert_close(split, whole)
    wanted = (values, changing, *network.parameters())
    for actual, expected in zip(gradients_of(split, *wanted), gradients_of(whole, *wanted), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("count", [1, PART - 1, PART, 2 * PART + 5])
@pytest.mark.parametrize("shared", [False, True])
def test_without_gradients_points_go_in_parts(count: int, shared: bool) -> None:
    network = woken(MLP((5, 3), 16, 4)).double()
    lasting, changing = torch.randn(2, count, 16).double(), torch.randn(2, 1 if shared else count, 3).double()
    with torch.no_grad():
        parts = network(lasting, changing)
    torch.testing.assert_close(parts, network(lasting, changing).detach())
    assert not parts.requires_grad


def test_a_pointwise_convolution_is_a_convolution() -> None:
    layer = woken(Pointwise(5, 3)).double()
    image = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    fast, slow = layer(image), conv2d(image, layer.weight, layer.bias)
    torch.testing.assert_close(fast, slow)
    wanted = (image, *layer.parameters())
    for actual, expected in zip(gradients_of(fast, *wanted), gradients_of(slow, *wanted), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("height, width", [(32, 32), (13, 22), (30, 9)])
@pytest.mark.parametrize("fold", [1, 2, 4])
def test_blocks_of_pixels(height: int, width: int, fold: int) -> None:
    """Features of every block, also of those that the border cuts; an image that is whole blocks is folded as it is."""
    unet = woken(UNet(2, (4, 6, 8), fold))
    image = torch.randn(1, 2, height, width)
    features = unet(image)
    assert features.shape == (1, 4, -(-height // fold), -(-width // fold))
    whole = torch.nn.functional.pad(image, (0, -width % (4 * fold), 0, -height % (4 * fold)), mode="replicate")
    torch.testing.assert_close(features, unet(whole)[..., : features.shape[-2], : features.shape[-1]])


def test_unfolding_is_the_inverse_of_folding() -> None:
    image = torch.randn(2, 3, 12, 20)
    assert torch.equal(unfold(pixel_unshuffle(image, 4), 4, (12, 20)), image)
    assert torch.equal(unfold(pixel_unshuffle(image, 4), 4, (11, 18)), image[..., :11, :18])


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_images_of_any_size(fold: int) -> None:
    """The networks over images start at their bases whatever the size and the fold."""
    frame = made_frame(64)
    cut = replace(frame, **{name: getattr(frame, name)[..., :58, :50] for name in ("image", "matte", "depth", "normals", "parsing")})
    head = (cut.depth > 0).to(cut.image)
    assert torch.equal(GeometryRefiner((8, 16), fold=fold)(cut, head), cut.depth)
    torch.testing.assert_close(Inpainter((8, 16), fold=fold)(cut.image, head), cut.image, rtol=0, atol=1e-6)
    if fold > 1:
        assert IdentityEncoder(8, (8, 16), fold)(cut.image, head).shape == (1, 8, 29, 25)


def test_an_encoder_cannot_take_pixels_one_by_one() -> None:
    with pytest.raises(ValueError, match="fold must be even, got 3"):
        IdentityEncoder(fold=3)


def test_two_fills_in_one_batch_are_two_fills() -> None:
    inpainter = woken(Inpainter((8, 16)))
    generator = torch.Generator().manual_seed(0)
    images, hidden = torch.rand(2, 3, 32, 32, generator=generator), (torch.rand(2, 1, 32, 32, generator=generator) > 0.5).float()
    together = inpainter(images, hidden)
    for index in range(2):
        alone = inpainter(images[index : index + 1], hidden[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-4)  # convolutions sum in another order


def test_what_is_kept_of_an_identity_changes_nothing() -> None:
    """A trained model, two sources, two expressions: with what :meth:`prepare` keeps, and with gradients, the Gaussians are the same."""
    model = perturb(made_model(), 0.05)
    frames = cat([made_frame(64, 0.0, seed=1), made_frame(64, 30.0, seed=2)])
    target = with_expression(seen_from(frames, pose(10)), jawOpen=0.5, mouthSmileLeft=0.4)
    with torch.no_grad():
        identity = model.reconstruct(frames)
        kept = model.prepare(identity)
        plain, again = (model.gaussians(identity, target.expression, target.camera, known) for known in (None, kept))
    recorded = model.gaussians(identity, target.expression, target.camera)
    for first, second, third in zip(plain, again, recorded, strict=True):
        for name, value in first.__dict__.items():
            assert torch.equal(getattr(second, name), value), name
            torch.testing.assert_close(getattr(third, name).detach(), value, rtol=0, atol=1e-5, msg=name)
    assert recorded[1].means.requires_grad and not again[1].means.requires_grad


def test_nothing_of_a_frozen_model_is_recorded() -> None:
    model = perturb(made_model(), 0.05).requires_grad_(False)
    frame = made_frame(64)
    identity = model.reconstruct(frame)
    coarse, dense = model.gaussians(identity, frame.expression, frame.camera)
    tensors = (identity.visible_features, identity.torso, identity.points.visible.positions, coarse.means, dense.means, dense.features)
    assert not any(tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize("radius", [1, 2, 3, 5])
@pytest.mark.parametrize("height, width", [(12, 17), (1, 4)])
def test_dilation_is_max_pooling(radius: int, height: int, width: int) -> None:
    image = torch.randn(2, 1, height, width, requires_grad=True)
    fast, slow = dilate(image, radius), max_pool2d(image, 2 * radius + 1, 1, radius)
    assert torch.equal(fast, slow)
    for actual, expected in zip(gradients_of(fast, image), gradients_of(slow, image), strict=True):
        torch.testing.assert_close(actual, expected)


def test_generic_irises_are_made_for_shut_eyes_alone() -> None:
    """A patch that no source of the batch needs is left out; one that a single source needs is hidden in the others."""
    opened = made_frame(64)
    shut = with_expression(opened, eyeBlinkLeft=1.0)
    alone, together = inner_points(opened), inner_points(cat([opened, shut]))
    assert alone.mask.shape[1] == 5 * PATCH[0] * PATCH[1] and together.mask.shape[1] == 6 * PATCH[0] * PATCH[1]
    assert alone.mask.all() and together.mask[0].sum() == alone.mask.sum() < together.mask[1].sum()


def streaming_head() -> tuple[TalkingHead, Avatar, Motion]:
    """A head without a tracker, whose model is a little trained; a portrait of 64 pixels; a motion of eight frames."""
    model, frame = perturb(made_model(), 0.05).eval(), made_frame(64)
    model.renderer = CpuRenderer()
    head, avatar = object.__new__(TalkingHead), object.__new__(Avatar)
    head.model, head.size, head.device = model, 64, torch.device("cpu")
    with torch.inference_mode():
        identity = model.reconstruct(frame)
        avatar.__dict__.update(frame=frame, identity=identity, prepared=model.prepare(identity))
    poses = torch.stack([torch.from_numpy(pose(4.0 * row)).float() for row in range(8)])
    expression = frame.expression + 0.1 * torch.arange(8)[:, None]
    found = torch.ones(8, dtype=torch.bool)
    return head, avatar, Motion(expression=expression, head_to_camera=poses, times=torch.arange(8.0), found=found, focal=torch.tensor(3.0))


def watched(head: TalkingHead, monkeypatch: pytest.MonkeyPatch, wrong: int | None = None) -> list[tuple[str, int, bool]]:
    """Frames take no time; the list grows by the thread's name, its PyTorch threads and its autocast when one is begun."""
    begun: list[tuple[str, int, bool]] = []

    def render(*_: object) -> np.ndarray:
        begun.append((threading.current_thread().name, torch.get_num_threads(), torch.is_autocast_enabled("cpu")))
        if len(begun) - 1 == wrong:
            raise ArithmeticError("the third frame")
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(head, "render", render)
    return begun


def still_running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("frame")]


@pytest.mark.parametrize("workers", [2, 3, 20])
def test_frames_in_the_making_at_once_are_the_same_frames(workers: int) -> None:
    head, avatar, motion = streaming_head()
    alone, together = (list(head.animate(avatar, motion, workers=count)) for count in (1, workers))
    assert len(alone) == 8 and alone[0].shape == (64, 64, 3) and alone[0].dtype == np.uint8
    assert all(np.array_equal(first, second) for first, second in zip(alone, together, strict=True))
    assert any(not np.array_equal(first, second) for first, second in itertools.pairwise(alone))
    assert not still_running()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_few_frames_are_made_ahead(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    head, avatar, motion = streaming_head()
    begun = watched(head, monkeypatch)
    frames = head.animate(avatar, motion, workers=workers)
    assert not begun
    ahead = 0 if workers == 1 else workers
    for taken in range(1, 9):
        next(frames)
        end = time.monotonic() + 10
        while len(begun) < min(taken + ahead, 8) and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(begun) == min(taken + ahead, 8)
    assert list(frames) == [] and not still_running()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_in_the_place_of_its_frame(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    head, avatar, motion = streaming_head()
    watched(head, monkeypatch, wrong=2)
    monkeypatch.setattr(talking_head, "ThreadPoolExecutor", lambda _, *rest: ThreadPoolExecutor(1, *rest))  # so that frames begin in order
    frames = head.animate(avatar, motion, workers=workers)
    next(frames), next(frames)
    with pytest.raises(ArithmeticError, match="the third frame"):
        next(frames)
    assert list(frames) == [] and not still_running()


def test_closing_early_ends_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    head, avatar, motion = streaming_head()
    begun = watched(head, monkeypatch)
    for end in (lambda frames: frames.close(), lambda frames: None):  # told to, or dropped
        begun.clear()
        frames = head.animate(avatar, motion, workers=2)
        next(frames)
        assert still_running()
        end(frames)
        del frames
        assert not still_running() and len(begun) <= 3


@pytest.mark.parametrize("threads, workers, share", [(1, 2, 1), (4, 2, 2), (5, 2, 2), (4, 1, 4)])
def test_workers_share_the_threads_and_keep_autocast(monkeypatch: pytest.MonkeyPatch, threads: int, workers: int, share: int) -> None:
    head, avatar, motion = streaming_head()
    begun, before = watched(head, monkeypatch), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for half in (False, True):
            begun.clear()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                list(head.animate(avatar, motion, workers=workers))
            assert {(count, autocast) for _, count, autocast in begun} == {(share, half)}
            with ThreadPoolExecutor(1) as fresh:  # a new thread has what was set last, this one what it set itself
                assert fresh.submit(torch.get_num_threads).result() == torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cores, apart", [(1, False), (2, True), (16, True)])
def test_the_default_is_two_workers_where_there_are_two_cores(monkeypatch: pytest.MonkeyPatch, cores: int, apart: bool) -> None:
    head, avatar, motion = streaming_head()
    begun = watched(head, monkeypatch)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert len(list(head.animate(avatar, motion))) == 8
    assert {name.startswith("frame") for name, *_ in begun} == {apart}
    with pytest.raises(ValueError, match="workers must be positive, got 0"):
        next(head.animate(avatar, motion, workers=0))


def random_cloud(count: int = 300, seed: int = 0) -> tuple[PointCloud, Camera, Camera]:
    """Points in every direction, some without tangents or at rest, and the cameras of a head and of its torso (batch of 2), float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(2, count, *size, generator=generator, dtype=torch.float64)

    tangents, weights = normal(2, 3), normal(3).abs() / 3
    tangents[:, ::11, 0], tangents[:, 1::11, 1], weights[:, ::5] = 0, tangents[:, 1::11, 0], 0
    steps = normal(2, 3)
    steps[:, ::7] *= 40
    head_weight = torch.sigmoid(3 * normal())
    head_weight[:, ::3] = 1
    places = torch.randint(478, (2, count, 3), generator=generator)
    mask = torch.arange(count).expand(2, -1) % 5 > 0
    zeros = torch.zeros(2, count, 4, dtype=torch.float64)
    cloud = PointCloud(
        positions=8 * normal(3), tangents=tangents, pixels=normal(2), anchors=places, weights=weights, weight_steps=steps,
        head_weight=head_weight, head_weight_steps=0.1 * normal(2), colour=normal(3), opacity=torch.sigmoid(3 * normal()),
        child_colour=normal(4, 3), child_opacity=zeros, mask=mask,
    )  # fmt: skip
    return cloud, camera_of([(20.0, 5.0, 9.0), (-40.0, 0.0, 3.0)]), camera_of([(3.0, 1.0, 0.0), (0.0, 9.0, 90.0)])


def camera_of(angles: list[tuple[float, float, float]]) -> Camera:
    matrices = torch.stack([torch.from_numpy(pose(*turn)) for turn in angles])
    return Camera(intrinsics=torch.eye(3, dtype=torch.float64).expand(2, 3, 3), head_to_camera=matrices)


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=2e-6, atol=atol)


@pytest.mark.parametrize("threads", [1, 3])
def test_points_are_carried_as_the_skin_says(threads: int) -> None:
    cloud = random_cloud(5000)[0]
    generator = torch.Generator().manual_seed(1)
    displacement, correction = (torch.randn(2, count, 3, generator=generator, dtype=torch.float64) for count in (478, 5000))
    slow, share, before = skin(cloud, displacement), cloud.weights.sum(-1, keepdim=True), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = carried(cloud.to(torch.float32), displacement.float(), correction.float())
    finally:
        torch.set_num_threads(before)
    close(fast.positions, slow.positions + share * correction, 5e-6)
    close(fast.tangents, slow.tangents, 1e-5)
    stretched = (slow.tangents - cloud.tangents).norm(dim=-1) > 4.9 * cloud.tangents.norm(dim=-1)
    assert stretched.any() and not stretched.all()


def test_bases_without_gradients_are_those_with() -> None:
    """Bent points and the Gaussians over them; a Gaussian's rotation is its quaternion or the negative of that."""
    cloud, head, torso = random_cloud(3000)
    moved = Deformed(cloud.positions, cloud.tangents)
    slow, base, kept = posed(moved, cloud, head, torso)
    single = Deformed(*(part.float() for part in moved))
    with torch.no_grad():
        assert can_stream(*single) and not can_stream(*moved)
        fast, made, again = posed(single, cloud.to(torch.float32), head.to(torch.float32), torso.to(torch.float32))
    close(fast.positions, slow.positions, 1e-5)
    close(fast.tangents, slow.tangents, 1e-5)
    close(again, kept, 1e-5)
    assert (kept == 1).any() and (kept < 0.5).any()
    for name in ("means", "scales", "opacities", "features"):
        close(getattr(made, name), getattr(base, name), 1e-5)
    assert torch.equal(made.mask, base.mask)
    steady = slow.tangents.norm(dim=-1).amin(-1) > 0.05
    steady &= torch.linalg.cross(*slow.tangents.unbind(-2)).norm(dim=-1) > 0.05
    assert steady.float().mean() > 0.8 and len(base.quaternions[steady].abs().argmax(-1).unique()) == 4
    close((made.quaternions.double() * base.quaternions).sum(-1).abs()[steady], torch.ones(int(steady.sum())), 1e-6)
    close(made.quaternions.norm(dim=-1)[steady], torch.ones(int(steady.sum())), 1e-6)


def test_corrections_without_gradients_are_those_with() -> None:
    cloud, head, torso = random_cloud(1000)
    base = posed(Deformed(cloud.positions, cloud.tangents), cloud, head, torso)[1]
    opacities = base.opacities.clone()
    opacities[:, :3] = torch.tensor([0.0, 1e-5, 1.0])
    base = replace(base, opacities=opacities)
    for size in (0.0, 0.1, 5.0):
        correction = size * torch.randn(2, 1000, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        slow = corrected(base, correction)
        with torch.no_grad():
            fast = corrected(base.to(torch.float32), correction.float())
        for name in ("means", "quaternions", "scales", "opacities", "features"):
            close(getattr(fast, name), getattr(slow, name), 1e-4 if name == "opacities" else 3e-6)  # 1 - 1e-4 has few digits
    with torch.no_grad():
        broken = corrected(base.to(torch.float32), torch.full((2, 1000, 10), torch.nan))
    assert all(getattr(broken, name).isnan().any() for name in ("quaternions", "scales", "opacities", "features"))


def test_exponentials() -> None:
    values = np.concatenate([np.linspace(-86.9, 86.9, 100_001), [0.0, -0.0, 1e9, -1e9, np.inf, -np.inf, np.nan]]).astype(np.float32)
    result = values.copy()
    exponentials(result, len(result) - 1)
    assert np.isnan(result[-1]) and np.array_equal(result[-7:-5], [1, 1])
    np.testing.assert_allclose(result[:-7], np.exp(values[:-7].astype(np.float64)), rtol=2e-7)
    np.testing.assert_allclose(result[-5:-1], np.exp([87.0, -87, 87, -87]), rtol=2e-7)
    exponentials(result[-1:], 1)
    assert np.isnan(result[-1])


def test_a_backdrop_without_gradients_is_the_one_with() -> None:
    model, frame = perturb(made_model(), 0.05), cat([made_frame(64, 0.0, seed=1), made_frame(64, 30.0, seed=2)])
    identity = model.reconstruct(frame).detach()
    for matrix in (pose(), pose(1.0), pose(10, shift=(4.0, 3, 0))):
        camera = seen_from(frame, matrix).camera
        slow = model.backdrop(identity, camera)
        with torch.no_grad():
            for kept in (None, model.prepare(identity)):
                torch.testing.assert_close(model.backdrop(identity, camera, kept), slow, rtol=0, atol=5e-6)  # grid_sample rounds places
