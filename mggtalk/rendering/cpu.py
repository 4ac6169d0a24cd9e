"""A renderer for CPUs: compiled by Numba to the vector instructions of the machine, no C compiler needed.

It does what :mod:`mggtalk.rendering.reference` does, in float32: project the Gaussians, sort them by depth, list the splats of each tile of
16 x 16 pixels, blend front to back. Gradients are analytic. Values and gradients are the same bits for any number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mggtalk.rendering.cpu_bins import count_part, fill_part, place_lists, sort_splats
from mggtalk.rendering.cpu_blend import blend_part
from mggtalk.rendering.cpu_blend_back import blend_back_part
from mggtalk.rendering.cpu_buffers import Lease, Workspace
from mggtalk.rendering.cpu_layout import BATCH, CAMERA, CHUNK, COUNTERS, MOMENTS, TILE, VALUES, Images, Lists, Pairs, Plan, Scene
from mggtalk.rendering.cpu_project import project_part
from mggtalk.rendering.cpu_project_back import Outcome, project_back_part
from mggtalk.rendering.cpu_threads import (
    announced,
    blend_all,
    blend_back_all,
    count_all,
    fill_all,
    project_all,
    project_back_all,
    threads,
)
from mggtalk.rendering.renderer import Renderer
from mggtalk.types import Camera, Gaussians, Rendering

LEAST = 16  # Gaussians: as many as a vector holds


@dataclass(frozen=True, kw_only=True)
class Settings:
    """As in ``ReferenceRenderer``."""

    eps2d: float
    near: float
    alpha_min: float
    alpha_max: float
    transmittance_min: float


@dataclass(frozen=True)
class Trace:
    """What the backward pass of one image needs of its forward pass."""

    plan: Plan
    lists: Lists
    pairs: Pairs
    lease: Lease


class CpuRenderer(Renderer):
    """Splatting on the CPU, on as many threads as torch uses (``torch.set_num_threads``); one in forked processes.

    The first rendering on a machine compiles for some 20 s and says so on stderr; the result is kept on disk, beside the source if that
    can be written, else in the user's cache, or where ``NUMBA_CACHE_DIR`` says.

    Args:
        eps2d: added to the diagonal of the projected covariance, pixels^2.
        near: Gaussians nearer than this are dropped, cm.
        alpha_min: a smaller alpha is skipped; at least 1e-6.
        alpha_max: alpha is clamped to this, less than 1.
        transmittance_min: blending stops before the Gaussian that would bring the transmittance to this or below; not negative.

    Raises:
        ValueError: a setting is outside these limits.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def __init__(
        self,
        *,
        eps2d: float = 0.3,
        near: float = 0.01,
        alpha_min: float = 1 / 255,
        alpha_max: float = 0.999,
        transmittance_min: float = 1e-4,
    ) -> None:
        if not (alpha_min >= 1e-6 and alpha_max < 1 and transmittance_min >= 0):
            raise ValueError(f"alpha_min {alpha_min}, alpha_max {alpha_max} or transmittance_min {transmittance_min} is out of range")
        self.settings = Settings(
            eps2d=eps2d, near=near, alpha_min=alpha_min, alpha_max=alpha_max, transmittance_min=transmittance_min
        )

    def render(self, gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None) -> Rendering:
        """As :meth:`Renderer.__call__`, for checked inputs with exactly one batch dimension."""
        missing = LEAST - gaussians.means.shape[1]
        if missing > 0:
            padding = gaussians.map(lambda tensor: tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:]))
            gaussians = Gaussians(**{name: torch.cat([own, getattr(padding, name)], dim=1) for name, own in vars(gaussians).items()})
        inputs = [gaussians.means, gaussians.quaternions, gaussians.scales, gaussians.opacities, gaussians.features]
        inputs.append(pack_camera(camera, size))
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in [*inputs, background]):
            image, alpha, depth = _Splat.apply(self.settings, size, gaussians.mask, background, *inputs)
        else:
            image, alpha, depth = splat_batch(self.settings, size, gaussians.mask, background, inputs, None)
        return Rendering(image=image, alpha=alpha, depth=depth)


def pack_camera(camera: Camera, size: tuple[int, int]) -> Float[Tensor, "b 22"]:
    """The numbers of a camera that the kernels use (see ``cpu_layout.CAMERA``), differentiable."""
    intrinsics, pose = camera.intrinsics, camera.head_to_camera
    focal, centre = intrinsics.diagonal(dim1=-2, dim2=-1)[:, :2], intrinsics[:, :2, 2]
    sides = intrinsics.new_tensor([size[1], size[0]])
    limits = [-(centre + 0.15 * sides) / focal, (1.15 * sides - centre) / focal]
    return torch.cat([pose[:, :3, :3].flatten(1), pose[:, :3, 3], intrinsics[:, :2].flatten(1), *limits], dim=1)


class _Splat(torch.autograd.Function):
    """The rendering of a batch and its gradients."""

    @staticmethod
    def forward(ctx: Any, settings: Settings, size: tuple[int, int], mask: Tensor, background: Tensor | None, *inputs: Tensor) -> Any:
        ctx.traces = []
        outputs = splat_batch(settings, size, mask, background, list(inputs), ctx.traces, ctx.needs_input_grad[9])
        ctx.save_for_backward(mask, *inputs, *outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *to_outputs: Tensor) -> Any:
        mask, *rest = ctx.saved_tensors
        inputs, outputs = rest[:6], rest[6:]
        outcome = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
        to_outputs = tuple(tensor.contiguous() for tensor in to_outputs)
        for image, trace in enumerate(ctx.traces):
            scene, images, gradients = (
                Scene(*(flat(tensor[image]) for tensor in (*inputs[:5], mask, inputs[5]))),
                images_of([tensor[image] for tensor in outputs], None),
                images_of([tensor[image] for tensor in to_outputs], None),
            )
            cameras = splat_back(trace, scene, images, gradients, [flat(tensor[image]) for tensor in outcome[:5]])
            outcome[5][image] = torch.from_numpy(cameras)
        to_background = (1 - outputs[1]) * to_outputs[0] if ctx.needs_input_grad[3] else None
        return None, None, None, to_background, *outcome


def flat(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor's numbers as a flat array, without a copy if they are contiguous."""
    return tensor.detach().contiguous().view(-1).numpy()


def images_of(parts: list[Tensor], background: Tensor | None) -> Images:
    """Flat arrays of image, alpha and depth of one rendering."""
    image, alpha, depth = (flat(part) for part in parts)
    return Images(image, alpha, depth, np.empty(0, np.float32) if background is None else flat(background))


def splat_batch(
    settings: Settings, size: tuple[int, int], mask: Tensor, background: Tensor | None, inputs: list[Tensor], traces: list[Trace] | None, for_camera: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Image, alpha and depth of every image of a batch; what its backward pass needs is added to ``traces`` if given."""
    batch, channels = len(mask), inputs[4].shape[-1]
    outputs = [inputs[0].new_empty(batch, count, *size) for count in (channels, 1, 1)]
    for image in range(batch):
        scene = Scene(*(flat(tensor[image]) for tensor in (*inputs[:5], mask, inputs[5])))
        plan = plan_of(settings, size, mask.shape[1], channels, (traces is not None, for_camera, background is not None))
        images = images_of([output[image] for output in outputs], None if background is None else background[image])
        trace = splat(plan, scene, images)
        if traces is not None:
            traces.append(trace)
    return outputs[0], outputs[1], outputs[2]


def plan_of(settings: Settings, size: tuple[int, int], points: int, channels: int, flags: tuple[bool, bool, bool]) -> Plan:
    """Sizes and settings of one image; flags: ``for_backward``, ``for_camera``, ``over_background``."""
    values = max(4, channels + 1)
    return Plan(
        width=size[1],
        height=size[0],
        columns=math.ceil(size[1] / TILE),
        rows=math.ceil(size[0] / TILE),
        points=points,
        channels=channels,
        values=values,
        stride=16 * math.ceil((VALUES + values) / 16),
        gradient_stride=16 * math.ceil((MOMENTS + values) / 16),
        for_backward=flags[0],
        for_camera=flags[1],
        over_background=flags[2],
        eps2d=float(settings.eps2d),
        near=float(settings.near),
        alpha_min=float(settings.alpha_min),
        alpha_max=float(settings.alpha_max),
        log_alpha_min=math.log2(settings.alpha_min),
        transmittance_min=float(settings.transmittance_min),
        work=16 * (16 * (3 + values) + BATCH * math.ceil((VALUES + values) / 16) + 3 * CAMERA + 32),
    )


def lists_of(workspace: Workspace, plan: Plan, parts: int) -> Lists:
    """Buffers for the lists of one image."""
    points, tiles, corners = plan.points, plan.columns * plan.rows, (plan.columns + 1) * (plan.rows + 1)
    return Lists(
        records=workspace.array("records", points * plan.stride, np.float32),
        rects=workspace.array("rects", 2 * points, np.uint64),
        keys=workspace.array("keys", points, np.uint64),
        spare=workspace.array("spare", points, np.uint64),
        visible=workspace.array("visible", 2 * (points // CHUNK + 1), np.int64),
        histogram=workspace.array("histogram", 4096, np.int64),
        counts=workspace.array("counts", parts * corners, np.int64),
        starts=workspace.array("starts", tiles + 1, np.int64),
        counters=workspace.array("counters", COUNTERS, np.int64),
        work=workspace.array("work", parts * plan.work, np.float32),
        masks=workspace.array("masks", parts * BATCH, np.uint16),
    )


def splat(plan: Plan, scene: Scene, images: Images) -> Trace:
    """Render one image."""
    lease = Lease()
    workspace = lease.workspace
    with threads() as parts, announced("the rendering", parts):
        lists = lists_of(workspace, plan, parts)
        lists.counters[:] = 0
        many = parts > 1
        project_all(parts, plan, scene, lists) if many else project_part(0, plan, scene, lists)
        visible = sort_splats(plan, lists)
        count_all(parts, plan, lists, visible) if many else count_part(0, 1, plan, lists, visible)
        count = place_lists(parts, plan, lists)
        pairs = Pairs(
            members=workspace.array("members", count, np.int32),
            slots=workspace.array("slots", count if plan.for_backward else 0, np.int32),
        )
        fill_all(parts, plan, lists, pairs, visible) if many else fill_part(0, 1, plan, lists, pairs, visible)
        blend_all(parts, plan, lists, pairs, images) if many else blend_part(0, plan, lists, pairs, images)
    return Trace(plan, lists, pairs, lease)


def splat_back(trace: Trace, scene: Scene, images: Images, gradients: Images, outcome: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Gradients of one image: to the Gaussians in ``outcome``; returns those to the camera."""
    plan, lists, pairs, workspace = trace.plan, trace.lists, trace.pairs, trace.lease.workspace
    count, chunks = int(lists.starts[plan.columns * plan.rows]), math.ceil(plan.points / CHUNK)
    gathered = workspace.array("gathered", count * plan.gradient_stride, np.float32)
    reached = workspace.array("reached", count, np.uint8)
    reached[:count] = 0
    cameras = workspace.array("cameras", chunks * CAMERA, np.float32)
    results = Outcome(*outcome, cameras)
    with threads() as parts, announced("the gradients", parts):
        lists.counters[:] = 0
        lists = lists._replace(work=workspace.array("work", parts * plan.work, np.float32))
        blend, project = [plan, lists, pairs, images, gradients, gathered, reached], [plan, scene, lists, gathered, reached, results]
        blend_back_all(parts, *blend) if parts > 1 else blend_back_part(0, *blend)
        project_back_all(parts, *project) if parts > 1 else project_back_part(0, *project)
    return cameras[: chunks * CAMERA].reshape(chunks, CAMERA).sum(axis=0, dtype=np.float64).astype(np.float32)
