"""Whole pictures and colours by compiled loops: each is its twin in tensors, and that one a closed form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_scenes import face_model
from test_fast_paths import close, random_cloud
from torch import Tensor

from mggtalk.geometry.cameras import pixel_centres
from mggtalk.geometry.detail import Detail, added, carried
from mggtalk.geometry.layers import behind
from mggtalk.geometry.lids import upper_lids
from mggtalk.modules.colours import colours
from mggtalk.types import PointCloud


@pytest.fixture(name="threads", params=[1, 3])
def _threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def some_detail(size: tuple[int, int], seed: int = 0) -> tuple[Detail, Tensor, Tensor]:
    """Detail of two pictures, where its points are now (some beyond the border), and their depths."""
    height, width = size
    pixels = pixel_centres(height, width).reshape(1, -1, 2).expand(2, -1, -1)
    detail = Detail(
        inner=noise(2, 3, height, width, seed=seed),
        rim=noise(2, 3, height, width, seed=seed + 1),
        places=pixels / torch.tensor([width, height]),
        weights=torch.rand(2, height * width, generator=torch.Generator().manual_seed(seed)),
        step=1,
    )
    waves = width * (0.05 + 0.02 * torch.sin(3 * pixels.flip(-1) / width + torch.tensor([[[0.0]], [[1.0]]])))
    return detail, pixels + waves, 100 + noise(2, height * width, seed=seed + 2)


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (97, 130)])
def test_detail_is_added_as_it_is_carried(size: tuple[int, int], threads: int) -> None:
    """Where a pixel comes from is known to some 1e-5 of a pixel, and neighbours of noise differ by up to 8."""
    detail, pixels, depth = some_detail(size)
    image, still = noise(2, 3, *size, seed=9), torch.tensor([0.3, 0.0])
    slow = image + carried(detail, pixels, depth, still)
    with torch.no_grad():
        fast = added(image, detail, pixels, depth, still)
    torch.testing.assert_close(fast, slow, rtol=0, atol=5e-4)
    assert (fast - slow).abs().mean() < 1e-5 and (slow - image).abs().mean() > 0.1


def test_detail_that_comes_from_beyond_the_border_is_none() -> None:
    """All moves to the right by a quarter: at the left edge nothing comes in, elsewhere the picture that was there."""
    detail, _, depth = some_detail((64, 64))
    detail = detail._replace(rim=torch.zeros_like(detail.rim), weights=torch.ones_like(detail.weights))
    pixels = detail.places * 64 + torch.tensor([16.0, 0.0])
    with torch.no_grad():
        moved = added(torch.zeros_like(detail.inner), detail, pixels, depth, torch.ones(2))
    torch.testing.assert_close(moved[..., 24:], detail.inner[..., 8:-16], rtol=0, atol=1e-3)
    assert not moved[..., :14].any()


def test_gradients_take_the_slow_way() -> None:
    detail, pixels, depth = some_detail((16, 16))
    image = noise(2, 3, 16, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(added(image, detail, pixels, depth, torch.ones(2)).sum(), image)
    assert torch.equal(gradient, torch.ones_like(image))


@given(right=st.floats(-150, 150), down=st.floats(-150, 150), still=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_what_lies_behind_is_what_tensors_say(right: float, down: float, still: float) -> None:
    """However far the torso goes; the second picture's goes the other way."""
    torso, background, source = (noise(2, channels, 23, 37, seed=channels + 1) for channels in (4, 3, 3))
    given_ = torso, background, source, torch.tensor([[right, down], [-down, right]]), torch.tensor([still, 1 - still])
    with torch.no_grad():
        fast = behind(*given_)
    torch.testing.assert_close(fast, behind(*(tensor.double() for tensor in given_)).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("right, down", [(0, 0), (3, -2)])
def test_whole_pixels_are_moved_as_they_are(right: int, down: int, threads: int) -> None:
    torso, background, source = (
        torch.rand(1, channels, 96, 64, generator=torch.Generator().manual_seed(channels)) for channels in (4, 3, 3)
    )
    with torch.no_grad():
        shown = behind(torso, background, source, torch.tensor([[float(right), float(down)]]), torch.zeros(1))
    moved = torch.roll(torso, (down, right), (-2, -1))
    expected = moved[:, :3] + (1 - moved[:, 3:]) * background
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(shown[inside], expected[inside], rtol=0, atol=1e-6)


def lid_cloud() -> PointCloud:
    """A random one whose points lie about the mean face, so that some are lids and some the cheek below."""
    cloud, generator = random_cloud(2000)[0], torch.Generator().manual_seed(3)
    vertices = torch.randint(478, (2, 2000), generator=generator)
    weights = torch.zeros(2, 2000, 3, dtype=torch.float64)
    weights[..., 0], weights[..., 1] = 0.7, 0.3
    weights[:, ::4] *= 0.5
    return PointCloud(
        **{name: getattr(cloud, name) for name in vars(cloud) if name not in ("positions", "anchors", "weights")},
        positions=face_model().mean.double()[vertices],
        anchors=torch.stack([vertices, vertices.flip(1), vertices], -1),
        weights=weights,
    )


@pytest.mark.parametrize("lit", [True, False])
def test_colours_are_those_of_tensors(lit: bool, threads: int) -> None:
    cloud = lid_cloud()
    lids = upper_lids(cloud, face_model().mean.double())
    tangents = cloud.tangents * (1 + torch.rand(2, 2000, 1, 1, generator=torch.Generator().manual_seed(4)).double() * 2)
    change = 0.3 * noise(2, 2, 478, 3).double() if lit else None
    slow = colours(cloud, lids, tangents, change, 1200)
    with torch.no_grad():
        single = type(lids)(*(tensor.float() for tensor in lids))
        fast = colours(cloud.to(torch.float32), single, tangents.float(), None if change is None else change.float(), 1200)
    for one, other in zip(fast, slow, strict=True):
        close(one, other, 5e-6)
    untouched = (slow[0] == cloud.colour).all(-1)
    assert not untouched.all() and (lids.share > 0).sum() > 20 and untouched.any() != lit


def test_light_multiplies_and_differs_for_what_is_mirrored() -> None:
    """A field of one number in every channel is its exponential, weighted as the points are bound."""
    cloud = lid_cloud().to(torch.float32)
    lids = upper_lids(cloud, face_model().mean)
    field, tint = torch.tensor([0.2, -0.1]), torch.tensor([0.5, 1.0, 1.5])
    change = (field[:, None, None] * tint).expand(2, 2, 478, 3)
    with torch.no_grad():
        lit, children = colours(cloud, lids, cloud.tangents, change, 1200)
    bound = cloud.weights.sum(-1)
    number = (torch.cat([0.2 * bound[:, :1200], -0.1 * bound[:, 1200:]], 1)[..., None] * tint).exp()
    close(lit, cloud.colour * number, 2e-6)
    close(children, cloud.child_colour * number[..., None, :], 2e-6)
