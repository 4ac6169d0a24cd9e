"""Blending of the splats of a tile, one block of 4 x 4 pixels at a time with its transmittance and first values in registers."""

from __future__ import annotations

import numpy as np

from mggtalk.rendering.cpu_images import close_tile
from mggtalk.rendering.cpu_layout import BATCH, BLEND, SLACK, TILE, VALUES, Images, Lists, Pairs, Plan
from mggtalk.rendering.simd import (
    TO_WHOLE,
    Array,
    Mask,
    Vector,
    columns,
    compiled,
    fma,
    fnma,
    mask_bits,
    maximum,
    minimum,
    rows,
    select,
    splat,
    times_power_of_two,
)
from mggtalk.rendering.simd_memory import (
    bit_of_each,
    load,
    lowest_bit,
    peek,
    poke,
    prefetch,
    store,
    take_next,
)


@compiled(inline=True)
def exp2(x: Vector) -> Vector:
    """``2^x`` for x from -126 to 0, within 4e-7 of itself; any number below.

    The polynomial has the smallest largest relative error of its degree on [-1/2, 1/2].
    """
    shifted = x + TO_WHOLE
    part = x - (shifted - TO_WHOLE)
    series = fma(part, fma(part, 1.327647018e-3, 9.67554138e-3), 5.55071328e-2)
    series = fma(part, fma(part, fma(part, series, 0.2402211972), 0.6931469671), 1.000000072)
    return times_power_of_two(series, shifted)


@compiled(inline=True)
def touched_blocks(x: float, y: float, a: float, b: float, c: float, slope: float, back_slope: float, reach: float) -> int:
    """Which of the 16 blocks hold a pixel centre's neighbourhood where a splat at (x, y) of the tile counts, as bits.

    The smallest value of ``u^2 + v^2`` over the box of a block's pixel centres lies where the box is entered from the mean: on the nearest
    vertical line at the best height, or on the nearest horizontal one.
    """
    left, top = columns() * 4.0 + (np.float32(0.5) - x), rows() * 4.0 + (np.float32(0.5) - y)
    right, bottom = left + 3.0, top + 3.0
    near_x, near_y = minimum(maximum(left, 0.0), right), minimum(maximum(top, 0.0), bottom)
    best_y, best_x = minimum(maximum(near_x * slope, top), bottom), minimum(maximum(near_y * back_slope, left), right)
    u, v = near_x * a, fma(near_x, b, best_y * c)
    other_u, other_v = best_x * a, fma(best_x, b, near_y * c)
    return mask_bits(minimum(fma(u, u, v * v), fma(other_u, other_u, other_v * other_v)) <= reach)


@compiled(inline=True)
def make_ready(plan: Plan, records: Array, index: int, left: int, top: int, origin: float, work: Array, at: int) -> None:
    """Copy a record to ``work[at ...]``, seen from a tile's corner: a, u at the corner, b, c, v at the corner, log2 opacity; its values.

    Depth becomes what it is beyond ``origin``, so that the expected depth keeps its digits.
    """
    source = index * plan.stride
    for offset in range(0, plan.stride, 16):
        store(work, at + offset, load(records, source + offset))
    x, y = peek(records, source) - np.float32(left), peek(records, source + 1) - np.float32(top)
    a, b, c, log_opacity = peek(records, source + 2), peek(records, source + 3), peek(records, source + 4), peek(records, source + 5)
    poke(work, at, a)
    poke(work, at + 1, -a * x)
    poke(work, at + 2, b)
    poke(work, at + 3, c)
    poke(work, at + 4, -(b * x + c * y))
    poke(work, at + 5, log_opacity)
    poke(work, at + VALUES, peek(records, source + VALUES) - origin)


@compiled(inline=True)
def blocks_of(plan: Plan, records: Array, index: int, left: int, top: int) -> int:
    """The blocks of a tile that a splat touches."""
    at = index * plan.stride
    x, y = peek(records, at) - np.float32(left), peek(records, at + 1) - np.float32(top)
    a, b, c, log_opacity = peek(records, at + 2), peek(records, at + 3), peek(records, at + 4), peek(records, at + 5)
    reach = log_opacity - np.float32(plan.log_alpha_min - SLACK)
    return touched_blocks(x, y, a, b, c, peek(records, at + 6), peek(records, at + 7), reach)


@compiled(inline=True)
def weigh(
    plan: Plan, work: Array, at: int, x: Vector, y: Vector, transmittance: Vector, alive: Mask
) -> tuple[Vector, Vector, Vector, Vector, Vector, Mask, Mask]:
    """One splat at 16 pixels: u, v, alpha before and after clamping, the transmittance behind it, where it counts, who lives on."""
    u = fma(x, peek(work, at), peek(work, at + 1))
    v = fma(y, peek(work, at + 3), fma(x, peek(work, at + 2), peek(work, at + 4)))
    exponent = fnma(v, v, fnma(u, u, peek(work, at + 5)))
    seen = alive & (exponent >= plan.log_alpha_min)
    full = exp2(exponent)
    alpha = minimum(full, plan.alpha_max)
    behind = fnma(transmittance, alpha, transmittance)
    counts = seen & (behind > plan.transmittance_min)
    return u, v, full, alpha, behind, counts, alive & ~(seen ^ counts)


@compiled(inline=True)
def block_x(block: int) -> Vector:
    """The x of the pixel centres of a block, from the tile's corner."""
    return columns() + np.float32(4 * (block & 3) + 0.5)


@compiled(inline=True)
def block_y(block: int) -> Vector:
    """The y of the pixel centres of a block, from the tile's corner."""
    return rows() + np.float32(4 * (block >> 2) + 0.5)


@compiled(inline=True)
def inside(plan: Plan, left: int, top: int, block: int) -> Mask:
    """Which pixels of a block lie in the image."""
    return (block_x(block) < np.float32(plan.width - left)) & (block_y(block) < np.float32(plan.height - top))


@compiled(inline=True)
def blend_block(plan: Plan, work: Array, ready: int, word: int, block: int, state: int) -> bool:
    """Blend those splats of a batch whose bit in ``word`` is set; whether any pixel of the block can still take more."""
    x, y = block_x(block), block_y(block)
    transmittance = load(work, state)
    alive = transmittance > 0.0
    first, second = load(work, state + 16), load(work, state + 32)
    third, fourth = load(work, state + 48), load(work, state + 64)
    while word != np.uint64(0):
        at = ready + lowest_bit(word) * plan.stride
        word &= word - np.uint64(1)
        _, _, _, alpha, behind, counts, alive = weigh(plan, work, at, x, y, transmittance, alive)
        weight = select(counts, alpha * transmittance, 0.0)
        transmittance = select(counts, behind, transmittance)
        first, second = fma(weight, peek(work, at + VALUES), first), fma(weight, peek(work, at + VALUES + 1), second)
        third, fourth = fma(weight, peek(work, at + VALUES + 2), third), fma(weight, peek(work, at + VALUES + 3), fourth)
        for value in range(4, plan.values):
            place = state + 16 + 16 * value
            store(work, place, fma(weight, peek(work, at + VALUES + value), load(work, place)))
        if mask_bits(alive) == np.uint32(0):
            break
    store(work, state, select(alive, transmittance, minimum(transmittance, 0.0 - transmittance)))
    store(work, state + 16, first)
    store(work, state + 32, second)
    store(work, state + 48, third)
    store(work, state + 64, fourth)
    return mask_bits(alive) != np.uint32(0)


@compiled(inline=True)
def open_tile(plan: Plan, left: int, top: int, work: Array) -> int:
    """Nothing blended yet; returns the blocks that have pixels. A negative transmittance is that of a pixel that takes no more."""
    alive = np.uint64(0)
    for block in range(16):
        state = block * 16 * (1 + plan.values)
        own = inside(plan, left, top, block)
        if mask_bits(own) != np.uint32(0):
            alive |= np.uint64(1) << np.uint64(block)
        store(work, state, select(own, splat(1.0), -1.0))
        for value in range(plan.values):
            store(work, state + 16 + 16 * value, splat(0.0))
    return alive


@compiled(inline=True)
def fetch(plan: Plan, lists: Lists, pairs: Pairs, first: int, end: int) -> None:
    """Ask for the records of some members of the lists."""
    for place in range(first, end):
        prefetch(lists.records, peek(pairs.members, place) * plan.stride)


@compiled(inline=True)
def blend_tile(plan: Plan, lists: Lists, pairs: Pairs, images: Images, tile: int, work: Array, masks: Array) -> None:
    """One tile from its list to its pixels."""
    left, top = TILE * (tile % plan.columns), TILE * (tile // plan.columns)
    start, end = peek(lists.starts, tile), peek(lists.starts, tile + 1)
    alive = open_tile(plan, left, top, work)
    ready = 256 * (1 + plan.values)
    origin = np.float32(0)
    if start < end:
        origin = peek(lists.records, peek(pairs.members, start) * plan.stride + VALUES)
    fetch(plan, lists, pairs, start, min(start + BATCH, end))
    for first in range(start, end, BATCH):
        count = min(BATCH, end - first)
        fetch(plan, lists, pairs, first + count, min(first + 2 * BATCH, end))
        for place in range(count):
            index = peek(pairs.members, first + place)
            make_ready(plan, lists.records, index, left, top, origin, work, ready + place * plan.stride)
            blocks = blocks_of(plan, lists.records, index, left, top)
            poke(masks, place, blocks)
            if plan.for_backward:
                poke(pairs.blocks, first + place, blocks)
        masks[count:BATCH] = 0
        waiting = alive
        while waiting != np.uint64(0):
            block = lowest_bit(waiting)
            waiting &= waiting - np.uint64(1)
            word = bit_of_each(masks, 0, block)
            if word != np.uint64(0) and not blend_block(plan, work, ready, word, block, block * 16 * (1 + plan.values)):
                alive &= ~(np.uint64(1) << np.uint64(block))
        if alive == np.uint64(0):
            break
    close_tile(plan, images, left, top, origin, work, ready)


@compiled(inline=True)
def narrow(plan: Plan) -> Plan:
    """The plan of at most three features, with sizes that the compiler knows; for more, as it is."""
    return Plan(
        plan.width,
        plan.height,
        plan.columns,
        plan.rows,
        plan.points,
        plan.channels,
        4,
        16,
        16,
        plan.for_backward,
        plan.for_camera,
        plan.over_background,
        plan.eps2d,
        plan.near,
        plan.alpha_min,
        plan.alpha_max,
        plan.log_alpha_min,
        plan.transmittance_min,
        plan.work,
    )


@compiled(inline=True)
def blend_tiles(part: int, plan: Plan, lists: Lists, pairs: Pairs, images: Images) -> None:
    """Take tiles until none are left."""
    work, masks = lists.work[part * plan.work : (part + 1) * plan.work], lists.masks[part * BATCH : (part + 1) * BATCH]
    while True:
        tile = take_next(lists.counters, BLEND)
        if tile >= plan.columns * plan.rows:
            break
        blend_tile(plan, lists, pairs, images, tile, work, masks)


@compiled()
def blend_part(part: int, plan: Plan, lists: Lists, pairs: Pairs, images: Images) -> None:
    """A thread's share of the blending, for any number of features."""
    blend_tiles(part, plan, lists, pairs, images)


@compiled()
def blend_part_narrow(part: int, plan: Plan, lists: Lists, pairs: Pairs, images: Images) -> None:
    """:func:`blend_part` for at most three features: a seventh faster."""
    blend_tiles(part, narrow(plan), lists, pairs, images)
