"""The pyramid distance: against OpenCV, a numpy twin and closed forms."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_twins import Array
from torch import Tensor

from mggtalk.networks.pyramid import KERNEL, PyramidDistance, expand, laplacian_pyramid, reduce


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_reduce_and_expand_are_those_of_opencv() -> None:
    for height, width in ((17, 24), (16, 5), (33, 33)):
        image = uniform(8, 1, 3, height, width)
        plain = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
        down = cv2.pyrDown(plain, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(reduce(image)[0].permute(1, 2, 0).numpy(), down, rtol=0, atol=1e-12)
        up = cv2.pyrUp(plain)  # it mirrors at the border
        np.testing.assert_allclose(expand(image, 2 * height, 2 * width)[0].permute(1, 2, 0).numpy()[2:-3, 2:-3], up[2:-3, 2:-3], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 7))
def test_bands_add_up_to_the_image_and_are_empty_where_it_is_flat(height: int, width: int, levels: int) -> None:
    image = uniform(height, 2, 3, height, width)
    *bands, whole = laplacian_pyramid(image, levels)
    for band in reversed(bands):
        whole = band + expand(whole, *band.shape[-2:])
    torch.testing.assert_close(whole, image, rtol=0, atol=1e-12)
    for band in laplacian_pyramid(torch.full_like(image, 0.3), levels)[:-1]:
        assert band.abs().max() < 1e-12


def blur_twin(image: Array) -> Array:
    """Of one channel, by plain sums."""
    padded, out = np.pad(image, 2, mode="edge"), np.zeros_like(image)
    for i, a in enumerate(KERNEL):
        for j, b in enumerate(KERNEL):
            out += a * b * padded[i : i + image.shape[0], j : j + image.shape[1]]
    return out


def pyramid_twin(images: list[Array], mask: Array, levels: int, contrast: float, sigma: float) -> float:
    """Of two images of one channel."""
    total = 0.0
    for _ in range(levels):
        coarse, bands = [blur_twin(image)[::2, ::2] for image in images], []
        for image, small in zip(images, coarse, strict=True):
            grid = np.zeros((2 * small.shape[0] + 4, 2 * small.shape[1] + 4))
            grid[::2, ::2] = np.pad(small, 1, mode="edge")
            bands.append(image - 4 * blur_twin(grid)[2 : 2 + image.shape[0], 2 : 2 + image.shape[1]])
        normal = [band / (sigma + blur_twin(np.abs(band))) for band in bands]
        difference = np.abs(bands[0] - bands[1]) + contrast * np.abs(normal[0] - normal[1])
        total += float((mask * difference).sum() / mask.sum())
        images, mask = coarse, blur_twin(mask)[::2, ::2]
    return total + float((mask * np.abs(images[0] - images[1])).sum() / mask.sum())


def test_pyramid_distance_against_the_twin() -> None:
    image, target, mask = uniform(9, 2, 1, 21, 18), uniform(10, 2, 1, 21, 18), uniform(11, 2, 1, 21, 18)
    distance = PyramidDistance(levels=3, contrast=0.7, sigma=0.1)
    for weight in (None, mask):
        weights = torch.ones_like(mask) if weight is None else weight
        wanted = [
            pyramid_twin([a[0].numpy(), b[0].numpy()], m[0].numpy(), 3, 0.7, 0.1) for a, b, m in zip(image, target, weights, strict=True)
        ]
        np.testing.assert_allclose(distance(image, target, weight).numpy(), wanted, rtol=1e-12)


def test_pyramid_distance_of_a_shift_in_brightness_is_the_shift() -> None:
    image = 0.5 * uniform(12, 2, 3, 40, 33)
    shift = torch.tensor([0.1, 0.25], dtype=torch.float64)
    torch.testing.assert_close(PyramidDistance()(image + shift.reshape(2, 1, 1, 1), image), shift, rtol=1e-9, atol=0)


def test_pyramid_masks() -> None:
    image, target = uniform(13, 2, 3, 64, 64), uniform(14, 2, 3, 64, 64)
    mask = torch.zeros(2, 1, 64, 64, dtype=torch.float64)
    mask[0, :, :, :16] = 1
    other = target.clone()
    other[..., 40:] = 0.5  # with 2 bands no pixel of the mask is reached from there
    distance = PyramidDistance(levels=2)
    torch.testing.assert_close(distance(image, target, mask), distance(image, other, mask), rtol=0, atol=1e-12)
    assert distance(image, target, mask)[0] > 0.1 and distance(image, target, mask)[1] == 0
    torch.testing.assert_close(distance(image, target, 3 * torch.ones_like(mask)), distance(image, target))
    wrong: dict[str, Any]
    for wrong in ({"levels": 0}, {"contrast": -1.0}, {"sigma": 0.0}):
        with pytest.raises(ValueError, match="expected at least"):
            PyramidDistance(**wrong)
