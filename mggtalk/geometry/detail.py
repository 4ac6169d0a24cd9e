"""Fine detail: what Gaussians miss of the source that they were made of, carried along with the surface that shows it.

A splat is a blur, and the source is sharper: seen from where it was taken, the rendering differs from it at lids, lips, hairs and outlines.
That difference is known exactly, so it need not be lost. It is moved as the surface under it moves, and added to the rendering; where the
head is as the source shows it, the result is the source itself. The motion is that of the visible points, averaged on a coarse grid.
Everything batches; the gradient goes to what was missed, not to how it moves.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from mggtalk.geometry.images import erode, push_pull
from mggtalk.geometry.picture_kernels import add_moved
from mggtalk.streaming import can_stream, run_rows

CELLS = 32
"""Cells a side of the grid on which motion is averaged; fewer for images under 4 pixels a cell."""
STRETCH = 0.1
"""Strain of the motion (change of displacement by place) at which detail has faded to exp(-1): a texture torn apart has none."""
REACH = 1.0
"""How deep (cm) behind the nearest point of a cell a point may lie to have a say of exp(-1) in the cell's motion."""
RIM = 64
"""Outlines reach one pixel inwards for so many pixels of the image's width."""
POINTS = 1 << 12
"""About so many points say how the surface moves; more say the same."""


class Detail(NamedTuple):
    """What the rendering of a source misses of it, and where the source shows the points that carry it. Places are shares of the image."""

    inner: Float[Tensor, "b 3 h w"]  # inside the head
    rim: Float[Tensor, "b 3 h w"]  # along its outline, where the source's background shines in, and around it
    places: Float[Tensor, "b n 2"]
    weights: Float[Tensor, "b n"]
    step: int  # these are every so many-th of the points


def detail_of(
    missed: Float[Tensor, "b 3 h w"], head: Bool[Tensor, "b 1 h w"], pixels: Float[Tensor, "b n 2"], weights: Float[Tensor, "b n"]
) -> Detail:
    """What is to be carried.

    Args:
        missed: the source less the rendering of its own pose and expression.
        head: where the source shows the head.
        pixels: where the source shows the points of its surface.
        weights: their opacity; 0 for those that are none.
    """
    radius = max(missed.shape[-1] // RIM, 1)
    inside = erode(head.to(missed.dtype), radius)
    inside = avg_pool2d(inside, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    step = max(pixels.shape[1] // POINTS, 1)
    places = _shares(pixels[:, ::step], missed)
    return Detail(inner=missed * inside, rim=missed * (1 - inside), places=places, weights=weights[:, ::step], step=step)


def carried(
    detail: Detail, pixels: Float[Tensor, "b n 2"], depth: Float[Tensor, "b n"], stillness: Float[Tensor, " b"]
) -> Float[Tensor, "b 3 h w"]:
    """What to add to a rendering of the moved points.

    Args:
        detail: of the source.
        pixels: where every ``detail.step``-th point is now, in an image of the source's size.
        depth: of those points, cm.
        stillness: 1 where outlines keep what they miss, 0 where that belongs to a background which is no longer behind them.
    """
    with torch.no_grad():
        grid, kept = _finer(_motion(detail, _shares(pixels, detail.inner), depth), detail.inner.shape[-2:])
    return kept * grid_sample(_texture(detail, stillness), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def added(
    image: Float[Tensor, "b 3 h w"],
    detail: Detail,
    pixels: Float[Tensor, "b n 2"],
    depth: Float[Tensor, "b n"],
    stillness: Float[Tensor, " b"],
) -> Float[Tensor, "b 3 h w"]:
    """A rendering with what is :func:`carried`, by compiled loops where nobody asks for gradients."""
    if not can_stream(image, detail.inner, pixels):
        return image + carried(detail, pixels, depth, stillness)
    made = torch.empty_like(image, memory_format=torch.contiguous_format)
    motion = _motion(detail, _shares(pixels, image), depth)
    run_rows(add_moved, (image, _texture(detail, stillness), motion), made)
    return made


def _texture(detail: Detail, stillness: Tensor) -> Tensor:
    return torch.addcmul(detail.inner, detail.rim, stillness[:, None, None, None])


def _shares(pixels: Tensor, image: Tensor) -> Tensor:
    return pixels / pixels.new_tensor([image.shape[-1], image.shape[-2]])


def _motion(detail: Detail, places: Tensor, depth: Tensor) -> Float[Tensor, "b 3 c c"]:
    """From how far right and down (shares of the image) the pixels of each cell come, and how much of the detail they keep."""
    cells = max(min(CELLS, min(detail.inner.shape[-2:]) // 4), 2)
    cell = (places * cells).floor().long()
    inside = (detail.weights > 0) & (cell >= 0).all(-1) & (cell < cells).all(-1) & (depth > 0)
    index = torch.where(inside, cell[..., 1] * cells + cell[..., 0], cells**2)  # one cell more takes what is nowhere
    near = depth.new_full((len(depth), cells**2 + 1), torch.inf).scatter_reduce(1, index, depth, "amin")
    say = detail.weights * torch.exp((near.gather(1, index) - depth) / REACH)
    said = torch.stack([*(say[..., None] * (detail.places - places)).unbind(-1), say], 1)
    total = said.new_zeros(len(said), 3, cells**2 + 1).scatter_add(2, index[:, None].expand(-1, 3, -1), said)[..., :-1]
    shift, weight = total.unflatten(2, (cells, cells)).split([2, 1], 1)
    shift = push_pull(shift / weight.clamp(min=1e-6), (weight / 2).clamp(max=1))
    across, down = torch.gradient(shift, dim=(-1, -2))
    strain = cells**2 * (across.square() + down.square()).sum(1, keepdim=True)
    return torch.cat([shift, torch.exp(-strain / STRETCH**2)], 1)


def _finer(coarse: Float[Tensor, "b 3 c c"], size: torch.Size) -> tuple[Float[Tensor, "b h w 2"], Float[Tensor, "b 1 h w"]]:
    """Where each pixel comes from, as :func:`torch.nn.functional.grid_sample` reads it, and how much of the detail it keeps."""
    tall, wide = (_between(coarse.shape[-1], length).to(coarse) for length in size)
    moved, kept = (tall @ coarse @ wide.mT).split([2, 1], 1)  # bilinear; faster as products than as PyTorch's interpolation
    rows, columns = (2 * (torch.arange(length, device=coarse.device, dtype=coarse.dtype) + 0.5) / length - 1 for length in size)
    here = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    return torch.add(here, moved.permute(0, 2, 3, 1), alpha=2), kept


@lru_cache(maxsize=8)
def _between(cells: int, length: int) -> Float[Tensor, "{length} {cells}"]:
    """Linear interpolation from the centres of cells to the centres of pixels, constant beyond the outermost."""
    with torch.inference_mode(False):
        return interpolate(torch.eye(cells)[None], size=length, mode="linear", align_corners=False)[0].mT
