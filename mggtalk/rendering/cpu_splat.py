"""One image from its inputs to its pixels, and back: sizes, buffers and the order of the compiled stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mggtalk.rendering.cpu_bins import count_part, fill_part, place_lists, sort_splats
from mggtalk.rendering.cpu_blend import blend_part, blend_part_narrow
from mggtalk.rendering.cpu_blend_back import blend_back_part, blend_back_part_narrow
from mggtalk.rendering.cpu_buffers import Lease, Workspace
from mggtalk.rendering.cpu_gather import project_back_part
from mggtalk.rendering.cpu_layout import BATCH, CAMERA, CHUNK, COUNTERS, MOMENTS, TILE, VALUES, Images, Lists, Pairs, Plan, Scene
from mggtalk.rendering.cpu_project import project_part
from mggtalk.rendering.cpu_project_back import Outcome
from mggtalk.rendering.cpu_threads import (
    announced,
    blend_all,
    blend_all_narrow,
    blend_back_all,
    blend_back_all_narrow,
    count_all,
    fill_all,
    project_all,
    project_back_all,
    threads,
)
from mggtalk.rendering.renderer import Settings

# By whether there are at most three features, and whether there are several threads; a process compiles those that it uses.
BLENDS: dict[tuple[bool, bool], Any] = {
    (False, False): blend_part,
    (False, True): blend_all,
    (True, False): blend_part_narrow,
    (True, True): blend_all_narrow,
}
BACK_BLENDS: dict[tuple[bool, bool], Any] = {
    (False, False): blend_back_part,
    (False, True): blend_back_all,
    (True, False): blend_back_part_narrow,
    (True, True): blend_back_all_narrow,
}


@dataclass(frozen=True)
class Trace:
    """What the backward pass of one image needs of its forward pass."""

    plan: Plan
    lists: Lists
    pairs: Pairs
    lease: Lease


def flat(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor's numbers as a flat array, without a copy if they are contiguous."""
    return tensor.detach().contiguous().view(-1).numpy()


def images_of(parts: list[Tensor], background: Tensor | None) -> Images:
    """Flat arrays of image, alpha and depth of one rendering."""
    image, alpha, depth = (flat(part) for part in parts)
    return Images(image, alpha, depth, np.empty(0, np.float32) if background is None else flat(background))


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
            blocks=workspace.array("blocks", count if plan.for_backward else 0, np.uint16),
        )
        fill_all(parts, plan, lists, pairs, visible) if many else fill_part(0, 1, plan, lists, pairs, visible)
        blend, work = BLENDS[plan.values == 4, many], [plan, lists, pairs, images]
        blend(parts if many else 0, *work)
    return Trace(plan, lists, pairs, lease)


def splat_back(trace: Trace, scene: Scene, images: Images, gradients: Images, outcome: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Gradients of one image: to the Gaussians in ``outcome``; returns those to the camera."""
    plan, lists, pairs, workspace = trace.plan, trace.lists, trace.pairs, trace.lease.workspace
    count, chunks = int(lists.starts[plan.columns * plan.rows]), math.ceil(plan.points / CHUNK)
    gathered = workspace.array("gathered", count * plan.gradient_stride, np.float32)
    reached = workspace.array("reached", count, np.uint8)
    reached[:count] = 0
    cameras = workspace.array("cameras", chunks * CAMERA, np.float32)
    means, quaternions, scales, opacities, features = outcome
    results = Outcome(means, quaternions, scales, opacities, features, cameras)
    with threads() as parts, announced("the gradients", parts):
        lists.counters[:] = 0
        lists = lists._replace(work=workspace.array("work", parts * plan.work, np.float32))
        blend, project = [plan, lists, pairs, images, gradients, gathered, reached], [plan, scene, lists, gathered, reached, results]
        BACK_BLENDS[plan.values == 4, parts > 1](parts if parts > 1 else 0, *blend)
        project_back_all(parts, *project) if parts > 1 else project_back_part(0, *project)
    return cameras[: chunks * CAMERA].reshape(chunks, CAMERA).sum(axis=0, dtype=np.float64).astype(np.float32)
