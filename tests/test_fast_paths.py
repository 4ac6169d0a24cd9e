"""What is computed by a faster way than the plain one is the same, and so are its gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from model_scenes import made_frame, made_model, perturb, pose, seen_from, with_expression
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pixel_unshuffle

from mggtalk.geometry.images import dilate
from mggtalk.geometry.inner_parts import PATCH, inner_points
from mggtalk.modules.identity import IdentityEncoder
from mggtalk.modules.inpainter import Inpainter
from mggtalk.modules.layers import MLP, PART, Pointwise, UNet, unfold
from mggtalk.modules.refiner import GeometryRefiner
from mggtalk.types import cat

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
