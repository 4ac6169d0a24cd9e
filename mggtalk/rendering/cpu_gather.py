"""From what the tiles gathered to the gradients of every Gaussian: sums over its tiles, then the gradients of the projection."""

from __future__ import annotations

import numpy as np

from mggtalk.rendering.cpu_bins import sides
from mggtalk.rendering.cpu_layout import CAMERA, CHUNK, MOMENTS, PROJECT_BACK, Lists, Plan, Scene
from mggtalk.rendering.cpu_project_back import Outcome, project_back_vector
from mggtalk.rendering.simd import Array, compiled, splat
from mggtalk.rendering.simd_memory import load, peek, poke, store, store_rows, take_next, total


@compiled(inline=True)
def gather(plan: Plan, lists: Lists, gathered: Array, reached: Array, index: int, row: Array, at: int) -> bool:
    """Sum what the tiles gathered for one Gaussian, in the order of the tiles, to ``row[at ...]``; False if no tile reached it."""
    first_column, end_column, first_row, end_row = sides(peek(lists.rects, 2 * index))
    area = (end_column - first_column) * (end_row - first_row)
    found = False
    if area > 0:
        first = peek(lists.visible, 2 * (index // CHUNK) + 1) + np.int64(peek(lists.rects, 2 * index + 1))
        for slot in range(first, first + area):
            if peek(reached, slot) != 0:
                for part in range(0, plan.gradient_stride, 16):
                    more = load(gathered, slot * plan.gradient_stride + part)
                    store(row, at + part, load(row, at + part) + more if found else more)
                found = True
    return found


@compiled(inline=True)
def clear_gradients(outcome: Outcome, base: int) -> None:
    """No gradient to 16 Gaussians."""
    zero = splat(0.0)
    store_rows(outcome.means, base, (zero, zero, zero))
    store_rows(outcome.scales, base, (zero, zero, zero))
    store_rows(outcome.quaternions, base, (zero, zero, zero, zero))
    store(outcome.opacities, base, zero)


@compiled(inline=True)
def gather_rows(plan: Plan, lists: Lists, gathered: Array, reached: Array, base: int, skip: int, work: Array, rows: Array) -> int:
    """Gather for 16 Gaussians but the first ``skip``, to ``work`` as records and to ``rows`` as vectors; returns which were reached."""
    found = 0
    rows[:] = 0
    for lane in range(skip, 16):
        at = lane * plan.gradient_stride
        if gather(plan, lists, gathered, reached, base + lane, work, at):
            found |= 1 << lane
            for number in range(MOMENTS + 1):
                poke(rows, 16 * number + lane, peek(work, at + number))
            for number in range(3):
                poke(rows, 112 + 16 * number + lane, peek(lists.records, (base + lane) * plan.stride + 2 + number))
    return found


@compiled()
def project_back_chunk(
    plan: Plan, scene: Scene, lists: Lists, gathered: Array, reached: Array, outcome: Outcome, chunk: int, work: Array
) -> None:
    """Gradients of one chunk of Gaussians and its part of the camera's."""
    rows_at = 16 * plan.gradient_stride
    totals_at = rows_at + 160
    rows, totals, unused = work[rows_at:totals_at], work[totals_at : totals_at + 16 * CAMERA], work[totals_at + 16 * CAMERA :]
    totals[:] = 0
    for start in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, plan.points), 16):
        base = min(start, plan.points - 16)
        found = gather_rows(plan, lists, gathered, reached, base, start - base, work, rows)
        if found != 0:
            project_back_vector(plan, scene, outcome, base, rows, totals)
        else:
            clear_gradients(outcome, base)
        if base < start:  # the first lanes were written before and now again: right values, but not twice to the camera
            found = gather_rows(plan, lists, gathered, reached, base, 0, work, rows)
            project_back_vector(plan, scene, outcome, base, rows, unused)
        for lane in range(16):
            for channel in range(plan.channels):
                value = peek(work, lane * plan.gradient_stride + MOMENTS + 1 + channel)
                poke(outcome.features, (base + lane) * plan.channels + channel, value if (found >> lane) & 1 else np.float32(0))
    for number in range(CAMERA):
        poke(outcome.cameras, chunk * CAMERA + number, total(load(totals, 16 * number)))


@compiled()
def project_back_part(part: int, plan: Plan, scene: Scene, lists: Lists, gathered: Array, reached: Array, outcome: Outcome) -> None:
    """Take chunks of Gaussians until none are left."""
    work = lists.work[part * plan.work : (part + 1) * plan.work]
    while True:
        chunk = take_next(lists.counters, PROJECT_BACK)
        if chunk * CHUNK >= plan.points:
            break
        project_back_chunk(plan, scene, lists, gathered, reached, outcome, chunk, work)
