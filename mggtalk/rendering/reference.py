"""The renderer the others are measured against: pure torch, any device, differentiable to every input by autograd.

Letters: a Gaussian (mean m, covariance C = R S S R^T in canonical space) seen by a camera (rotation Q, intrinsics K) becomes a splat, a
2D Gaussian with mean K m' / z and covariance ``J Q C Q^T J^T + eps2d I``, where J is the Jacobian of the projection at m' (Zwicker et
al., "EWA splatting", 2002, section 6). At a pixel p it has ``alpha = opacity exp(-sigma)`` with ``sigma = |W (p - mean)|^2 / 2`` and
``W^T W`` the inverse of the 2D covariance. Front to back, ``T_k = prod_{i <= k} (1 - alpha_i)`` and the weight of a splat is
``alpha_k T_{k-1}`` (Kerbl et al., "3D Gaussian splatting", 2023, equation 3). Settings and limits are those of ``gsplat.rasterization``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import threshold

from mggtalk.geometry.cameras import pixel_centres, project, quaternion_to_matrix, transform_points
from mggtalk.rendering.renderer import Renderer
from mggtalk.types import Camera, Gaussians, Rendering, TensorRecord


@dataclass(frozen=True, kw_only=True)
class Splats(TensorRecord):
    """Projected Gaussians of a whole batch, those that touch their image only."""

    image: Int[Tensor, " m"]  # which image of the batch
    means: Float[Tensor, "m 2"]  # pixels
    covariances: Float[Tensor, "m 3"]  # xx, xy, yy, pixels^2
    opacities: Float[Tensor, " m"]
    depths: Float[Tensor, " m"]  # cm
    values: Float[Tensor, "m d"]  # features, then depth, then 1: what is blended


@dataclass(frozen=True)
class TileLists:
    """For every tile of every image, the splats that touch it, front to back: ``members[first : first + count]``."""

    members: Int[Tensor, " pairs"]
    first: Int[Tensor, " tiles"]
    count: Int[Tensor, " tiles"]
    centres: Float[Tensor, "tiles 2"]  # of the tile, pixels of its image


class ReferenceRenderer(Renderer):
    """Exact splatting in tiles of dense tensors; values and gradients do not depend on its own three settings.

    Args:
        tile: side of a tile, pixels.
        run: how many splats of a tile are blended at once; finished tiles are left out of the next run.
        budget: most (splat, pixel) pairs held in one tensor.
        settings: ``eps2d``, ``near``, ``alpha_min``, ``alpha_max`` and ``transmittance_min`` of :class:`Renderer`.

    Raises:
        ValueError: a setting is outside its limits.
    """

    def __init__(self, *, tile: int = 8, run: int = 32, budget: int = 2**18, **settings: float) -> None:
        super().__init__(**settings)
        if min(tile, run, budget) < 1:
            raise ValueError(f"tile {tile}, run {run} or budget {budget} is out of range: each is at least 1")
        self.tile, self.run, self.budget = tile, run, budget

    def render(self, gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None) -> Rendering:
        """As :meth:`Renderer.__call__`, for checked inputs with exactly one batch dimension."""
        images, channels = gaussians.means.shape[0], gaussians.features.shape[-1]
        splats = self.splat(gaussians, camera, size)
        rows, columns = (math.ceil(side / self.tile) for side in size)
        tiles = self.blend(splats, self.bin(splats, images, size))
        tiles = tiles.reshape(images, rows, columns, channels + 2, self.tile, self.tile)
        blended = tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)[..., : size[0], : size[1]]
        image, depth, alpha = blended.split([channels, 1, 1], dim=1)
        if background is not None:
            image = image + (1 - alpha) * background
        covered = alpha > 0
        return Rendering(image=image, alpha=alpha, depth=torch.where(covered, depth / torch.where(covered, alpha, 1), 0))

    def splat(self, gaussians: Gaussians, camera: Camera, size: tuple[int, int]) -> Splats:
        """Project the Gaussians and keep those that touch their image, sorted front to back."""
        with torch.no_grad():  # what is dropped here takes no part in any sum, so its gradient is exactly 0
            depths = transform_points(camera.head_to_camera, gaussians.means)[..., 2]
            kept = gaussians.mask & (depths > self.settings.near) & (gaussians.opacities >= self.settings.alpha_min)
        image = kept.nonzero()[:, 0]
        own = gaussians.map(lambda tensor: tensor[kept])
        means, depths = (part.squeeze(-2 if part.ndim == 3 else -1) for part in project(own.means[:, None], camera[image]))
        splats = Splats(
            image=image,
            means=means,
            covariances=self.covariances(own, camera[image], size),
            opacities=own.opacities,
            depths=depths,
            values=torch.cat([own.features, depths[:, None], torch.ones_like(depths)[:, None]], dim=-1),
        )
        first, last = self.reach(splats, size)
        xx, xy, yy = splats.covariances.detach().unbind(-1)
        chosen = ((first <= last).all(dim=-1) & (yy - xy / xx * xy > 0)).nonzero()[:, 0]  # a flat splat covers nothing
        return splats[chosen[splats.depths.detach()[chosen].argsort(stable=True)]]

    def covariances(self, own: Gaussians, camera: Camera, size: tuple[int, int]) -> Float[Tensor, "m 3"]:
        """Projected covariances (xx, xy, yy, pixels^2) of Gaussians that have one camera each.

        As in gsplat, the Jacobian is taken at a point no further than 0.15 of the image's side outside the image: the linear
        approximation of the projection fails for points that are far outside.
        """
        x, y, z = transform_points(camera.head_to_camera, own.means[:, None])[:, 0].unbind(-1)
        focal = camera.intrinsics.diagonal(dim1=-2, dim2=-1)[:, :2]
        centre, sides = camera.intrinsics[:, :2, 2], own.means.new_tensor([size[1], size[0]])
        tangents = torch.stack([x / z, y / z], dim=-1)
        tangents = tangents.clamp(min=-(centre + 0.15 * sides) / focal, max=(1.15 * sides - centre) / focal)
        shift = torch.cat([torch.eye(2).to(tangents).expand(len(z), 2, 2), -tangents[..., None]], dim=-1) / z[:, None, None]
        jacobian = camera.intrinsics[:, :2, :2] @ shift @ camera.head_to_camera[:, :3, :3]
        axes = jacobian @ quaternion_to_matrix(own.quaternions) * own.scales[:, None]
        xx, yy = (axes.square().sum(dim=-1) + self.settings.eps2d).unbind(-1)
        return torch.stack([xx, (axes[:, 0] * axes[:, 1]).sum(dim=-1), yy], dim=-1)

    @torch.no_grad()
    def reach(self, splats: Splats, size: tuple[int, int]) -> tuple[Int[Tensor, "m 2"], Int[Tensor, "m 2"]]:
        """First and last pixel (x, y) of the image at which a splat's alpha can reach ``alpha_min``; first > last if none."""
        spread = 2 * (splats.opacities / self.settings.alpha_min).log()[:, None] * splats.covariances[:, ::2]
        extent = spread.clamp(min=0).sqrt() * (1 + 1e-5) + 1e-3  # a little more than needed: every pixel is tested when it is blended
        sides = splats.means.new_tensor([size[1], size[0]])
        first = (splats.means - extent - 0.5).ceil().clamp(min=0).minimum(sides)
        last = (splats.means + extent - 0.5).floor().clamp(min=-1).minimum(sides - 1)
        return first.long(), last.long()

    @torch.no_grad()
    def bin(self, splats: Splats, images: int, size: tuple[int, int]) -> TileLists:
        """The list of every tile; splats come sorted by depth and a stable sort by tile keeps that order."""
        rows, columns = (math.ceil(side / self.tile) for side in size)
        first, last = (pixel // self.tile for pixel in self.reach(splats, size))
        across, down = (last - first + 1).unbind(-1)
        members = torch.repeat_interleave(across * down)
        step = torch.arange(len(members), device=members.device) - ((across * down).cumsum(0) - across * down)[members]
        column, row = first[members, 0] + step % across[members], first[members, 1] + step // across[members]
        tiles, order = ((splats.image[members] * rows + row) * columns + column).sort(stable=True)
        count = torch.bincount(tiles, minlength=images * rows * columns)
        centres = self.tile * pixel_centres(rows, columns, device=tiles.device, dtype=splats.means.dtype).reshape(-1, 2)
        return TileLists(members[order], count.cumsum(0) - count, count, centres.repeat(images, 1))

    def blend(self, splats: Splats, lists: TileLists) -> Float[Tensor, "tiles d pixels"]:
        """Blend the values of every tile's list, in runs from front to back, until all its pixels have stopped."""
        tiles, pixels = len(lists.count), self.tile**2
        blended = splats.values.new_zeros(tiles, splats.values.shape[-1], pixels)
        transmittance = splats.values.new_ones(tiles, pixels)
        shapes = torch.cat([splats.means, whitening(splats.covariances), splats.opacities[:, None]], dim=-1)
        table = torch.cat([shapes, splats.values], dim=-1)  # one row for each splat, so that a run gathers once
        longest = int(lists.count.max()) if tiles else 0
        for start in range(0, max(longest, 1), self.run):  # at least one run, if of nothing, so that autograd reaches every input
            going = (lists.count > start) & (transmittance.detach().amax(dim=-1) > self.settings.transmittance_min)
            for tile in going.nonzero()[:, 0].split(max(1, self.budget // (self.run * pixels))):
                place = start + torch.arange(self.run, device=tile.device)
                real = place < lists.count[tile, None]
                rows = table[lists.members[(lists.first[tile, None] + place).clamp(max=len(lists.members) - 1)]]
                alpha = self.alpha(rows[..., : shapes.shape[-1]], lists.centres[tile], real)
                added, left = self.accumulate(alpha, rows[..., shapes.shape[-1] :], transmittance[tile])
                blended.index_add_(0, tile, added)
                transmittance.index_copy_(0, tile, left)
        return blended

    def alpha(
        self, shapes: Float[Tensor, "g k 6"], centres: Float[Tensor, "g 2"], real: Bool[Tensor, "g k"]
    ) -> Float[Tensor, "g k pixels"]:
        """Alpha of every member (mean, W, opacity) of a run at every pixel of its tile; 0 where the list has ended.

        ``sigma`` is the sum of two squares of linear forms in pixels relative to the tile: two small matrix products, never negative,
        and accurate in float32 for thin splats, unlike the expanded quadric.
        """
        grid = pixel_centres(self.tile, self.tile, device=centres.device, dtype=centres.dtype).reshape(-1, 2) - self.tile / 2
        grid = torch.cat([grid, torch.ones_like(grid[:, :1])], dim=-1).mT
        (x, y), (w0, w1, w2) = (shapes[..., :2] - centres[:, None]).unbind(-1), shapes[..., 2:5].unbind(-1)
        across = torch.stack([w0, torch.zeros_like(w0), -w0 * x], dim=-1) @ grid
        down = torch.stack([w1, w2, -w1 * x - w2 * y], dim=-1) @ grid
        weakening = torch.exp(torch.addcmul(across.square(), down, down).neg())
        alpha = torch.where(real, shapes[..., 5], 0)[..., None] * weakening
        return threshold(alpha.clamp(max=self.settings.alpha_max), math.nextafter(self.settings.alpha_min, 0), 0)

    def accumulate(
        self, alpha: Float[Tensor, "g k pixels"], values: Float[Tensor, "g k d"], before: Float[Tensor, "g pixels"]
    ) -> tuple[Float[Tensor, "g d pixels"], Float[Tensor, "g pixels"]]:
        """What one run adds to the blended values of its tiles, and the transmittance that it leaves.

        The transmittance only falls, so a pixel that has stopped stays stopped; it is held at the limit so that it never underflows.
        """
        free = 1 - alpha
        after = free.cumprod(dim=1) * before[:, None]
        weights = threshold(after, self.settings.transmittance_min, 0) * (alpha / free)  # after / free is the transmittance in front
        return values.mT @ weights, after[:, -1].clamp(min=self.settings.transmittance_min)


def whitening(covariances: Float[Tensor, "m 3"]) -> Float[Tensor, "m 3"]:
    """The lower triangle (00, 10, 11) of ``W / sqrt(2)``, where ``W^T W`` is the inverse of a covariance xx, xy, yy."""
    xx, xy, yy = covariances.unbind(-1)
    slope = xy / xx
    last = (0.5 / (yy - slope * xy)).sqrt()
    return torch.stack([(0.5 / xx).sqrt(), -slope * last, last], dim=-1)
