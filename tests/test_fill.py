"""Filling and sampling images against what scipy makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from mggtalk.geometry.images import dilate, erode, push_pull, sample

seeds = st.integers(0, 10**6)
sides = st.integers(1, 21)


def random_fill(seed: int, height: int, width: int, *batch: int, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """An image and a mask with at least one known pixel in each image, float64."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(*batch, 3, height, width, generator=generator, dtype=torch.float64)
    known = (torch.rand(*batch, 1, height, width, generator=generator) < share).to(image)
    known[..., int(seed) % height, int(seed) % width] = 1
    return image, known


@settings(deadline=None, max_examples=60)
@given(seed=seeds, height=sides, width=sides, share=st.floats(0, 1))
def test_filling_keeps_what_is_known_and_stays_within_it(seed: int, height: int, width: int, share: float) -> None:
    image, known = random_fill(seed, height, width, 2, share=share)
    filled = push_pull(image, known)
    assert torch.equal(torch.where(known > 0, filled, 0), torch.where(known > 0, image, 0))
    low = torch.where(known > 0, image, 2).amin((-2, -1), keepdim=True)
    high = torch.where(known > 0, image, -1).amax((-2, -1), keepdim=True)
    assert (filled >= low - 1e-9).all() and (filled <= high + 1e-9).all()


@settings(deadline=None, max_examples=40)
@given(seed=seeds, height=sides, width=sides, value=st.floats(-5, 5))
def test_filling_reproduces_constants_and_ignores_what_is_not_known(seed: int, height: int, width: int, value: float) -> None:
    image, known = random_fill(seed, height, width)
    filled = push_pull(torch.where(known > 0, value, 100 * image), known)
    torch.testing.assert_close(filled, torch.full_like(filled, value), rtol=0, atol=1e-8)


def test_batches_are_filled_one_by_one() -> None:
    image, known = random_fill(0, 13, 9, 2, 3)
    filled = push_pull(image, known)
    for first in range(2):
        for second in range(3):
            assert torch.equal(filled[first, second], push_pull(image[first, second], known[first, second]))


def test_a_worked_fill() -> None:
    """Of four pixels one is known: the coarser level holds its value alone. Two known ones are averaged for the other two."""
    image = torch.tensor([[[8.0, 1], [1, 4]]])
    assert push_pull(image, torch.tensor([[[1.0, 0], [0, 0]]])).tolist() == [[[8, 8], [8, 8]]]
    assert push_pull(image, torch.tensor([[[1.0, 0], [0, 1]]])).tolist() == [[[8, 6], [6, 4]]]
    mixed = push_pull(image, torch.tensor([[[1.0, 0.5], [0, 1]]]))
    mean = (8 + 4 + 0.5 * 1) / 2.5
    torch.testing.assert_close(mixed, torch.tensor([[[8, 0.5 * 1 + 0.5 * mean], [mean, 4]]]))


def test_smooth_gaps_are_filled_smoothly() -> None:
    """A hole in a ramp is filled to within a tenth of the range across it; the nearest known value would be off by a half."""
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64).expand(1, 32, 32)
    known = torch.ones(1, 32, 32, dtype=torch.float64)
    known[:, 12:20, 12:20] = 0
    across = ramp[0, 0, 19] - ramp[0, 0, 12]
    assert (push_pull(ramp, known) - ramp).abs().max() < 0.5 * across


@pytest.mark.parametrize("height, width", [(5, 7), (8, 8), (1, 6)])
def test_filling_is_linear_and_has_its_exact_gradients(height: int, width: int) -> None:
    image, known = random_fill(3, height, width, 1)
    assert torch.autograd.gradcheck(lambda values: push_pull(values, known), image.requires_grad_())
    soft = torch.rand(1, 1, height, width, dtype=torch.float64, requires_grad=True)
    push_pull(image.detach(), soft).square().sum().backward()
    assert torch.isfinite(soft.grad).all() and soft.grad.abs().max() > 0


def test_nothing_known_gives_finite_values_and_gradients() -> None:
    image = torch.rand(1, 3, 7, 7, requires_grad=True)
    filled = push_pull(image, torch.zeros(1, 1, 7, 7))
    filled.sum().backward()
    assert torch.equal(filled, torch.zeros_like(filled)) and torch.isfinite(image.grad).all()


@settings(deadline=None, max_examples=40)
@given(seed=seeds, height=sides, width=sides)
def test_samples_are_those_of_scipy(seed: int, height: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    image = generator.uniform(size=(2, 3, height, width))
    pixels = generator.uniform(-3, 3, (2, 17, 2)) + generator.uniform(size=(2, 17, 2)) * [width, height]
    actual = sample(torch.from_numpy(image), torch.from_numpy(pixels))
    for entry in range(2):
        for channel in range(3):
            places = [pixels[entry, :, 1] - 0.5, pixels[entry, :, 0] - 0.5]
            expected = ndimage.map_coordinates(image[entry, channel], places, order=1, mode="nearest")
            np.testing.assert_allclose(actual[entry, :, channel].numpy(), expected, atol=1e-9)


def test_samples_at_centres_are_the_pixels_and_gradients_are_exact() -> None:
    image = torch.rand(3, 5, 6, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(6), indexing="ij")
    pixels = torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5
    torch.testing.assert_close(sample(image, pixels.double()), image.flatten(1).mT)
    inside = (pixels[:9].double() + 0.3).requires_grad_()
    assert torch.autograd.gradcheck(sample, (image.requires_grad_(), inside))


@settings(deadline=None, max_examples=30)
@given(seed=seeds, height=st.integers(3, 15), width=st.integers(3, 15), radius=st.integers(0, 4))
def test_dilation_is_that_of_scipy(seed: int, height: int, width: int, radius: int) -> None:
    mask = np.random.default_rng(seed).uniform(size=(2, 1, height, width))
    actual = dilate(torch.from_numpy(mask), radius)
    for entry in range(2):
        expected = ndimage.grey_dilation(mask[entry, 0], size=2 * radius + 1, mode="constant", cval=-1)
        np.testing.assert_array_equal(actual[entry, 0].numpy(), expected)
    assert torch.equal(dilate(torch.from_numpy(mask[0]), radius), actual[0])


@settings(deadline=None, max_examples=30)
@given(seed=seeds, height=st.integers(3, 15), width=st.integers(3, 15), radius=st.integers(0, 4))
def test_erosion_is_that_of_scipy(seed: int, height: int, width: int, radius: int) -> None:
    mask = np.random.default_rng(seed).uniform(size=(1, height, width))
    expected = ndimage.grey_erosion(mask[0], size=2 * radius + 1, mode="constant", cval=2)
    np.testing.assert_allclose(erode(torch.from_numpy(mask), radius)[0].numpy(), expected, rtol=0, atol=1e-15)
