"""Filling and sampling images: what the classical bases of the model are made of. It batches and differentiates; bytes are for the end."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, max_pool2d, pad

from datasets_toolkit.schema import ByteImage


def push_pull(image: Float[Tensor, "*batch c h w"], known: Float[Tensor, "*batch 1 h w"]) -> Float[Tensor, "*batch c h w"]:
    """Fill an image smoothly where it is not known.

    Known pixels are averaged into ever coarser levels until nothing is missing, then each level fills its gaps from the coarser one
    (Gortler et al., "The lumigraph", SIGGRAPH 1996, section 3.4).

    Args:
        image: any channels.
        known: 1 where the image is to be kept, 0 where it is to be filled; values between mix the two.
    """
    batch, known = image.shape[:-3], known.to(image.dtype)
    filled = _pull(image.flatten(0, -4) if batch else image[None], known.flatten(0, -4) if batch else known[None])
    return filled.reshape(image.shape)


def _pull(image: Tensor, known: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    if min(height, width) <= 1:
        mean = (image * known).sum((-2, -1), keepdim=True) / known.sum((-2, -1), keepdim=True).clamp(min=1e-6)
        return torch.lerp(mean, image, known)
    odd = (0, width % 2, 0, height % 2)
    weighted = avg_pool2d(pad(image * known, odd) if any(odd) else image * known, 2)
    weight = avg_pool2d(pad(known, odd) if any(odd) else known, 2)
    coarse = _pull(weighted / weight.clamp(min=1e-6), (2 * weight).clamp(max=1))
    finer = interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    return torch.lerp(finer, image, known)


def sample(image: Float[Tensor, "*batch c h w"], pixels: Float[Tensor, "*batch n 2"]) -> Float[Tensor, "*batch n c"]:
    """Bilinear samples of an image at pixel coordinates (first centre 0.5, 0.5); beyond the border the edge is repeated."""
    batch = image.shape[:-3]
    height, width = image.shape[-2:]
    grid = 2 * pixels / pixels.new_tensor([width, height]) - 1
    flat = image.reshape(-1, *image.shape[-3:])
    values = grid_sample(flat, grid.reshape(flat.shape[0], 1, -1, 2), mode="bilinear", padding_mode="border", align_corners=False)
    return values[:, :, 0].mT.reshape(*batch, *pixels.shape[-2:-1], image.shape[-3])


def nearest(image: Shaped[Tensor, "b c h w"], pixels: Float[Tensor, "b n 2"]) -> Shaped[Tensor, "b n c"]:
    """The pixels (any dtype) that hold pixel coordinates; beyond the border the edge is repeated. For labels, which must not mix."""
    height, width = image.shape[-2:]
    column = pixels[..., 0].floor().long().clamp(0, width - 1)
    row = pixels[..., 1].floor().long().clamp(0, height - 1)
    index = (row * width + column)[:, None].expand(-1, image.shape[1], -1)
    return image.flatten(2).gather(2, index).mT


def shift(image: Float[Tensor, "b c h w"], pixels: Float[Tensor, "b 2"]) -> Float[Tensor, "b c h w"]:
    """Move an image right and down by (fractions of) pixels; what comes in at the border is the reflection of what is inside."""
    height, width = image.shape[-2:]
    rows = torch.arange(height, device=image.device, dtype=image.dtype) + 0.5 - pixels[:, 1:]
    columns = torch.arange(width, device=image.device, dtype=image.dtype) + 0.5 - pixels[:, :1]
    x = (2 * columns / width - 1)[:, None].expand(-1, height, -1)
    y = (2 * rows / height - 1)[:, :, None].expand(-1, -1, width)
    return grid_sample(image, torch.stack([x, y], -1), mode="bilinear", padding_mode="reflection", align_corners=False)


def dilate(mask: Float[Tensor, "*batch 1 h w"], radius: int) -> Float[Tensor, "*batch 1 h w"]:
    """Grey dilation by a square of side ``2 radius + 1``."""
    if mask.device.type != "cpu":
        flat = mask.reshape(-1, *mask.shape[-3:])
        return max_pool2d(flat, 2 * radius + 1, stride=1, padding=radius).reshape(mask.shape)
    for dim in (-2, -1):
        edge = (radius, radius) if dim == -1 else (0, 0, radius, radius)
        mask = _windows(pad(mask, edge, value=-torch.inf), 2 * radius + 1, dim)
    return mask


def erode(mask: Float[Tensor, "*batch 1 h w"], radius: int) -> Float[Tensor, "*batch 1 h w"]:
    """Grey erosion, likewise, of values up to 1; beyond the border nothing erodes."""
    return 1 - dilate(1 - mask, radius)


def _windows(image: Tensor, size: int, dim: int) -> Tensor:
    """The largest of ``size`` neighbours along ``dim``: of windows of doubling length, which vectorises where pooling does not."""
    count, length = image.shape[dim] - size + 1, 1
    while 2 * length <= size:
        image = torch.maximum(image.narrow(dim, 0, image.shape[dim] - length), image.narrow(dim, length, image.shape[dim] - length))
        length *= 2
    return torch.maximum(image.narrow(dim, 0, count), image.narrow(dim, size - length, count))


def byte_images(images: Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]) -> list[ByteImage]:
    """Images as rounded bytes (h w 3) on the CPU: floats of [0, 1], what lies outside clamped, NaN black; bytes as they are."""
    if images.dtype != torch.uint8:
        images = (images.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return list(np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy()))
