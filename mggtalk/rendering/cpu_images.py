"""Between the blocks of a tile and the images."""

from __future__ import annotations

from mggtalk.rendering.cpu_layout import TILE, Images, Plan
from mggtalk.rendering.simd import Array, Vector, compiled, fma, maximum, select, splat
from mggtalk.rendering.simd_memory import load, load_block, peek, poke, store, store_block, turn_blocks


@compiled(inline=True)
def write_block(plan: Plan, plane: Array, offset: int, x: int, y: int, values: Vector, spare: Array, at: int) -> None:
    """Write 4 x 4 pixels at (x, y) of a plane of images; those outside are left out. ``spare[at ...]`` holds 16 numbers meanwhile."""
    if x + 4 <= plan.width and y + 4 <= plan.height:
        store_block(plane, offset + y * plan.width + x, plan.width, values)
        return
    store(spare, at, values)
    for row in range(min(4, plan.height - y)):
        for column in range(min(4, plan.width - x)):
            poke(plane, offset + (y + row) * plan.width + x + column, peek(spare, at + 4 * row + column))


@compiled(inline=True)
def read_block(plan: Plan, plane: Array, offset: int, x: int, y: int, spare: Array, at: int) -> Vector:
    """The inverse of :func:`write_block`; 0 outside."""
    if x + 4 <= plan.width and y + 4 <= plan.height:
        return load_block(plane, offset + y * plan.width + x, plan.width)
    store(spare, at, splat(0.0))
    for row in range(min(4, plan.height - y)):
        for column in range(min(4, plan.width - x)):
            poke(spare, at + 4 * row + column, peek(plane, offset + (y + row) * plan.width + x + column))
    return load(spare, at)


@compiled(inline=True)
def close_tile(plan: Plan, images: Images, left: int, top: int, origin: float, work: Array, spare: int) -> None:
    """Write what was blended, over the background."""
    for line in range(4):
        if left + TILE <= plan.width and top + 4 * line + 4 <= plan.height:
            close_line(plan, images, left, top + 4 * line, origin, work, 4 * line * 16 * (1 + plan.values))
        else:
            for block in range(4 * line, 4 * line + 4):
                close_block(plan, images, left, top, origin, work, block, spare)


@compiled(inline=True)
def load_line(plan: Plan, work: Array, at: int) -> tuple[Vector, Vector, Vector, Vector]:
    """One number of each pixel of four blocks that lie side by side, as rows of 16."""
    step = 16 * (1 + plan.values)
    return turn_blocks((load(work, at), load(work, at + step), load(work, at + 2 * step), load(work, at + 3 * step)))


@compiled(inline=True)
def close_line(plan: Plan, images: Images, left: int, y: int, origin: float, work: Array, state: int) -> None:
    """Write four blocks that lie side by side in the image, in rows of a cache line."""
    pixels = plan.width * plan.height
    signed, depths = load_line(plan, work, state), load_line(plan, work, state + 16)
    for row in range(4):
        at = (y + row) * plan.width + left
        alpha = 1.0 - maximum(signed[row], 0.0 - signed[row])
        store(images.alpha, at, alpha)
        store(images.depth, at, select(alpha > 0.0, depths[row] / alpha + origin, 0.0))
    for channel in range(plan.channels):
        colours = load_line(plan, work, state + 32 + 16 * channel)
        for row in range(4):
            at = channel * pixels + (y + row) * plan.width + left
            colour = colours[row]
            if plan.over_background:
                colour = fma(maximum(signed[row], 0.0 - signed[row]), load(images.background, at), colour)
            store(images.image, at, colour)


@compiled(inline=True)
def close_block(plan: Plan, images: Images, left: int, top: int, origin: float, work: Array, block: int, spare: int) -> None:
    """Write one block, or what of it lies in the image."""
    pixels = plan.width * plan.height
    x, y, state = left + 4 * (block & 3), top + 4 * (block >> 2), block * 16 * (1 + plan.values)
    if x >= plan.width or y >= plan.height:
        return
    signed = load(work, state)
    transmittance = maximum(signed, 0.0 - signed)
    alpha = 1.0 - transmittance
    write_block(plan, images.alpha, 0, x, y, alpha, work, spare)
    depth = select(alpha > 0.0, load(work, state + 16) / alpha + origin, 0.0)
    write_block(plan, images.depth, 0, x, y, depth, work, spare)
    for channel in range(plan.channels):
        colour = load(work, state + 32 + 16 * channel)
        if plan.over_background:
            colour = fma(transmittance, read_block(plan, images.background, channel * pixels, x, y, work, spare), colour)
        write_block(plan, images.image, channel * pixels, x, y, colour, work, spare)
