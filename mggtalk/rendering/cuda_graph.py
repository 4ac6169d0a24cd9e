"""Rendering one frame after another on a GPU without the host in between: gsplat in a CUDA graph, forward only.

``gsplat.rasterization`` 1.5.3 cannot be captured in a graph: ``intersect_tile`` (``Intersect.cpp``) asks the GPU how many (splat, tile)
pairs there are, to allocate their list, and a stream that is being captured must not be asked. gsplat's projection and its blending can
be captured. So here the lists are made by PyTorch operations of fixed sizes, with room for a fixed number of pairs; a frame that needs
more is captured anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mggtalk.rendering.cuda import CHANNEL_CHUNK, CudaRenderer, arguments, load_gsplat, nothing, padded, rendering_of
from mggtalk.rendering.renderer import Settings
from mggtalk.types import Camera, Gaussians, Rendering

TILE = 16  # pixels a side
HEADROOM = 1.5  # room for pairs, times those of the frame at hand
GRAPHS = 4  # shapes that one renderer remembers


@dataclass(frozen=True)
class TileLists:
    """For every tile of every image the splats that touch it, front to back, in a list of fixed length.

    Each image has a row of tiles more than it needs, outside the image, where nothing is blended. The last of these tiles, which is the
    last of all, holds the places of the list that no pair fills.
    """

    offsets: Int[Tensor, "b rows columns"]  # where the list of a tile begins
    members: Int[Tensor, " capacity"]  # index of a splat, all images in one row
    total: Int[Tensor, ""]  # pairs that there are; more than ``capacity``: some are missing


class GraphRenderer(CudaRenderer):
    """As :class:`CudaRenderer`, replaying a CUDA graph for each shape of inputs when no gradient is asked for.

    The first frame of a shape captures the graph. A graph keeps its own copy of the inputs, and all memory that a frame needs. One frame
    at a time: not for several threads at once.
    """

    def __init__(self, *, eps2d: float = 0.3, near: float = 0.01) -> None:
        super().__init__(eps2d=eps2d, near=near)
        self.graphs: dict[Any, FrameGraph] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without graphs."""
        return {**vars(self), "graphs": {}}

    def render(self, gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None) -> Rendering:
        """As :meth:`CudaRenderer.render`."""
        inputs = [*vars(gaussians).values(), *vars(camera).values(), *([] if background is None else [background])]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            return super().render(gaussians, camera, size, background)
        if len(gaussians.mask) == 0:
            return nothing(gaussians, size)
        key = (size, gaussians.means.device, *(tuple(tensor.shape) for tensor in inputs))
        with torch.inference_mode(False), torch.no_grad():  # the graph's buffers outlive the caller's mode
            rendering = self.graphs[key].replay(inputs) if key in self.graphs else None
            if rendering is None:  # a new shape, or more pairs than there is room for
                self.graphs.pop(key, None)
                self.graphs = dict([*self.graphs.items()][1 - GRAPHS :])
                self.graphs[key] = FrameGraph(gaussians, camera, size, background, self.settings)
                rendering = self.graphs[key].replay(inputs)
        assert rendering is not None  # the room was measured on these very inputs
        return rendering


class FrameGraph:
    """The rendering of one shape, captured; its inputs lie in buffers that :meth:`replay` fills.

    Args:
        gaussians: one batch dimension, like the other inputs; the room for pairs is measured on them.
        camera: of each image.
        size: of the images, pixels.
        background: or None.
        settings: of the renderer.

    Raises:
        RenderError: gsplat cannot be used here.
    """

    def __init__(self, gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None, settings: Settings) -> None:
        own, view = gaussians.map(torch.clone), camera.map(torch.clone)
        behind = None if background is None else background.clone()
        self.inputs = [*vars(own).values(), *vars(view).values(), *([] if behind is None else [behind])]
        self.capacity = math.ceil(HEADROOM * int(draw(own, view, size, behind, settings, 1)[1])) + 1024
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries allocate what they need at their first call, which a capture forbids
            draw(own, view, size, behind, settings, self.capacity)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.rendering, self.total = draw(own, view, size, behind, settings, self.capacity)

    def replay(self, inputs: list[Tensor]) -> Rendering | None:
        """Render ``inputs`` (of the captured shapes, in the captured order); None if there is no room for their pairs."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return None if int(self.total) > self.capacity else self.rendering.map(torch.clone)


def draw(
    gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None, settings: Settings, capacity: int
) -> tuple[Rendering, Int[Tensor, ""]]:
    """What ``gsplat.rasterization`` does, with lists of fixed length; also how many pairs there are."""
    gsplat, given = load_gsplat(), arguments(padded(gaussians), camera, size, settings)
    kept = {name: given[name] for name in ("viewmats", "Ks", "width", "height", "eps2d", "near_plane", "far_plane", "opacities")}
    shape = {"means": given["means"], "covars": None, "quats": given["quats"], "scales": given["scales"]}
    radii, means, depths, conics, _ = gsplat.fully_fused_projection(**shape, **kept)
    lists = tile_lists(means[:, 0], radii[:, 0], depths[:, 0], size, capacity)
    values = torch.cat([given["colors"][:, None], depths[..., None]], dim=-1)
    geometry = {"means2d": means, "conics": conics, "opacities": given["opacities"][:, None], "tile_size": TILE}
    geometry |= {"image_width": size[1], "image_height": size[0], "isect_offsets": lists.offsets[:, None], "flatten_ids": lists.members}
    parts = [gsplat.rasterize_to_pixels(colors=part, **geometry) for part in values.split(CHANNEL_CHUNK, dim=-1)]
    colors = torch.cat([part[0] for part in parts], dim=-1) if len(parts) > 1 else parts[0][0]
    return rendering_of(colors, parts[0][1], background), lists.total


def tile_lists(
    means: Float[Tensor, "b n 2"], radii: Int[Tensor, "b n 2"], depths: Float[Tensor, "b n"], size: tuple[int, int], capacity: int
) -> TileLists:
    """The lists of splats with these means (pixels), half sides (pixels; 0: not seen, the rest may be anything) and depths (positive).

    No operation has a result whose shape depends on values. Splats of one depth keep their order.
    """
    (images, points), (rows, columns) = depths.shape, (math.ceil(side / TILE) for side in size)
    seen = (radii > 0).all(dim=-1)
    centre, reach = torch.where(seen[..., None], means, 0) / TILE, radii / TILE
    low, high = (centre - reach).floor(), (centre + reach).ceil()
    first, last = (torch.stack([edge[..., 0].clamp(0, columns), edge[..., 1].clamp(0, rows)], dim=-1).long() for edge in (low, high))
    across, down = (last - first).unbind(-1)
    count = torch.where(seen, across * down, 0).flatten()
    ends = count.cumsum(0)
    place = torch.arange(capacity, device=means.device)
    owner = torch.searchsorted(ends, place, right=True).clamp(max=images * points - 1)
    step, wide = place - (ends - count)[owner], across.flatten()[owner].clamp(min=1)
    column, row = first[..., 0].flatten()[owner] + step % wide, first[..., 1].flatten()[owner] + step // wide
    tile, tiles = (owner // points * (rows + 1) + row) * columns + column, images * (rows + 1) * columns
    near = depths.contiguous().view(torch.int32).flatten()[owner].long()  # bits of positive floats are ordered as their values are
    used = place < ends[-1]
    keys, order = torch.where(used, (tile << 32) | near, (tiles - 1) << 32).sort(stable=True)
    offsets = torch.searchsorted(keys >> 32, torch.arange(tiles, device=means.device))
    return TileLists(offsets.int().view(images, rows + 1, columns), owner[order].int(), ends[-1])
