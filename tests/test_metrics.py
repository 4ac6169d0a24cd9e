"""Metrics against scikit-image and closed forms, their properties, and one contract for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from mggtalk.metrics import aed, akd, apd, jitter, psnr, ssim
from mggtalk.metrics.functional import ssim_map

seeds = st.integers(0, 10**6)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(seed: int, count: int = 3, height: int = 19, width: int = 24) -> tuple[Tensor, Tensor]:
    """Pairs of images that differ by a little in some places and by much in others."""
    image = uniform(seed, count, 3, height, width)
    return image, (image + 0.3 * (uniform(seed + 1, *image.shape) - 0.5)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A metric of pairs, the shape of one item, its perfect value, and how near to it rounding lets equal inputs come."""

    metric: Callable[..., Tensor]
    shape: tuple[int, ...]
    perfect: float
    masked: bool = False


MEMBERS = [
    Member(metric=psnr, shape=(3, 16, 18), perfect=float("inf"), masked=True),
    Member(metric=ssim, shape=(3, 16, 18), perfect=1.0, masked=True),
    Member(metric=akd, shape=(7, 2), perfect=0.0),
    Member(metric=aed, shape=(52,), perfect=0.0),
    Member(metric=apd, shape=(3,), perfect=0.0),
]
every = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.metric.__name__)


@every
def test_batch_equals_singles(member: Member) -> None:
    value, target = uniform(0, 4, *member.shape), uniform(1, 4, *member.shape)
    masks = [()] + ([(uniform(2, 4, 1, *member.shape[1:]),)] if member.masked else [])
    for mask in masks:
        batch = member.metric(value, target, *mask)
        singles = [member.metric(value[i : i + 1], target[i : i + 1], *(m[i : i + 1] for m in mask)) for i in range(4)]
        assert batch.shape == (4,)
        torch.testing.assert_close(batch, torch.cat(singles), rtol=0, atol=1e-12)


@every
def test_equal_inputs_are_perfect_and_others_are_not(member: Member) -> None:
    value, target = uniform(3, 2, *member.shape), uniform(4, 2, *member.shape)
    torch.testing.assert_close(member.metric(value, value), torch.full((2,), member.perfect, dtype=torch.float64), rtol=0, atol=1e-12)
    worse = member.metric(value, target)
    assert (worse < member.perfect - 1e-3).all() if member.masked else (worse > 1e-3).all()


@every
def test_symmetric(member: Member) -> None:
    value, target = uniform(5, 2, *member.shape), uniform(6, 2, *member.shape)
    torch.testing.assert_close(member.metric(value, target), member.metric(target, value), rtol=0, atol=1e-12)


@every
@pytest.mark.parametrize("change", ["batch", "size", "dtype"])
def test_refuses_what_does_not_fit_together(member: Member, change: str) -> None:
    value = uniform(7, 2, *member.shape)
    target = {"batch": value[:1], "size": value[..., :-1], "dtype": (value * 255).to(torch.uint8)}[change]
    with pytest.raises((ValueError, TypeError)):  # the shape checker of the test run refuses first, as a TypeError
        member.metric(value, target)
    undressed = getattr(member.metric, "__wrapped__", member.metric)
    with pytest.raises(ValueError, match="expected two float tensors of one shape"):
        undressed(value, target)


@every
def test_refuses_integers(member: Member) -> None:
    value = torch.zeros(2, *member.shape, dtype=torch.uint8)
    undressed = getattr(member.metric, "__wrapped__", member.metric)
    with pytest.raises(ValueError, match="uint8"):
        undressed(value, value)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_refuses_an_empty_mask(metric: Callable[..., Tensor]) -> None:
    image, target = images(8)
    mask = torch.ones_like(image[:, :1])
    mask[1] = 0
    with pytest.raises(ValueError, match="no positive weight"):
        metric(image, target, mask)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_psnr_is_that_of_skimage(seed: int) -> None:
    image, target = images(seed)
    expected = [peak_signal_noise_ratio(t.numpy(), i.numpy(), data_range=1) for i, t in zip(image, target, strict=True)]
    np.testing.assert_allclose(psnr(image, target).numpy(), expected, rtol=0, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(11, 40), st.integers(11, 40))
def test_ssim_is_that_of_skimage(seed: int, height: int, width: int) -> None:
    image, target = images(seed, 2, height, width)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0, "data_range": 1.0}
    expected = [structural_similarity(i.numpy(), t.numpy(), **options) for i, t in zip(image, target, strict=True)]
    np.testing.assert_allclose(ssim(image, target).numpy(), expected, rtol=0, atol=1e-6)


def test_masked_ssim_is_the_masked_mean_of_the_map_of_skimage() -> None:
    image, target = images(9, 1, 30, 34)
    mask = uniform(10, 1, 1, 30, 34)
    mask[..., :12] = 0
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    maps = np.stack([structural_similarity(image[0, c].numpy(), target[0, c].numpy(), **options)[1] for c in range(3)])[:, 5:-5, 5:-5]
    np.testing.assert_allclose(ssim_map(image, target)[0].numpy(), maps, rtol=0, atol=1e-9)
    weights = mask[0, :, 5:-5, 5:-5].numpy()
    expected = (maps * weights).sum() / (3 * weights.sum())
    np.testing.assert_allclose(ssim(image, target, mask).item(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_a_mask_of_ones_changes_nothing(metric: Callable[..., Tensor]) -> None:
    image, target = images(11)
    torch.testing.assert_close(metric(image, target, torch.ones_like(image[:, :1])), metric(image, target), rtol=0, atol=1e-12)


def test_masked_psnr_ignores_what_is_outside() -> None:
    image, target = images(12)
    mask = torch.zeros_like(image[:, :1])
    mask[..., 4:9, 6:15] = 1
    inside = psnr(image, target, mask)
    torch.testing.assert_close(inside, psnr(image[..., 4:9, 6:15], target[..., 4:9, 6:15]), rtol=0, atol=1e-12)
    disturbed = torch.where(mask > 0, image, torch.tensor(float("nan"), dtype=image.dtype))
    torch.testing.assert_close(psnr(disturbed, target, mask), inside, rtol=0, atol=1e-12)


def test_psnr_is_not_pooled() -> None:
    target = torch.full((2, 3, 12, 12), 0.5, dtype=torch.float64)
    error = torch.tensor([0.1, 0.01], dtype=torch.float64)[:, None, None, None]  # 20 and 40 dB; pooled they would be 23 dB
    values = psnr(target + error, target)
    torch.testing.assert_close(values, torch.tensor([20.0, 40.0], dtype=torch.float64), rtol=0, atol=1e-9)
    assert values.mean().item() == pytest.approx(30.0)


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    image, target = torch.full((1, 3, 16, 16), 0.2, dtype=torch.float64), torch.full((1, 3, 16, 16), 0.6, dtype=torch.float64)
    assert ssim(image, target).item() == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4), abs=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_ssim(masked: bool) -> None:
    image, target = images(13, 2, 12, 13)
    mask = (uniform(14, 2, 1, 12, 13),) if masked else ()
    assert torch.autograd.gradcheck(lambda x: ssim(x, target, *mask), image.requires_grad_())
    flat = torch.zeros(1, 3, 12, 12, dtype=torch.float64, requires_grad=True)  # no variance at all
    ssim(flat, torch.zeros_like(flat)).sum().backward()
    assert flat.grad is not None and torch.isfinite(flat.grad).all()


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_distances_are_those_of_numpy(seed: int) -> None:
    a, b = uniform(seed, 3, 9, 2).numpy(), uniform(seed + 1, 3, 9, 2).numpy()
    np.testing.assert_allclose(akd(torch.from_numpy(a), torch.from_numpy(b)).numpy(), np.hypot(*np.moveaxis(a - b, -1, 0)).mean(1))
    np.testing.assert_allclose(aed(torch.from_numpy(a[..., 0]), torch.from_numpy(b[..., 0])).numpy(), np.abs(a - b)[..., 0].mean(1))


def test_known_distances() -> None:
    shifted = torch.zeros(1, 5, 2) + torch.tensor([3.0, 4.0])
    assert akd(shifted, torch.zeros(1, 5, 2)).item() == pytest.approx(5.0)
    angles = apd(torch.tensor([[10.0, -5.0, 2.0], [179.0, 0.0, 0.0]]), torch.tensor([[4.0, -2.0, 2.0], [-179.0, 0.0, 0.0]]))
    torch.testing.assert_close(angles, torch.tensor([3.0, 2 / 3]))


def test_jitter_of_known_motions() -> None:
    time = torch.arange(6, dtype=torch.float64)[:, None, None]
    start = uniform(15, 1, 8, 2)
    assert jitter(start + time * torch.tensor([2.0, -1.0])).item() == pytest.approx(0, abs=1e-12)
    assert jitter(start + 0.5 * time**2 * torch.tensor([3.0, 4.0])).item() == pytest.approx(5.0)
    assert jitter(start + (-1) ** time * torch.tensor([1.0, 0.0])).item() == pytest.approx(4.0)
    with pytest.raises(ValueError, match="at least 3"):
        jitter(torch.zeros(2, 8, 2))


def test_jitter_refuses_integers() -> None:
    with pytest.raises((ValueError, TypeError)):
        jitter(torch.zeros(4, 8, 2, dtype=torch.int64))
