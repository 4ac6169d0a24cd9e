"""Depth order of the splats, and the list of splats of every tile."""

from __future__ import annotations

import numpy as np

from mggtalk.rendering.cpu_layout import CHUNK, Lists, Pairs, Plan
from mggtalk.rendering.simd import Array, compiled
from mggtalk.rendering.simd_memory import peek, poke, prefetch

DIGITS = 4096  # at most


@compiled(inline=True)
def increase(numbers: Array, place: int, step: int) -> int:
    """Add to a number; returns what it was."""
    before = peek(numbers, place)
    poke(numbers, place, before + step)
    return before


@compiled()
def sort_splats(plan: Plan, lists: Lists) -> int:
    """Close the gaps between the chunks of keys and sort by depth, ties by index; returns how many there are.

    Of the tiles touched by each chunk it makes the first slot of each chunk.
    """
    count, slot = 0, 0
    smallest, largest = np.uint64(0xFFFFFFFF), np.uint64(0)
    for chunk in range((plan.points + CHUNK - 1) // CHUNK):
        area = peek(lists.visible, 2 * chunk + 1)
        poke(lists.visible, 2 * chunk + 1, slot)
        slot += area
        for place in range(chunk * CHUNK, chunk * CHUNK + peek(lists.visible, 2 * chunk)):
            key = peek(lists.keys, place)
            depth = key >> np.uint64(32)
            smallest, largest = min(smallest, depth), max(largest, depth)
            poke(lists.keys, count, key)
            count += 1
    if count > 0:
        bits = 12 if largest - smallest < np.uint64(1 << 24) else 8
        for shift in range(32, 56 if bits == 12 else 64, 2 * bits):  # an even number of passes ends where it began
            radix_pass(lists.keys, lists.spare, lists.histogram, count, smallest, shift, bits)
            radix_pass(lists.spare, lists.keys, lists.histogram, count, smallest, shift + bits, bits)
    return count


@compiled()
def radix_pass(source: Array, target: Array, histogram: Array, count: int, smallest: int, shift: int, bits: int) -> None:
    """A stable counting sort by some bits of the depth above ``smallest``."""
    digits = 1 << bits
    histogram[:digits] = 0
    offset, digit_shift, lowest = smallest << np.uint64(32), np.uint64(shift), np.uint64(digits - 1)
    for place in range(count):
        increase(histogram, np.int64(((peek(source, place) - offset) >> digit_shift) & lowest), 1)
    running = 0
    for digit in range(digits):
        here = peek(histogram, digit)
        poke(histogram, digit, running)
        running += here
    for place in range(count):
        key = peek(source, place)
        digit = np.int64(((key - offset) >> digit_shift) & lowest)
        poke(target, increase(histogram, digit, 1), key)


@compiled(inline=True)
def sides(rect: int) -> tuple[int, int, int, int]:
    """First and end column, first and end row."""
    packed = np.int64(rect)
    return packed & 0xFFFF, (packed >> 16) & 0xFFFF, (packed >> 32) & 0xFFFF, (packed >> 48) & 0xFFFF


@compiled(inline=True)
def key_index(keys: Array, place: int) -> int:
    """Which Gaussian a key stands for."""
    return np.int64(peek(keys, place) & np.uint64(0xFFFFFFFF))


@compiled()
def count_part(part: int, parts: int, plan: Plan, lists: Lists, visible: int) -> None:
    """How many of this part's splats (a run of the depth order) touch each tile.

    Each rectangle marks its corners: sums along rows and down columns of the marks are the counts.
    """
    pitch = plan.columns + 1
    counts = lists.counts[part * pitch * (plan.rows + 1) : (part + 1) * pitch * (plan.rows + 1)]
    counts[:] = 0
    for place in range(visible * part // parts, visible * (part + 1) // parts):
        prefetch(lists.rects, 2 * key_index(lists.keys, min(place + 16, visible - 1)))
        first_column, end_column, first_row, end_row = sides(peek(lists.rects, 2 * key_index(lists.keys, place)))
        increase(counts, first_row * pitch + first_column, 1)
        increase(counts, first_row * pitch + end_column, -1)
        increase(counts, end_row * pitch + first_column, -1)
        increase(counts, end_row * pitch + end_column, 1)
    for row in range(plan.rows):
        running = 0
        for column in range(plan.columns):
            running += peek(counts, row * pitch + column)
            poke(counts, row * pitch + column, running + (peek(counts, (row - 1) * pitch + column) if row > 0 else 0))


@compiled()
def place_lists(parts: int, plan: Plan, lists: Lists) -> int:
    """Where each tile's list starts and each part writes its share of it; returns the number of (tile, splat) pairs."""
    pitch = plan.columns + 1
    running = 0
    for tile in range(plan.columns * plan.rows):
        poke(lists.starts, tile, running)
        at = tile // plan.columns * pitch + tile % plan.columns
        for part in range(parts):
            here = peek(lists.counts, part * pitch * (plan.rows + 1) + at)
            poke(lists.counts, part * pitch * (plan.rows + 1) + at, running)
            running += here
    poke(lists.starts, plan.columns * plan.rows, running)
    return running


@compiled()
def fill_part(part: int, parts: int, plan: Plan, lists: Lists, pairs: Pairs, visible: int) -> None:
    """Write this part's splats into the lists of the tiles."""
    pitch = plan.columns + 1
    cursors = lists.counts[part * pitch * (plan.rows + 1) : (part + 1) * pitch * (plan.rows + 1)]
    for place in range(visible * part // parts, visible * (part + 1) // parts):
        prefetch(lists.rects, 2 * key_index(lists.keys, min(place + 16, visible - 1)))
        index = key_index(lists.keys, place)
        first_column, end_column, first_row, end_row = sides(peek(lists.rects, 2 * index))
        slot = peek(lists.visible, 2 * (index // CHUNK) + 1) + np.int64(peek(lists.rects, 2 * index + 1))
        across, column, row = end_column - first_column, first_column, first_row * pitch
        for step in range(across * (end_row - first_row)):  # one loop: the end of a short one is hard to foresee
            target = increase(cursors, row + column, 1)
            poke(pairs.members, target, index)
            if plan.for_backward:
                poke(pairs.slots, target, slot + step)
            last = column + 1 == end_column
            row += pitch if last else 0
            column = first_column if last else column + 1
