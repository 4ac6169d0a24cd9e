"""Depth order of the splats, and the list of splats of every tile."""

from __future__ import annotations

import numpy as np

from mggtalk.rendering.cpu_layout import CHUNK, Lists, Pairs, Plan
from mggtalk.rendering.simd import Array, compiled
from mggtalk.rendering.simd_memory import prefetch

DIGITS = 4096


@compiled()
def sort_splats(plan: Plan, lists: Lists) -> int:
    """Close the gaps between the chunks of keys and sort by depth, ties by index; returns how many there are."""
    count = 0
    smallest, largest = np.uint64(0xFFFFFFFF), np.uint64(0)
    for chunk in range((plan.points + CHUNK - 1) // CHUNK):
        for place in range(chunk * CHUNK, chunk * CHUNK + lists.visible[chunk]):
            key = lists.keys[place]
            depth = key >> np.uint64(32)
            smallest, largest = min(smallest, depth), max(largest, depth)
            lists.keys[count] = key
            count += 1
    if count > 0:
        spread = largest - smallest
        for shift in range(0, 24 if spread < np.uint64(1 << 24) else 48, 24):  # an even number of passes ends where it began
            radix_pass(lists.keys, lists.spare, lists.histogram, count, smallest, 32 + shift)
            radix_pass(lists.spare, lists.keys, lists.histogram, count, smallest, 44 + shift)
    return count


@compiled()
def radix_pass(source: Array, target: Array, histogram: Array, count: int, smallest: int, shift: int) -> None:
    """A stable counting sort by 12 bits of the depth above ``smallest``."""
    histogram[:DIGITS] = 0
    offset, digit_shift, lowest = smallest << np.uint64(32), np.uint64(shift), np.uint64(DIGITS - 1)
    for place in range(count):
        histogram[((source[place] - offset) >> digit_shift) & lowest] += 1
    running = 0
    for digit in range(DIGITS):
        here = histogram[digit]
        histogram[digit] = running
        running += here
    for place in range(count):
        key = source[place]
        digit = ((key - offset) >> digit_shift) & lowest
        target[histogram[digit]] = key
        histogram[digit] += 1


@compiled(inline=True)
def sides(rect: int) -> tuple[int, int, int, int]:
    """First and end column, first and end row."""
    packed = np.int64(rect)
    return packed & 0xFFFF, (packed >> 16) & 0xFFFF, (packed >> 32) & 0xFFFF, (packed >> 48) & 0xFFFF


@compiled()
def count_part(part: int, parts: int, plan: Plan, lists: Lists, visible: int) -> None:
    """How many of this part's splats (a run of the depth order) touch each tile."""
    tiles = plan.columns * plan.rows
    lists.counts[part * tiles : (part + 1) * tiles] = 0
    area = 0
    for place in range(visible * part // parts, visible * (part + 1) // parts):
        prefetch(lists.rects, np.int64(lists.keys[min(place + 16, visible - 1)] & np.uint64(0xFFFFFFFF)))
        first_column, end_column, first_row, end_row = sides(lists.rects[lists.keys[place] & np.uint64(0xFFFFFFFF)])
        area += (end_column - first_column) * (end_row - first_row)
        for row in range(first_row, end_row):
            for column in range(first_column, end_column):
                lists.counts[part * tiles + row * plan.columns + column] += 1
    lists.areas[part] = area


@compiled()
def place_lists(parts: int, plan: Plan, lists: Lists) -> int:
    """Where each tile's list starts and each part writes its share of it; returns the number of (tile, splat) pairs."""
    tiles = plan.columns * plan.rows
    running = 0
    for tile in range(tiles):
        lists.starts[tile] = running
        for part in range(parts):
            here = lists.counts[part * tiles + tile]
            lists.counts[part * tiles + tile] = running
            running += here
    lists.starts[tiles] = running
    return running


@compiled()
def fill_part(part: int, parts: int, plan: Plan, lists: Lists, pairs: Pairs, visible: int) -> None:
    """Write this part's splats into the lists of the tiles."""
    offset = part * plan.columns * plan.rows
    slot = 0
    for before in range(part):
        slot += lists.areas[before]
    for place in range(visible * part // parts, visible * (part + 1) // parts):
        prefetch(lists.rects, np.int64(lists.keys[min(place + 16, visible - 1)] & np.uint64(0xFFFFFFFF)))
        index = np.int64(lists.keys[place] & np.uint64(0xFFFFFFFF))
        first_column, end_column, first_row, end_row = sides(lists.rects[index])
        if plan.for_backward:
            pairs.first_slot[index] = slot
        for row in range(first_row, end_row):
            for column in range(first_column, end_column):
                tile = offset + row * plan.columns + column
                pairs.members[lists.counts[tile]] = index
                if plan.for_backward:
                    pairs.slots[slot] = lists.counts[tile]
                    slot += 1
                lists.counts[tile] += 1
