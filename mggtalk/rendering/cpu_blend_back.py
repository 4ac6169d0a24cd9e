"""Gradients of the blending, by blending once more from front to back.

Letters: a pixel of loss gradient g sees splats i of weight ``w_i = alpha_i T_i``. What the loss gains from a unit of weight of splat i is
``s_i = g_image . features_i + g_depth (depth_i - depth) / alpha + g_alpha - k``, with k the same for every splat: the value for which all
that a pixel shows, background included, sums to 0. Then the gradient to alpha_i is ``T_i s_i + S_i / (1 - alpha_i)`` with
``S_i = sum_{j <= i} w_j s_j``: nothing has to be summed from the back, and neighbours of like colour cancel before they are rounded.
Gradients to ``log alpha`` are gathered as moments 1, u, v, u u, u v, v v over the pixels of a tile.
"""

from __future__ import annotations

import numpy as np

from mggtalk.rendering.cpu_blend import block_x, block_y, inside, make_ready, narrow, weigh
from mggtalk.rendering.cpu_images import read_block
from mggtalk.rendering.cpu_layout import BLEND_BACK, MOMENTS, TILE, VALUES, Images, Lists, Pairs, Plan
from mggtalk.rendering.simd import Array, compiled, fma, mask_bits, minimum, reciprocal, select, splat
from mggtalk.rendering.simd_memory import load, lowest_bit, peek, poke, prefetch, store, sums, take_next, total


@compiled(inline=True)
def open_block(plan: Plan, images: Images, gradients: Images, x: int, y: int, origin: float, work: Array, state: int, spare: int) -> None:
    """Fill a block's state: S (0), ``s`` of a splat at the origin's depth without features, gradients to the values of a unit weight."""
    pixels = plan.width * plan.height
    alpha = read_block(plan, images.alpha, 0, x, y, work, spare)
    to_alpha = read_block(plan, gradients.alpha, 0, x, y, work, spare)
    to_depth = select(alpha > 0.0, read_block(plan, gradients.depth, 0, x, y, work, spare) / alpha, 0.0)
    beyond = read_block(plan, images.depth, 0, x, y, work, spare) - origin
    mean = to_alpha * alpha
    store(work, state + 48, to_depth)
    for channel in range(plan.channels):
        gradient = read_block(plan, gradients.image, channel * pixels, x, y, work, spare)
        mean = fma(gradient, read_block(plan, images.image, channel * pixels, x, y, work, spare), mean)
        store(work, state + 64 + 16 * channel, gradient)
    for value in range(plan.channels + 1, plan.values):
        store(work, state + 48 + 16 * value, splat(0.0))
    store(work, state + 16, splat(0.0))
    store(work, state + 32, to_alpha - mean - to_depth * beyond)


@compiled(inline=True)
def open_tile_back(plan: Plan, images: Images, gradients: Images, left: int, top: int, origin: float, work: Array, spare: int) -> int:
    """Fill the states of a tile's blocks; returns the blocks that have pixels."""
    alive = np.uint64(0)
    for block in range(16):
        x, y, state = left + 4 * (block & 3), top + 4 * (block >> 2), block * 16 * (3 + plan.values)
        if x < plan.width and y < plan.height:
            alive |= np.uint64(1) << np.uint64(block)
            store(work, state, select(inside(plan, left, top, block), splat(1.0), -1.0))
            open_block(plan, images, gradients, x, y, origin, work, state, spare)
    return alive


@compiled(inline=True)
def blend_back_splat(plan: Plan, work: Array, ready: int, extra: int, touched: int, alive: int, sums_out: Array, out: int) -> int:
    """Replay one splat on the blocks that it touches and write what it gathers; returns the blocks that can still take more."""
    zero = splat(0.0)
    for value in range(4, plan.values):
        store(work, extra + 16 * value, zero)
    m, mu, mv, muu, muv, mvv = zero, zero, zero, zero, zero, zero
    to_first, to_second, to_third, to_fourth = zero, zero, zero, zero
    while touched != np.uint64(0):
        block = lowest_bit(touched)
        touched &= touched - np.uint64(1)
        state = block * 16 * (3 + plan.values)
        transmittance = load(work, state)
        lives = transmittance > 0.0
        u, v, full, alpha, behind, counts, lives = weigh(plan, work, ready, block_x(block), block_y(block), transmittance, lives)
        weight = select(counts, alpha * transmittance, 0.0)
        first, second, third, fourth = load(work, state + 48), load(work, state + 64), load(work, state + 80), load(work, state + 96)
        worth = fma(first, peek(work, ready + VALUES), load(work, state + 32))
        worth = fma(second, peek(work, ready + VALUES + 1), worth)
        worth = fma(fourth, peek(work, ready + VALUES + 3), fma(third, peek(work, ready + VALUES + 2), worth))
        to_first, to_second = fma(weight, first, to_first), fma(weight, second, to_second)
        to_third, to_fourth = fma(weight, third, to_third), fma(weight, fourth, to_fourth)
        for value in range(4, plan.values):
            gradient = load(work, state + 48 + 16 * value)
            worth = fma(gradient, peek(work, ready + VALUES + value), worth)
            store(work, extra + 16 * value, fma(weight, gradient, load(work, extra + 16 * value)))
        gain = weight * worth
        gained = load(work, state + 16) + gain
        to_log_alpha = select(counts & (full <= plan.alpha_max), fma(gained, alpha * reciprocal(1.0 - alpha), gain), 0.0)
        store(work, state + 16, gained)
        transmittance = select(counts, behind, transmittance)
        store(work, state, select(lives, transmittance, minimum(transmittance, 0.0 - transmittance)))
        along, aside = to_log_alpha * u, to_log_alpha * v
        m, mu, mv = m + to_log_alpha, mu + along, mv + aside
        muu, muv, mvv = fma(along, u, muu), fma(along, v, muv), fma(aside, v, mvv)
        if mask_bits(lives) == np.uint32(0):
            alive &= ~(np.uint64(1) << np.uint64(block))
    store(sums_out, out, sums((m, mu, mv, muu, muv, mvv, to_first, to_second, to_third, to_fourth)))
    for value in range(4, plan.values):
        poke(sums_out, out + MOMENTS + value, total(load(work, extra + 16 * value)))
    return alive


@compiled(inline=True)
def blend_back_tile(
    plan: Plan, lists: Lists, pairs: Pairs, images: Images, gradients: Images, tile: int, work: Array, gathered: Array, reached: Array
) -> None:
    """One tile: for the slots of its splats, whether they were reached (0 before), and what they gathered."""
    left, top = TILE * (tile % plan.columns), TILE * (tile // plan.columns)
    start, end = peek(lists.starts, tile), peek(lists.starts, tile + 1)
    if start == end:
        return
    ready = 256 * (3 + plan.values)
    extra = ready + plan.stride
    origin = peek(lists.records, peek(pairs.members, start) * plan.stride + VALUES)
    alive = open_tile_back(plan, images, gradients, left, top, origin, work, ready)
    for place in range(start, end):
        if alive == np.uint64(0):
            break
        prefetch(lists.records, peek(pairs.members, min(place + 8, end - 1)) * plan.stride)
        touched = np.uint64(peek(pairs.blocks, place)) & alive
        if touched != np.uint64(0):
            make_ready(plan, lists.records, peek(pairs.members, place), left, top, origin, work, ready)
            slot = np.int64(peek(pairs.slots, place))
            poke(reached, slot, 1)
            alive = blend_back_splat(plan, work, ready, extra, touched, alive, gathered, slot * plan.gradient_stride)


@compiled(inline=True)
def blend_back_tiles(
    part: int, plan: Plan, lists: Lists, pairs: Pairs, images: Images, gradients: Images, gathered: Array, reached: Array
) -> None:
    """Take tiles until none are left."""
    work = lists.work[part * plan.work : (part + 1) * plan.work]
    while True:
        tile = take_next(lists.counters, BLEND_BACK)
        if tile >= plan.columns * plan.rows:
            break
        blend_back_tile(plan, lists, pairs, images, gradients, tile, work, gathered, reached)


@compiled()
def blend_back_part(
    part: int, plan: Plan, lists: Lists, pairs: Pairs, images: Images, gradients: Images, gathered: Array, reached: Array
) -> None:
    """A thread's share of the gradients of the blending, for any number of features."""
    blend_back_tiles(part, plan, lists, pairs, images, gradients, gathered, reached)


@compiled()
def blend_back_part_narrow(
    part: int, plan: Plan, lists: Lists, pairs: Pairs, images: Images, gradients: Images, gathered: Array, reached: Array
) -> None:
    """:func:`blend_back_part` for at most three features."""
    blend_back_tiles(part, narrow(plan), lists, pairs, images, gradients, gathered, reached)
