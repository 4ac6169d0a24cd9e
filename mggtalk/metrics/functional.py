"""Image, landmark, expression and pose metrics, one value for each image: nothing is pooled over a batch.

Letters (Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity", TIP 2004): x, y two
images; mu, sigma^2, sigma_xy their local means, variances and covariance under an 11 x 11 Gaussian window of standard deviation 1.5;
c1 = (0.01 L)^2, c2 = (0.03 L)^2 with the data range L = 1:
    SSIM = (2 mu_x mu_y + c1) (2 sigma_xy + c2) / ((mu_x^2 + mu_y^2 + c1) (sigma_x^2 + sigma_y^2 + c2)).

Images are floats in [0, 1]; integers are refused, for the squared difference of unsigned bytes wraps around and flatters the score.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import conv2d, cosine_similarity

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def psnr(
    image: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each image, dB for a peak of 1; infinite for equal images.

    Args:
        image: floats in [0, 1].
        target: floats in [0, 1].
        mask: weights of the pixels; the mean squared error is that over the masked pixels and all channels, and no other pixel counts.

    Raises:
        ValueError: shapes or dtypes differ, values are no floats, or a mask has no positive weight.
    """
    _check(image, target, 4)
    return -10 * torch.log10(_mean((image - target) ** 2, mask))


def ssim(
    image: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, " b"]:
    """Structural similarity of each image (Wang et al. 2004), the mean over channels; 1 for equal images.

    As ``skimage.metrics.structural_similarity`` with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1``:
    only windows that lie inside the image count, so the SSIM map lacks a border of 5 pixels.

    Args:
        image: floats in [0, 1], at least 11 x 11.
        target: floats in [0, 1].
        mask: weights of the pixels in the mean of the SSIM map; windows reach 5 pixels beyond the mask, and its own border is dropped.

    Raises:
        ValueError: shapes or dtypes differ, values are no floats, images are smaller than the window, or a mask has no positive weight.
    """
    _check(image, target, 4)
    if min(image.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, got {tuple(image.shape[-2:])}")
    border = WINDOW // 2
    return _mean(ssim_map(image, target), None if mask is None else mask[..., border:-border, border:-border])


def ssim_map(image: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h-10 w-10"]:
    """SSIM of every window that lies inside the images; differentiable."""
    channels = image.shape[1]
    moments = _blur(torch.cat([image, target, image * image, target * target, image * target], 1))
    mean, target_mean, square, target_square, product = moments.split(channels, 1)
    variances = square - mean**2 + target_square - target_mean**2
    covariance = product - mean * target_mean
    return (2 * mean * target_mean + C1) * (2 * covariance + C2) / ((mean**2 + target_mean**2 + C1) * (variances + C2))


def akd(landmarks: Float[Tensor, "b n 2"], target: Float[Tensor, "b n 2"]) -> Float[Tensor, " b"]:
    """Average keypoint distance: the mean distance of the landmarks of each frame, in their own unit (pixels).

    Raises:
        ValueError: shapes or dtypes differ, or values are no floats.
    """
    _check(landmarks, target, 3)
    return (landmarks - target).norm(dim=-1).mean(-1)


def aed(expression: Float[Tensor, "b e"], target: Float[Tensor, "b e"]) -> Float[Tensor, " b"]:
    """Average expression distance: the mean absolute difference of the expression coefficients of each frame.

    Raises:
        ValueError: shapes or dtypes differ, or values are no floats.
    """
    _check(expression, target, 2)
    return (expression - target).abs().mean(-1)


def apd(pose: Float[Tensor, "b 3"], target: Float[Tensor, "b 3"]) -> Float[Tensor, " b"]:
    """Average pose distance: the mean absolute difference of yaw, pitch and roll of each frame, degrees; angles wrap at 360.

    Raises:
        ValueError: shapes or dtypes differ, or values are no floats.
    """
    _check(pose, target, 2)
    return (torch.remainder(pose - target + 180, 360) - 180).abs().mean(-1)


def csim(embedding: Float[Tensor, "b k"], target: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """Cosine similarity of the embeddings of each pair of faces; NaN where one is 0 and so has no direction.

    Raises:
        ValueError: shapes or dtypes differ, or values are no floats.
    """
    _check(embedding, target, 2)
    return cosine_similarity(embedding, target, dim=-1, eps=0)


def id_distance(descriptor: Float[Tensor, "b k"], target: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """Euclidean distance of the identity descriptors of each pair of faces; NaN where one is 0, which stands for no face.

    Raises:
        ValueError: shapes or dtypes differ, or values are no floats.
    """
    _check(descriptor, target, 2)
    there = descriptor.ne(0).any(-1) & target.ne(0).any(-1)
    return torch.where(there, (descriptor - target).norm(dim=-1), torch.nan)


def jitter(landmarks: Float[Tensor, "t n 2"], found: Bool[Tensor, " t"] | None = None) -> Float[Tensor, ""]:
    """Mean length of the second difference over time of landmarks (pixels) of consecutive frames; 0 for any uniform motion.

    Args:
        landmarks: of all frames of a clip.
        found: frames that show the face; differences that touch another one do not count. NaN if no three found frames are consecutive.

    Raises:
        ValueError: fewer than three frames, or values are no floats.
    """
    _check(landmarks, landmarks, 3)
    if len(landmarks) < 3:
        raise ValueError(f"jitter needs at least 3 consecutive frames, got {len(landmarks)}")
    lengths = landmarks.diff(n=2, dim=0).norm(dim=-1)
    return (lengths if found is None else lengths[found[2:] & found[1:-1] & found[:-2]]).mean()


def _blur(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h-10 w-10"]:
    """Gaussian means of all windows inside the images, rows then columns."""
    channels = images.shape[1]
    offset = torch.arange(WINDOW, device=images.device, dtype=images.dtype) - WINDOW // 2
    window = torch.exp(-0.5 * (offset / SIGMA) ** 2)
    window = (window / window.sum()).expand(channels, 1, 1, WINDOW)
    return conv2d(conv2d(images, window, groups=channels), window.mT, groups=channels)


def _mean(values: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"] | None) -> Float[Tensor, " b"]:
    """Mean over channels and (weighted) pixels of each image."""
    if mask is None:
        return values.mean((1, 2, 3))
    if mask.shape != (len(values), 1, *values.shape[2:]) or not mask.is_floating_point():
        raise ValueError(f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected floats for values of shape {tuple(values.shape)}")
    total = mask.sum((1, 2, 3))
    if not bool((total > 0).all()):
        raise ValueError("a mask has no positive weight, so its mean is not defined")
    # What lies outside may be infinite or NaN; it takes no part.
    return torch.where(mask > 0, values * mask, 0).sum((1, 2, 3)) / (total * values.shape[1])


def _check(values: Tensor, target: Tensor, dimensions: int) -> None:
    if values.shape != target.shape or values.dtype != target.dtype or values.ndim != dimensions or not values.is_floating_point():
        raise ValueError(
            f"expected two float tensors of one shape with {dimensions} dimensions, "
            f"got {values.dtype} {tuple(values.shape)} and {target.dtype} {tuple(target.shape)}"
        )
