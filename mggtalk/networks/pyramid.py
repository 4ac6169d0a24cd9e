"""A distance of images without a network: bands of a Laplacian pyramid, as they are and relative to the contrast around them.

Letters: G_0 the image, G_{k+1} = REDUCE(G_k), L_k = G_k - EXPAND(G_{k+1}), with the kernel (1, 4, 6, 4, 1) / 16 in both directions
(Burt and Adelson, "The Laplacian pyramid as a compact image code", IEEE Transactions on Communications 31(4), 1983, a = 3/8);
beyond the border the edge is repeated. P_k = L_k / (sigma + blur(|L_k|)) with the same kernel: a normalised Laplacian pyramid (Laparra,
Balle, Berardino, Simoncelli, "Perceptual image quality assessment using a normalized Laplacian pyramid", HVEI 2016).
    d(x, y) = sum_k mean |L_k(x) - L_k(y)| + contrast sum_k mean |P_k(x) - P_k(y)|.
The first sum is Lap_1 of Bojanowski, Joulin, Lopez-Paz, Szlam, "Optimizing the latent space of generative networks", ICML 2018: there
sums over pixels are weighted 2^{2k}, which is the mean over the pixels of a level up to a constant factor. What is left of the
image after the last band takes part in the first sum, so that distance 0 means equal images.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, pad

KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
SMALLEST = 4
"""Pixels of a side below which no band is taken off."""


class PyramidDistance(nn.Module):
    """The distance above, one value for each image; it has no weights.

    Args:
        levels: bands, fewer where the image is too small for them; 6 leave 8 x 8 pixels of 512 x 512.
        contrast: weight of the second sum; with 0.5 slight blur and noise cost about what they cost with VGG features.
        sigma: contrast (of values in [0, 1]) below which a band counts as flat: noise and compression lie below, pores and lashes above.

    Raises:
        ValueError: no level, a negative weight, or a sigma that is not positive.
    """

    def __init__(self, levels: int = 6, contrast: float = 0.5, sigma: float = 0.05) -> None:
        super().__init__()
        if levels < 1 or contrast < 0 or sigma <= 0:
            raise ValueError(f"levels {levels}, contrast {contrast}, sigma {sigma}: expected at least 1, at least 0, and more than 0")
        self.levels, self.contrast, self.sigma = levels, contrast, sigma

    def forward(
        self, image: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"] | None = None
    ) -> Float[Tensor, " b"]:
        """The distance of each image.

        Args:
            image: in [0, 1].
            target: the same.
            mask: weights of the pixels, at every level reduced as the image is; a band near its edge sees some pixels beyond. An image
                whose mask is 0 everywhere has distance 0.
        """
        bands, wanted = laplacian_pyramid(image, self.levels), laplacian_pyramid(target, self.levels)
        terms, weight = [], mask
        for level, (band, other) in enumerate(zip(bands, wanted, strict=True)):
            terms.append(_mean((band - other).abs(), weight))
            if self.contrast and level < len(bands) - 1:
                terms.append(self.contrast * _mean((normalised(band, self.sigma) - normalised(other, self.sigma)).abs(), weight))
            weight = None if weight is None else reduce(weight)
        return torch.stack(terms).sum(0)


def laplacian_pyramid(image: Float[Tensor, "b c h w"], levels: int) -> list[Tensor]:
    """The bands L_0, L_1 ... (at most ``levels``, each half the size of the one before, rounded up) and last what remains."""
    bands: list[Tensor] = []
    while len(bands) < levels and min(image.shape[-2:]) >= SMALLEST:
        coarse = reduce(image)
        bands.append(image - expand(coarse, image.shape[-2], image.shape[-1]))
        image = coarse
    return [*bands, image]


def normalised(band: Float[Tensor, "b c h w"], sigma: float) -> Float[Tensor, "b c h w"]:
    """A band divided by its mean absolute value around each pixel, plus ``sigma``."""
    return band / (sigma + _blur(band.abs(), 1))


def reduce(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    """Blur, and keep every second row and column from the first on."""
    return _blur(image, 2)


def expand(image: Float[Tensor, "b c h w"], height: int, width: int) -> Float[Tensor, "b c h2 w2"]:
    """Double the size by the kernel's interpolation, and keep ``height`` and ``width`` of it: what :func:`reduce` halved."""
    values = conv_transpose2d(pad(image, (1, 1, 1, 1), mode="replicate"), 4 * _kernel(image), stride=2, groups=image.shape[1])
    # The pixel that was added before the first lands on 2, the first on 4.
    return values[..., 4 : 4 + height, 4 : 4 + width]


def _blur(image: Tensor, stride: int) -> Tensor:
    return conv2d(pad(image, (2, 2, 2, 2), mode="replicate"), _kernel(image), stride=stride, groups=image.shape[1])


def _kernel(image: Tensor) -> Tensor:
    # One convolution in both directions at once, each channel for itself: on a CPU several times as fast as rows, then columns, of
    # channels laid out as a batch.
    kernel = image.new_tensor(KERNEL)
    return torch.outer(kernel, kernel).expand(image.shape[1], 1, 5, 5)


def _mean(values: Float[Tensor, "b c h w"], weight: Float[Tensor, "b 1 h w"] | None) -> Float[Tensor, " b"]:
    if weight is None:
        return values.mean((1, 2, 3))
    total = weight.sum((1, 2, 3)) * values.shape[1]
    return (values * weight).sum((1, 2, 3)) / total.clamp(min=torch.finfo(values.dtype).tiny)
